"""A person's decisions and scribbles: strictly checked, and applied to a stage whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import signal
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from review_stages import SIZE, disc, entry, make_stage, png, records, scene, strokes, write_decisions

from pixelsem.attacks.settings import RegionOptions
from pixelsem.engine.regions import RegionMaker
from pixelsem.errors import InputError, OutputError, PixelsemError, StageError
from pixelsem.images import decode_hints, encode_image, read_hints, read_image, read_mask, text_pixels, write_image
from pixelsem.models.classifier import Preprocessing
from pixelsem.records import SegmentRecord
from pixelsem.regions import review
from pixelsem.regions.grabcut import grabcut
from pixelsem.regions.masks import MaskSource
from pixelsem.regions.review import (
    REJECTED,
    apply_review,
    cut_from,
    drawn_size,
    load_shown,
    mask_digest,
    read_review,
    revision,
)
from pixelsem.regions.settings import GrabCutSettings
from pixelsem.stage import Stage, StageInfo, open_stage

IDS = ["a.png", "cat/b.png", "cat/c.png"]
SMALL = np.zeros(SIZE, np.uint8)
SMALL[20:24, 14:18] = 255  # 0.6 % of the image: flagged

row = np.zeros(SIZE, bool)
row[21:24] = True


def inside(stage: Stage, name: str) -> Any:
    return read_mask(stage.path / records(stage)[name].mask) > 0


# Decisions


def test_accepted_rejected_and_taken_back(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS, a_png=SMALL)
    before = records(stage)
    assert before["a.png"].flags
    file = write_decisions(
        stage, entry(stage, "a.png", decision="accepted"), entry(stage, "cat/b.png", decision="rejected")
    )
    summary = apply_review(file, stage)
    after = records(stage)
    assert after["a.png"].flags == []
    assert after["a.png"].review is not None
    assert (after["a.png"].review.decision, after["a.png"].review.flags) == ("accepted", before["a.png"].flags)
    assert after["cat/b.png"].flags == [REJECTED]
    assert after["cat/c.png"] == before["cat/c.png"]
    assert (summary.accepted, summary.rejected, summary.redone) == (["a.png"], ["cat/b.png"], [])
    assert summary.flagged == {"cat/b.png": REJECTED}
    assert (open_stage(stage.path).info.counts or {})["flagged"] == 1
    back = [entry(stage, name, decision=None) for name in IDS[:2]]
    apply_review(write_decisions(stage, *back), stage)
    assert records(stage) == before


def test_a_flagged_mask_that_is_rejected_keeps_its_own_flag(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS, a_png=SMALL)
    own = records(stage)["a.png"].flags
    for decision, flags in (("rejected", [REJECTED, *own]), ("accepted", []), ("rejected", [REJECTED, *own])):
        apply_review(write_decisions(stage, entry(stage, "a.png", decision=decision)), stage)
        assert records(stage)["a.png"].flags == flags


def test_attacks_leave_rejected_masks_out_and_take_accepted_ones(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS, a_png=SMALL)
    file = write_decisions(
        stage, entry(stage, "a.png", decision="accepted"), entry(stage, "cat/b.png", decision="rejected")
    )
    apply_review(file, stage)
    maker = RegionMaker(RegionOptions(region="foreground"), MaskSource.open(stage.path), 0)
    image = scene(0)
    same = Preprocessing(SIZE, resize=min(SIZE))
    flags = {name: maker.of(name, image.shape, image, same)[1] for name in IDS}
    assert flags == {"a.png": (), "cat/b.png": (REJECTED,), "cat/c.png": ()}
    regions, _ = maker.of("a.png", image.shape, image, same)
    assert (regions["foreground"] == (SMALL > 0)).all()


# Scribbles


def test_scribbles_choose_which_disc_is_the_object(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS)
    levels = strokes(white=row & disc(16), black=row & disc(44))
    summary = apply_review(write_decisions(stage, entry(stage, "cat/b.png", scribbles=png(levels))), stage)
    assert summary.redone == ["cat/b.png"]
    found = inside(stage, "cat/b.png")
    assert found[levels == 255].all()
    assert not found[levels == 0].any()
    assert (found & disc(16)).sum() / (found | disc(16)).sum() > 0.9
    record = records(stage)["cat/b.png"]
    assert record.coverage == found.mean()
    assert record.flags == []
    assert record.original == "masks/cat/b.png"
    assert record.scribbles is not None
    assert (read_hints(stage.path / record.scribbles) == levels).all()
    assert inside(stage, "a.png").sum() == (disc(16) | disc(44)).sum()


def test_a_grabcut_stage_is_cut_as_the_command_with_hints_would(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS)
    levels = strokes(white=row & disc(44))
    apply_review(write_decisions(stage, entry(stage, "a.png", scribbles=png(levels))), stage, workers=1)
    expected = grabcut(read_image(tmp_path / "photos/a.png"), GrabCutSettings(upscale=0, iterations=2), levels)
    assert (inside(stage, "a.png") == expected).all()


@pytest.mark.parametrize("kind", ["binary", "soft"])
def test_another_methods_mask_is_where_the_cut_starts(tmp_path: Path, kind: str) -> None:
    prior = np.where(disc(16), 65535 if kind == "soft" else 255, 0).astype(np.uint16 if kind == "soft" else np.uint8)
    stage = make_stage(tmp_path, ["a.png"], method="u2net", a_png=prior)
    levels = strokes(white=row & disc(44))
    apply_review(write_decisions(stage, entry(stage, "a.png", scribbles=png(levels))), stage)
    record = records(stage)["a.png"]
    values = read_mask(stage.path / record.mask)
    assert record.kind == kind
    assert set(np.unique(values)) == {0, int(prior.max())}
    both = disc(16) | disc(44)
    assert ((values > 0) & both).sum() / ((values > 0) | both).sum() > 0.9
    assert (values > 0)[levels == 255].all()


def test_a_flagged_mask_is_mended(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS, method="u2net", a_png=SMALL)
    apply_review(write_decisions(stage, entry(stage, "a.png", scribbles=png(strokes(white=disc(16))))), stage)
    assert records(stage)["a.png"].flags == []


def test_new_scribbles_start_from_the_methods_mask_and_cleared_ones_bring_it_back(tmp_path: Path) -> None:
    first, second = strokes(black=row & disc(44)), strokes(black=row & disc(16))
    once, twice = (make_stage(tmp_path / name, ["a.png"], method="u2net") for name in ("once", "twice"))
    before = records(twice)
    for stage, all_levels in ((once, [second]), (twice, [first, second])):
        for levels in all_levels:
            apply_review(write_decisions(stage, entry(stage, "a.png", scribbles=png(levels))), stage)
    assert (inside(once, "a.png") == inside(twice, "a.png")).all()
    assert not inside(twice, "a.png")[second == 0].any()
    apply_review(write_decisions(twice, entry(twice, "a.png", scribbles=None)), twice)
    assert records(twice) == before


def test_scribbles_and_a_decision_together(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS, method="u2net")
    spot = strokes(white=SMALL > 0, black=SMALL == 0)
    apply_review(
        write_decisions(stage, entry(stage, "a.png", scribbles=png(spot), decision="accepted"),
                        entry(stage, "cat/b.png", scribbles=png(spot))), stage
    )  # fmt: skip
    after = records(stage)
    assert (after["a.png"].flags, after["a.png"].coverage) == ([], float((SMALL > 0).mean()))
    assert after["cat/b.png"].flags[0].startswith("degenerate-foreground")


def test_scribbles_on_large_images_are_drawn_smaller(tmp_path: Path) -> None:
    assert drawn_size((100, 200)) == (100, 200)
    assert drawn_size((5000, 4000, 3)) == (2048, 1638)
    assert drawn_size((1, 9000)) == (1, 2048)


def test_cut_from_needs_something_to_tell_apart() -> None:
    image, open_ = scene(0), np.full(SIZE, 128, np.uint8)
    assert not cut_from(image, np.zeros(SIZE, bool), open_).any()
    with pytest.raises(InputError, match="draw some background"):
        cut_from(image, np.ones(SIZE, bool), open_)


@pytest.mark.parametrize("upscale", [0, 100, 192])
def test_scribbles_are_sure_at_any_scale(upscale: int) -> None:
    levels = strokes(white=row & ~disc(16) & ~disc(44), black=disc(16))
    found = cut_from(scene(1), disc(16), levels, upscale=upscale)
    assert found[levels == 255].all()
    assert not found[levels == 0].any()


# What a file may not be


def drawing(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 50)) + chunk(b"IEND", b"")
    )


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("L", SIZE[::-1]).save(file, format="JPEG")
    return file.getvalue()


GOOD = {"id": "a.png", "mask": "0" * 16}
HOSTILE: dict[str, Any] = {
    "an id above the stage": [{**GOOD, "id": "../../a.png"}],
    "an absolute id": [{**GOOD, "id": "/etc/passwd"}],
    "an unknown id": [{**GOOD, "id": "b.png"}],
    "an empty id": [{**GOOD, "id": ""}],
    "the same id twice": [GOOD, GOOD],
    "an id that is no text": [{**GOOD, "id": 3}],
    "no list": {"a.png": GOOD},
    "no mask": [{"id": "a.png"}],
    "a mask that is a path": [{**GOOD, "mask": "../../a.png"}],
    "a mask with a line break": [{**GOOD, "mask": "0" * 16 + "\n"}],
    "an unknown decision": [{**GOOD, "decision": "maybe"}],
    "an unknown field": [{**GOOD, "path": "/tmp"}],
    "scribbles that are no data URI": [{**GOOD, "scribbles": "file:///etc/passwd"}],
    "scribbles of another kind": [{**GOOD, "scribbles": "data:image/svg+xml;base64,PHN2Zz4="}],
    "scribbles that are no base64": [{**GOOD, "scribbles": "data:image/png;base64,!!!!"}],
    "scribbles that are no image": [{**GOOD, "scribbles": uri(b"hello")}],
    "scribbles that are a JPEG": [{**GOOD, "scribbles": uri(jpeg())}],
    "scribbles that are empty": [{**GOOD, "scribbles": uri(b"")}],
    "scribbles cut short": [{**GOOD, "scribbles": png(strokes(white=row))[:-40]}],
    "scribbles of another size": [{**GOOD, "scribbles": uri(drawing(30, 30))}],
    "scribbles that are a bomb": [{**GOOD, "scribbles": uri(drawing(30000, 30000))}],
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_not_as_it_should_be_changes_nothing(tmp_path: Path, what: str) -> None:
    stage = make_stage(tmp_path, IDS)
    before = sorted((path, path.read_bytes()) for path in stage.path.rglob("*") if path.is_file())
    decided = [entry(stage, "cat/c.png", decision="rejected")]
    file = write_decisions(stage, images=HOSTILE[what] if isinstance(HOSTILE[what], dict) else decided + HOSTILE[what])
    with pytest.raises(PixelsemError) as raised:
        apply_review(file, stage)
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)
    assert sorted((path, path.read_bytes()) for path in stage.path.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a file of decisions"),
        (b"\x89PNG", "not a file of decisions"),
        (b'{"format": "pixelsem-review-1"}', "missing required field"),
        (b"[" * 100_000, "not a file of decisions"),
        (b'"\xff"', "not a file of decisions"),
        (b'{"format": "pixelsem-review-9", "stage": "x", "images": []}', "pixelsem-review-9"),
        (b'{"format": "pixelsem-review-1", "stage": "x", "images": []}', "another stage"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    stage = make_stage(tmp_path, IDS)
    file = tmp_path / "decisions.json"
    file.write_bytes(content)
    with pytest.raises(PixelsemError, match=said):
        read_review(file, stage)


def test_a_file_that_is_too_large_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(tmp_path, IDS)
    file = write_decisions(stage)
    monkeypatch.setattr(review, "MAX_BYTES", 10)
    with pytest.raises(PixelsemError, match="not a file of decisions"):
        read_review(file, stage)
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(PixelsemError, match="cannot be read"):
            read_review(path, stage)


def test_scribbles_on_labels_are_refused_but_decisions_are_not(tmp_path: Path) -> None:
    labels = np.where(disc(16), 7, 1).astype(np.uint8)
    stage = make_stage(tmp_path, ["a.png"], method="slic", a_png=labels)
    with pytest.raises(PixelsemError, match="holds labels"):
        read_review(write_decisions(stage, entry(stage, "a.png", scribbles=png(strokes(white=row)))), stage)
    apply_review(write_decisions(stage, entry(stage, "a.png", decision="rejected")), stage)
    assert records(stage)["a.png"].flags == [REJECTED]


def test_a_mask_that_changed_meanwhile_is_not_judged(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS)
    old = [entry(stage, name, decision="accepted") for name in IDS]
    apply_review(write_decisions(stage, entry(stage, "a.png", scribbles=png(strokes(white=row)))), stage)
    summary = apply_review(write_decisions(stage, *old), stage)
    assert list(summary.failed) == ["a.png"]
    assert "make a new page" in summary.failed["a.png"]
    assert summary.accepted == IDS[1:]
    assert records(stage)["a.png"].review is None


def test_an_image_that_is_gone_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS)
    (tmp_path / "photos/a.png").unlink()
    write_image(tmp_path / "photos/cat/b.png", scene(1)[:20])
    drawn = png(strokes(black=row & disc(16)))
    summary = apply_review(write_decisions(stage, *(entry(stage, name, scribbles=drawn) for name in IDS)), stage)
    assert sorted(summary.failed) == IDS[:2]
    assert summary.redone == IDS[2:]
    assert "was the image changed" in summary.failed["cat/b.png"]


# Interruptions


def test_applied_again_it_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(tmp_path, IDS, a_png=SMALL)
    drawn = png(strokes(black=row & disc(16)))
    file = write_decisions(
        stage, entry(stage, "a.png", decision="accepted"), entry(stage, "cat/b.png", scribbles=drawn),
        entry(stage, "cat/c.png", scribbles=drawn, decision="rejected"),
    )  # fmt: skip
    first = apply_review(file, stage)
    after = stage.manifest.read_bytes()
    monkeypatch.setattr(Stage, "replace", None)  # not called again
    assert apply_review(file, stage) == first
    assert stage.manifest.read_bytes() == after


def _apply_and_die(file: Path, folder: Path, calls: int) -> None:
    """Apply a file and be killed in the middle of the call number ``calls`` that writes a file."""
    sync, done = os.fsync, []

    def deadly(handle: int) -> None:
        done.append(handle)
        if len(done) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = deadly
    apply_review(file, open_stage(folder), workers=1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_it_is_completed_by_the_next_run(tmp_path: Path) -> None:
    drawn = png(strokes(black=row & disc(16)))

    def asked(stage: Stage) -> Path:
        return write_decisions(
            stage, entry(stage, "a.png", decision="accepted"), entry(stage, "cat/b.png", scribbles=drawn),
            entry(stage, "cat/c.png", scribbles=drawn, decision="rejected"),
        )  # fmt: skip

    whole = make_stage(tmp_path / "whole", IDS, a_png=SMALL)
    apply_review(asked(whole), whole)
    expected = records(whole)
    context = multiprocessing.get_context("fork")
    calls, killed = 0, True
    while killed:
        calls += 1
        stage = make_stage(tmp_path / str(calls), IDS, a_png=SMALL)
        file = asked(stage)
        process = context.Process(target=_apply_and_die, args=(file, stage.path, calls))
        process.start()
        process.join(60)
        killed = process.exitcode == -signal.SIGKILL
        for record in records(stage).values():  # whatever was reached, the manifest and the masks agree
            shown = load_shown(stage, record, tmp_path / str(calls) / "photos" / record.image)
            assert record.coverage == shown.foreground.mean()
        apply_review(file, stage)
        assert records(stage) == expected
        assert all((inside(stage, name) == inside(whole, name)).all() for name in IDS)
    assert calls > 8


# Replacing records


def some_record(name: str, coverage: float = 0.5) -> SegmentRecord:
    return SegmentRecord(name, name, f"masks/{name}", "binary", coverage, [])


def some_stage(path: Path) -> Stage:
    return Stage.create(path / "s", StageInfo("segment", "segment images", "id", {}, {"images": "../imgs"}))


def test_a_record_is_replaced_in_its_place_and_other_lines_stay_as_they_are(tmp_path: Path) -> None:
    stage = some_stage(tmp_path)
    stage.append(some_record("a"), some_record("b"), some_record("c"))
    lines = stage.manifest.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"{", b'{"later": 1,', 1)  # of a newer version
    stage.manifest.write_bytes(b"".join(lines) + b'{"cut')
    stage.replace([(some_record("b"), some_record("b", 0.7))])
    assert list(stage) == [some_record("a"), some_record("b", 0.7), some_record("c")]
    assert stage.manifest.read_bytes().splitlines(keepends=True)[2] == lines[2]
    stage.replace([(some_record("b"), some_record("b", 0.7))])  # already so
    stage.append(some_record("d"))
    assert len(list(stage)) == 4


def test_all_records_are_replaced_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = some_stage(tmp_path)
    stage.append(some_record("a"), some_record("b"))
    before = stage.manifest.read_bytes()
    good = (some_record("a"), some_record("a", 0.1))
    for wrong, said in (
        ((some_record("b", 0.2), some_record("b", 0.3)), "changed meanwhile"),
        ((some_record("x"), some_record("x")), "no record of 'x'"),
        ((some_record("b"), SegmentRecord("b", "b", "../out.png", "binary", 0.5, [])), "leaves"),
    ):
        with pytest.raises(StageError, match=said):
            stage.replace([good, wrong])
        assert stage.manifest.read_bytes() == before

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        stage.replace([good])
    assert stage.manifest.read_bytes() == before
    assert not list(stage.path.glob("*.tmp"))


def test_nothing_appended_meanwhile_is_lost(tmp_path: Path) -> None:
    stage = some_stage(tmp_path)
    stage.append(some_record("a", 0.0))

    def append(worker: int) -> None:
        for number in range(40):
            stage.append(some_record(f"{worker}-{number}"))
            time.sleep(0.001)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(append, worker) for worker in range(3)]
        steps = 0
        while not all(job.done() for job in jobs):
            stage.replace([(some_record("a", steps / 1e6), some_record("a", (steps + 1) / 1e6))])
            steps += 1
        for job in jobs:
            job.result()
    found = {record.id: record for record in stage.segment_records()}
    assert len(found) == 121
    assert found["a"].coverage == steps / 1e6
    assert steps > 1


# What the page is made from


def test_revision_tells_every_state_of_a_stage_apart(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS)
    seen = {revision(stage)}
    assert revision(open_stage(stage.path)) in seen
    for asked in ({"decision": "accepted"}, {"decision": "rejected"}, {"scribbles": png(strokes(white=row))}):
        apply_review(write_decisions(stage, entry(stage, "a.png", **asked)), stage)
        seen.add(revision(stage))
    assert len(seen) == 4
    assert mask_digest(stage, records(stage)["a.png"]) != mask_digest(stage, records(stage)["cat/b.png"])


def test_scribbles_come_from_memory_as_from_a_file(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
    write_image(tmp_path / "s.png", levels)
    assert (decode_hints((tmp_path / "s.png").read_bytes(), "s", SIZE) == read_hints(tmp_path / "s.png")).all()


def test_images_are_encoded_for_the_page(tmp_path: Path) -> None:
    image = scene(3)
    (tmp_path / "i.png").write_bytes(encode_image(image))
    assert (read_image(tmp_path / "i.png") == image).all()
    (tmp_path / "i.webp").write_bytes(encode_image(np.full((40, 60, 3), 90, np.uint8), "webp"))
    assert np.abs(read_image(tmp_path / "i.webp").astype(int) - 90).max() <= 2


def test_text_has_its_height_and_ink() -> None:
    one, two = text_pixels("il", 16), text_pixels("MMMM", 16)
    assert one.shape[0] == two.shape[0] == 16
    assert two.shape[1] > 2 * one.shape[1]
    assert two.max() == 255
    assert not text_pixels(" ", 16).any()


def test_the_copy_of_the_decisions_repeats_them(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, IDS)
    file = write_decisions(stage, entry(stage, "a.png", scribbles=png(strokes(black=row & disc(16)))))
    apply_review(file, stage)
    (copy,) = stage.path.glob("reviews/*/decisions.json")
    assert json.loads(copy.read_text()) == json.loads(file.read_text())
    again = make_stage(tmp_path / "again", IDS)
    apply_review(copy, again)
    assert (inside(again, "a.png") == inside(stage, "a.png")).all()
