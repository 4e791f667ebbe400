from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from attack_stages import info, write_stage
from detection_stages import make_stage, noisy, smooth_image
from typer.testing import CliRunner, Result

from pixelsem.cli import defend, evaluate
from pixelsem.cli.defend_detect import detection_records
from pixelsem.cli.groups import RootGroup
from pixelsem.defenses.detector import Detector, save_detector
from pixelsem.defenses.features import FeatureType
from pixelsem.defenses.fld import Ensemble
from pixelsem.images import write_image
from pixelsem.stage import Stage

QUICK = ("--learners", 11, "--subspace", 40)

REGIONS = ("original", "foreground", "background")


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False)
    defend.register(app)
    evaluate.register(app)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input="")

    return run


def train(call, stage: Path, *options: object) -> dict:
    done = call("defend", "detect", "train", stage, "--json", *QUICK, *options)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def table(folder: Path, name: str = "detection") -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def test_a_detector_is_trained_tested_used_and_put_in_a_table(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 24, failures=3, delta=4.0)
    summary = train(call, stage, "-o", "trained")
    assert summary["counts"] == {"images": 48, "clean": 24, "adversarial": 24, "trained_on": 24, "failed": 0}
    assert (summary["test_images"], summary["detected"], summary["false_alarms"]) == (12, 1.0, 0.0)
    made = Stage.open(tmp_path / "trained")
    assert made.info.kind == "train-detector"
    assert made.resolve(detection_records(made)[0].image, "images").is_file()

    done = call("evaluate", "detection", "trained", "-o", "out")
    assert done.exit_code == 0, done.stderr
    (line,) = table(tmp_path / "out")
    assert (line["attack"], line["delta"], line["trained_on"], line["images"]) == ("de", 4.0, None, 12)
    assert (line["detected"]["count"], line["false_alarms"]["count"], line["area"]) == (12, 0, 1.0)
    (paper,) = table(tmp_path / "out", "table2")
    assert paper["delta_4"]["rate"] == 1.0
    assert (tmp_path / "out" / "roc.png").is_file()
    beside = call("evaluate", "detection", tmp_path / "trained", "--format", "none", "-q").stdout.strip()
    assert Path(beside).parent == tmp_path


def test_images_that_were_trained_on_count_nowhere(call, tmp_path):
    train(call, make_stage(tmp_path / "stage", 24), "-o", "trained")
    make_stage(tmp_path / "weaker", 30, strength=1, population=7)
    done = call("defend", "detect", "score", "weaker", "--detector", "trained", "-o", "scored", "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["counts"]["trained_on"] == 24
    assert summary["test_images"] == 18
    assert "24 images were trained on, or made of such; the rates are without them" in done.stderr
    done = call("evaluate", "detection", "trained", "scored", "-o", "out", "--format", "none")
    assert done.exit_code == 0, done.stderr
    own, other = table(tmp_path / "out")
    assert (own["variant"], own["trained_on"], own["images"]) == ("population=400", None, 12)
    assert (other["variant"], other["trained_on"], other["images"]) == ("population=7", "de", 18)
    assert other["detected"]["rate"] < own["detected"]["rate"] or other["area"] < own["area"]
    assert not list((tmp_path / "out").glob("roc*"))


def test_the_same_attack_on_other_photos_is_the_detectors_own(call, tmp_path):
    train(call, make_stage(tmp_path / "stage", 16), "-o", "trained")
    make_stage(tmp_path / "fresh", 8, first=100)
    assert call("defend", "detect", "score", "fresh", "--detector", "trained", "-o", "scored").exit_code == 0
    assert call("evaluate", "detection", "scored", "-o", "out", "--format", "none").exit_code == 0
    (line,) = table(tmp_path / "out")
    assert (line["trained_on"], line["images"]) == (None, 8)


def test_images_of_no_attack_are_scored_without_a_truth(call, tmp_path):
    train(call, make_stage(tmp_path / "stage", 24), "-o", "trained")
    for number in range(4):
        write_image(tmp_path / "photos" / f"{number}.png", smooth_image(200 + number))
        write_image(tmp_path / "photos" / f"noisy{number}.png", noisy(smooth_image(300 + number), number, 6))
    done = call("defend", "detect", "score", "photos", "--detector", "trained/detector.safetensors", "-o", "scored")
    assert done.exit_code == 0, done.stderr
    assert "4 of 8 images called adversarial" in done.stderr
    records = detection_records(Stage.open(tmp_path / "scored"))
    assert {record.id for record in records if record.detected} == {f"noisy{number}.png" for number in range(4)}
    assert call("evaluate", "detection", "scored", "-o", "out").exit_code == 0
    (line,) = table(tmp_path / "out", "flagged")
    assert (line["input"], line["flagged"]["count"], line["flagged"]["n"]) == ("scored", 4, 8)


def test_a_finished_training_is_not_done_again_and_an_interrupted_scoring_goes_on(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 16)
    train(call, stage, "-o", "trained")
    file = tmp_path / "trained" / "detector.safetensors"
    before, written = file.read_bytes(), file.stat().st_mtime_ns
    done = call("defend", "detect", "train", stage, "-o", "trained", *QUICK)
    assert "trained before" in done.stderr
    assert file.stat().st_mtime_ns == written
    (tmp_path / "trained" / "manifest.jsonl").write_text("")
    train(call, stage, "-o", "trained", "--overwrite")
    assert file.read_bytes() == before

    make_stage(tmp_path / "other", 5, strength=2)
    score = ("defend", "detect", "score", "other", "--detector", "trained", "-o", "scored")
    assert call(*score).exit_code == 0
    manifest = tmp_path / "scored" / "manifest.jsonl"
    whole = manifest.read_text()
    manifest.write_text("".join(whole.splitlines(keepends=True)[:5]))
    assert call(*score).exit_code == 0
    assert manifest.read_text() == whole


def test_failures_are_trained_on_where_they_are_wanted(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 10, failures=5)
    assert train(call, stage, "-o", "hits")["counts"]["adversarial"] == 10
    assert train(call, stage, "-o", "all", "--attempts")["counts"]["adversarial"] == 14
    done = call("evaluate", "detection", "hits", "all", "-o", "out", "--format", "none")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("images that did not fool the model") == 1
    assert "all: with images that did not fool the model" in done.stderr


def test_several_detectors_of_one_attack_have_a_row_each(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 16, strength=1, delta=4.0)
    for seed in (0, 1):
        train(call, stage, "-o", f"seed{seed}", "--seed", seed)
    assert call("defend", "detect", "score", stage, "--detector", "seed1", "-o", "scored").exit_code == 0

    def rows_of(*stages: str) -> list[tuple[str, int, int]]:
        done = call("evaluate", "detection", *stages, "-o", "-".join(stages), "--format", "none")
        assert done.exit_code == 0, done.stderr
        long, short = (table(tmp_path / "-".join(stages), name) for name in ("detection", "table2"))
        both = [
            [(line.get("detector"), line[rate]["count"], line[rate]["n"]) for line in lines]
            for lines, rate in ((long, "detected"), (short, "delta_4"))
        ]
        assert both[0] == both[1]  # no row of Table 2 is missing
        return both[0]

    (first,), (second,), (scored,) = (rows_of(name) for name in ("seed0", "seed1", "scored"))
    assert rows_of("seed0", "seed1") == [("seed=0", *first[1:]), ("seed=1", *second[1:])]
    assert rows_of("seed1", "scored") == [("held out", *second[1:]), ("scored", *scored[1:])]
    assert rows_of("seed0", "scored") == [("seed0", *first[1:]), ("scored", *scored[1:])]
    done = call("evaluate", "detection", "seed0", "seed1", "-o", "drawn", "--format", "svg")
    assert done.exit_code == 0, done.stderr


def test_a_stage_that_lost_what_its_attack_was_is_refused(call, tmp_path):
    train(call, make_stage(tmp_path / "stage", 16), "-o", "trained")
    train(call, tmp_path / "stage", "-o", "whole", "--seed", 1)
    (tmp_path / "trained" / "attack.yaml").unlink()
    done = call("evaluate", "detection", "trained", "whole", "-o", "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("pixelsem: trained/attack.yaml: is missing")
    assert not (tmp_path / "out").exists()
    train(call, tmp_path / "stage", "-o", "trained")
    assert call("evaluate", "detection", "trained", "whole", "-o", "out", "--format", "none").exit_code == 0


@pytest.mark.parametrize("value", ["x", "[1]", ".inf", "true", "1" + "0" * 400])
def test_a_damaged_budget_is_one_line(call, tmp_path, value):
    train(call, make_stage(tmp_path / "stage", 16, delta=4.0), "-o", "trained")
    file = tmp_path / "trained" / "attack.yaml"
    file.write_text(file.read_text().replace("delta: 4.0", f"delta: {value}"))
    done = call("evaluate", "detection", "trained", "-o", "out")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pixelsem: trained/attack.yaml: `options: delta` is no number (")
    assert line.endswith("; correct it there")
    assert not (tmp_path / "out").exists()


def test_some_of_the_images_are_enough(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 20)
    assert train(call, stage, "-o", "some", "--sample", 10)["counts"]["images"] == 20
    assert train(call, stage, "-o", "all")["counts"]["images"] == 40


def test_scores_of_an_earlier_training_are_replaced(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 16)
    train(call, stage, "-o", "trained")
    manifest, file = tmp_path / "trained" / "manifest.jsonl", tmp_path / "trained" / "detector.safetensors"
    whole = manifest.read_text()
    lines = [json.loads(line) | {"score": 0.125} for line in whole.splitlines()]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines[:20]))
    file.unlink()
    train(call, stage, "-o", "trained")
    assert [json.loads(line) for line in manifest.read_text().splitlines()] == [
        json.loads(line) for line in whole.splitlines()
    ]


def test_a_region_is_trained_on_alone(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 12, region="foreground")
    summary = train(call, stage, "-o", "trained", "--region", "foreground")
    assert summary["counts"]["adversarial"] == 12
    done = call("defend", "detect", "train", stage, "--region", "background")
    assert done.exit_code == 2
    assert "holds no adversarial images of region 'background' (it has foreground)" in done.stderr


def in_all_regions(path: Path) -> Path:
    """Write a stage of ``--region all``: 16 images attacked in each of the regions."""
    parts = [make_stage(path.with_name(f"{path.name}-{region}"), 16, region=region) for region in REGIONS]
    write_stage(path, info("all", delta=4.0), *(record for part in parts for record in Stage.open(part).records()))
    for part in parts:
        for folder in ("clean", "images"):
            shutil.copytree(part / folder, path / folder, dirs_exist_ok=True)
    return path


def test_a_detector_of_one_region_is_no_others_own(call, tmp_path):
    attacked = in_all_regions(tmp_path / "all")
    for typed in (("of-foreground", "--region", "foreground"), ("of-all",)):
        train(call, attacked, "-o", *typed)
        scored = call("defend", "detect", "score", attacked, "--detector", typed[0], "-o", f"by-{typed[0]}")
        assert scored.exit_code == 0, scored.stderr

    def trained_on(stage: str) -> dict[str, str | None]:
        done = call("evaluate", "detection", stage, "-o", f"table-{stage}", "--format", "none")
        assert done.exit_code == 0, done.stderr
        return {line["region"]: line["trained_on"] for line in table(tmp_path / f"table-{stage}")}

    other = "de, δ=4, foreground"
    assert trained_on("of-foreground") == {"foreground": None}
    assert trained_on("by-of-foreground") == {"original": other, "foreground": None, "background": other}
    assert [line["region"] for line in table(tmp_path / "table-by-of-foreground", "table2")] == ["foreground"]
    assert trained_on("by-of-all") == dict.fromkeys(REGIONS)
    # The same searches, run alone, are the detector's own; those of another region are not.
    for region, expected in (("foreground", None), ("background", other)):
        make_stage(tmp_path / f"alone-{region}", 4, first=90, region=region, delta=4.0)
        typed = ("--detector", "of-foreground", "-o", f"scored-{region}")
        assert call("defend", "detect", "score", f"alone-{region}", *typed).exit_code == 0
        assert trained_on(f"scored-{region}") == {region: expected}


def test_a_broken_image_is_named_and_the_rest_is_used(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 16)
    broken = stage / "images" / "original" / "cat" / "2.png"
    broken.write_bytes(b"")
    done = call("defend", "detect", "train", stage, "-o", "trained", *QUICK)
    assert done.exit_code == 1
    assert f"{broken}: an empty file" in done.stderr
    assert (tmp_path / "trained" / "detector.safetensors").is_file()


@pytest.mark.parametrize("names", [{"adversarial": ""}, {"adversarial": "images"}, {"clean": "."}])
def test_a_damaged_name_is_named_and_the_rest_is_used(call, tmp_path, names):
    stage = make_stage(tmp_path / "stage", 16)
    first, *rest = (stage / "manifest.jsonl").read_text().splitlines(keepends=True)
    (stage / "manifest.jsonl").write_text("".join([json.dumps(json.loads(first) | names) + "\n", *rest]))
    done = call("defend", "detect", "train", stage, "-o", "trained", "-q", *QUICK)
    assert done.exit_code == 1
    (name,) = names.values()
    assert done.stderr.splitlines() == [f"pixelsem: {stage / name}: a folder, not an image"]
    assert sum(r.kind == "adversarial" for r in detection_records(Stage.open(tmp_path / "trained"))) >= 15


def test_where_too_few_are_left_what_could_not_be_read_is_named_first(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 8)
    broken = sorted((stage / "clean").rglob("*.png"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    done = call("defend", "detect", "train", stage, "-o", "trained", "-q", *QUICK)
    assert done.exit_code == 2
    *lines, last = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [str(path) for path in broken]
    assert "0 images with an adversarial version leave 0 to train on" in last
    done = call("evaluate", "detection", "trained")
    assert (done.exit_code, done.stderr) == (2, "pixelsem: trained: holds no scores: its command was not finished\n")
    assert not (tmp_path / "trained" / "detector.safetensors").exists()


@pytest.mark.parametrize("value", ["x", "", ".nan.", [4], {"of": 4}, pytest.param(10**400, id="huge")])
def test_a_budget_that_is_no_number_is_one_line(call, tmp_path, value):
    stage = make_stage(tmp_path / "stage", 4, delta=value)
    done = call("defend", "detect", "train", stage, "-o", "trained")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pixelsem: {stage / 'stage.yaml'}: `options: delta` is no number (")
    assert line.endswith("); correct it there")
    assert not (tmp_path / "trained").exists()


def test_adversarial_images_alone_that_were_trained_on_count_nowhere(call, tmp_path):
    stage = make_stage(tmp_path / "stage", 24)
    done = call("defend", "detect", "train", stage, "-o", "trained", *QUICK)
    assert "trained on 12 images" in done.stderr
    done = call("defend", "detect", "score", stage / "images", "--detector", "trained", "-o", "scored")
    assert done.exit_code == 0, done.stderr
    assert "12 images were trained on, or made of such; the rates are without them" in done.stderr
    assert "12 of 12 images called adversarial" in done.stderr
    learnt = {r.image for r in detection_records(Stage.open(tmp_path / "trained")) if r.split == "train"}
    records = detection_records(Stage.open(tmp_path / "scored"))
    assert {f"images/{r.image}" for r in records if r.split == "train"} == {
        name for name in learnt if name.startswith("images/")
    }
    assert call("evaluate", "detection", "scored", "-o", "out").exit_code == 0
    (line,) = table(tmp_path / "out", "flagged")
    assert (line["flagged"]["count"], line["flagged"]["n"]) == (12, 12)


def test_images_too_small_for_rich_models_get_no_score(call, tmp_path):
    """They have no features: such an image is neither clean nor adversarial."""
    pytest.importorskip("sealwatch")
    small = tmp_path / "photos" / "small.png"
    write_image(small, smooth_image(0)[:7])
    ensemble = Ensemble(12753, np.zeros((1, 1), int), np.ones((1, 1)), np.zeros(1), 0.1)
    type = FeatureType("srmq1", "luma")
    save_detector(Detector(ensemble, type, type.version, "i-fgm", "abc"), tmp_path / "detector.safetensors")
    done = call("defend", "detect", "score", "photos", "--detector", "detector.safetensors", "-o", "scored", "-q")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("photos/small.png: 24×7 is too small for srmq1; 8×8 pixels are needed")
    assert detection_records(Stage.open(tmp_path / "scored")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("defend", "detect", "train", "photos"), "is no attack stage; a detector learns from clean and adversarial"),
        (("defend", "detect", "train", "few"), "attack more images"),
        (("defend", "detect", "train", "few", "few"), "2 inputs given"),
        (("defend", "detect", "score", "few", "--detector", "none.safetensors"), "no such detector"),
        (("defend", "detect", "score", "few", "--detector", "photos/0.png"), "not a detector"),
        (("evaluate", "detection", "few"), "first run `pixelsem defend detect train` on it"),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, arguments, says):
    make_stage(tmp_path / "few", 4)
    write_image(tmp_path / "photos" / "0.png", smooth_image(0))
    done = call(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_without_sealwatch_one_line_says_so(call, tmp_path, monkeypatch):
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    done = call("defend", "detect", "train", make_stage(tmp_path / "stage", 4), "--features", "srm")
    assert done.exit_code == 2
    assert "pip install 'pixelsem[steganalysis]'" in done.stderr


@pytest.mark.slow
def test_rich_models_go_through(call, tmp_path):
    pytest.importorskip("sealwatch")
    stage = make_stage(tmp_path / "stage", 12)
    summary = train(call, stage, "--features", "srmq1", "--workers", 2, "-o", "trained")
    assert summary["area"] == pytest.approx(1.0)
