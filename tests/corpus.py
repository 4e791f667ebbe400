"""Broken and hostile inputs, each with the command it fits and how that must end.

A case makes its files in an empty folder and names a command. What it breaks is one input among good ones, so that
it can be told whether the rest of the run is intact.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

SIDE = 24

#: What a user might write: which colour is the brightest? Functions beside ``make`` return models that misbehave.
MODEL = """
import torch
from torch import nn

from pixelsem.models import Classifier, Preprocessing

NAMES = ("red", "green", "blue")


class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((1, 3, 1, 1), 20.0))

    def forward(self, x):
        return (x * self.sharpness).amax((2, 3))


def classifier(network, names=NAMES):
    return Classifier(network, name="own", class_names=names, preprocessing=Preprocessing((24, 24), 24))


def make():
    return classifier(Brightest())


def chatty():
    class Chatty(Brightest):
        def forward(self, x):
            print("scoring", len(x))
            return super().forward(x)

    print("hello from the user's file")
    return classifier(Chatty())


class Changed(Brightest):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x), x)


def nan():
    return classifier(Changed(lambda logits, x: logits * float("nan")))


def nan_on_colours():
    # Black and grey images, which are tried first, have numbers.
    return classifier(Changed(lambda logits, x: logits / (x.std(1).amax((1, 2)) < 0.1)[:, None]  * 0.0))


def too_few():
    return classifier(Changed(lambda logits, x: logits[:, :2]))


def none_at_all():
    return classifier(Changed(lambda logits, x: logits[:, :0]))


def maps():
    return classifier(Changed(lambda logits, x: x))


def integers():
    return classifier(Changed(lambda logits, x: logits.long()))


def doubles():
    return classifier(Changed(lambda logits, x: logits.double()))


def mapping():
    return classifier(Changed(lambda logits, x: {"logits": logits}))


def raises():
    def change(logits, x):
        raise ValueError("no weights on the\\nfloor")

    return classifier(Changed(change))


def raises_later():
    # Only where a batch has colours: the images, not the black and grey ones that are tried first.
    def change(logits, x):
        if x.std(1).amax() > 0.1:
            raise KeyError("layer4")
        return logits

    return classifier(Changed(change))


def leaves():
    raise SystemExit("bye")


def leaves_later():
    def change(logits, x):
        raise SystemExit("bye")

    return classifier(Changed(change))


def text():
    return "a model"
"""

#: An attack with that model at a tiny budget, with nothing on stderr but problems.
ATTACK = ("attack", "de", "--population", "6", "--generations", "2", "--evaluator", "dense", "--batch-size", "16")
OWN = (*ATTACK, "-q", "-m", "model.py:make")


@dataclass(frozen=True)
class Case:
    """One broken or hostile input.

    ``make`` writes the files into the folder that it is given; ``words`` is the command, run in that folder. It must
    end with ``code`` and one line on stderr that ``says`` matches (a regular expression; empty: nothing on stderr).
    ``done`` are the ids that the records of the stage must hold, None where no stage may come of it.
    """

    name: str
    make: Callable[[Path], None]
    words: tuple[str, ...]
    code: int
    says: str
    done: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.name


def scene(seed: int = 0) -> NDArray[np.uint8]:
    """Return a red disc on green with some noise, [24, 24, 3]; the brightest value is one pixel's red."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    disc = (columns - 12) ** 2 + (rows - 11) ** 2 < 49
    noise = np.random.default_rng(seed).normal(0, 8, (SIDE, SIDE, 3))
    pixels = np.clip(np.where(disc[..., None], (190, 40, 60), (50, 150, 40)) + noise, 0, 230).astype(np.uint8)
    pixels[11, 12, 0] = 252
    return pixels


def encoded(pixels: NDArray[Any] | None = None, format: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """Return an image as a file's bytes."""
    image = Image.fromarray(scene() if pixels is None else pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, format=format, **options)
    return file.getvalue()


def put(path: Path, data: bytes | str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def good(folder: Path) -> None:
    """Write the user's model and one good photo."""
    put(folder / "model.py", MODEL)
    put(folder / "photos/good.png", encoded())


# Images


def image_cases() -> Iterator[Case]:
    """Yield images beside a good one; most cost themselves, some are only unusual, some names stop the run."""
    for name, data, says in _broken_images():
        yield _image(name, lambda folder, n=name, d=data: put(folder / "photos" / n, d), says)  # type: ignore[misc]
    for name, make, says in _no_files():
        yield _image(name, make, says)
    for name, data in _unusual_images():
        yield _unusual(name, lambda folder, n=name, d=data: put(folder / "photos" / n, d), name)  # type: ignore[misc]
    for name in _unusual_names():
        yield _unusual(name, lambda folder, n=name: put(folder / "photos" / n, encoded(scene(1))), name)  # type: ignore[misc]
    yield _unusual("directory.png holding an image", lambda f: put(f / "photos/d.png/x.png", encoded()), "d.png/x.png")
    yield _unusual("directory.png holding nothing", lambda f: (f / "photos/d.png").mkdir())
    yield _unusual("link to a folder.png", lambda f: os.symlink("/", f / "photos/root.png"))
    yield _unusual("links in a circle between folders", lambda f: os.symlink(f / "photos", f / "photos/again"))
    yield Case(
        "no UTF-8 name", lambda f: (good(f), put(Path(os.fsdecode(bytes(f) + b"/photos/\xff\xfe.png")), encoded()))[0],
        (*OWN, "photos"), 2, r"its name is no Unicode text; rename it",
    )  # fmt: skip
    yield Case(
        "backslash in a name", lambda f: (good(f), put(f / "photos/a\\..\\x.png", encoded()))[0],
        (*OWN, "photos"), 2, r"its name has a backslash or NUL in it; rename it",
    )  # fmt: skip
    yield Case(
        "leading dash as argument", lambda f: (good(f), put(f / "-rf.png", encoded()))[0],
        (*OWN, "--", "-rf.png"), 0, "", ("-rf.png",),
    )  # fmt: skip
    yield Case("path too long", good, (*OWN, "x" * 5000), 2, r"File name too long")
    # A name that fits by itself, and does not with the suffix that tells it from its namesake.
    stem = "l" * 251
    yield Case(
        "too long with its suffix",
        lambda f: (good(f), [put(f / f"photos/{stem}{suffix}", encoded()) for suffix in (".png", ".jpg")])[0],
        (*OWN, "photos"), 1, r"l{251}\.jpg.*File name too long", ("good.png",),
    )  # fmt: skip
    yield Case(
        "segment passes over what is damaged", lambda f: (good(f), put(f / "photos/cut.png", encoded()[:300]))[0],
        ("segment", "--method", "slic", "--size", "6", "-q", "photos"), 1, r"photos/cut\.png: damaged", ("good.png",),
    )  # fmt: skip
    yield Case(
        "defend passes over what is damaged", lambda f: (good(f), put(f / "photos/cut.png", encoded()[:300]))[0],
        ("defend", "jpeg", "-q", "photos"), 1, r"photos/cut\.png: damaged", ("good.png",),
    )  # fmt: skip


def _image(name: str, make: Callable[[Path], None], says: str) -> Case:
    return Case(f"image: {name}", lambda f: (good(f), make(f))[0], (*OWN, "photos"), 1, says, ("good.png",))


def _unusual(name: str, make: Callable[[Path], None], *ids: str) -> Case:
    # Whatever the model thinks of it, it is read and has its record.
    return Case(f"unusual: {name!a}", lambda f: (good(f), make(f))[0], (*OWN, "photos"), 0, "", ("good.png", *ids))


def _broken_images() -> Iterator[tuple[str, bytes, str]]:
    png, jpeg = encoded(), encoded(format="JPEG")
    yield "empty.png", b"", r"photos/empty\.png: an empty file"
    yield "cut.png", png[: len(png) // 2], r"photos/cut\.png: damaged or truncated"
    yield "cut.jpg", jpeg[: len(jpeg) // 2], r"photos/cut\.jpg: damaged or truncated"
    yield "cut.webp", encoded(format="WEBP")[:200], r"photos/cut\.webp: (damaged|not an image)"
    yield "cut.gif", encoded(format="GIF")[:-60], r"photos/cut\.gif: damaged or truncated"
    yield "cut.tif", encoded(format="TIFF")[:500], r"photos/cut\.tif: (damaged|not an image)"
    yield "text.png", b"this is no image", r"photos/text\.png: not an image"
    yield "page.jpg", b"<html><body>404</body></html>", r"photos/page\.jpg: not an image"
    yield "vector.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"photos/vector\.png: not an image"
    yield "program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n", r"photos/program\.png: not an image"
    yield "flipped.png", png[:60] + bytes(255 - b for b in png[60:120]) + png[120:], r"photos/flipped\.png: damaged"
    yield "bomb.png", bomb(60_000, 60_000), r"photos/bomb\.png: .*over 100,000,000 pixels; refused"
    yield "bomb.ppm", b"P6 99999999 99999999 255\n", r"photos/bomb\.ppm: .*over 100,000,000 pixels; refused"
    yield "text-bomb.png", text_bomb(), r"photos/text-bomb\.png: damaged or truncated"
    yield "zero.gif", b"GIF89a" + bytes(7) + b";", r"photos/zero\.gif: (damaged|not an image)"
    yield "endless.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", r"photos/endless\.tif: (damaged|not an image)"
    frames = [Image.fromarray(scene(seed)) for seed in range(3)]
    for format, suffix in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif")):
        data = encoded(format=format, save_all=True, append_images=frames)
        yield f"frames.{suffix}", data, rf"photos/frames\.{suffix}: has several frames"
    floats = io.BytesIO()
    Image.fromarray(np.ones((24, 24), np.float32)).save(floats, "TIFF")
    yield "floats.tif", floats.getvalue(), r"photos/floats\.tif: pixels of kind 'F'"


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """Return a PNG whose comment is small as packed and 8 MB as unpacked."""
    png = encoded()
    comment = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8 << 20), 1))
    return png[:33] + comment + png[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _no_files() -> Iterator[tuple[str, Callable[[Path], None], str]]:
    yield "loop.png", lambda f: os.symlink("loop.png", f / "photos/loop.png"), r"photos/loop\.png: .*symbolic links"
    yield "gone.png", lambda f: os.symlink("nowhere.png", f / "photos/gone.png"), r"photos/gone\.png: no such file"
    yield "pipe.png", lambda f: os.mkfifo(f / "photos/pipe.png"), r"photos/pipe\.png: not a regular file"


def _unusual_images() -> Iterator[tuple[str, bytes]]:
    wide = np.zeros((1, 30_000, 3), np.uint8)
    yield "dot.png", encoded(scene()[:1, :1])
    yield "line.png", encoded(wide)
    yield "column.png", encoded(wide.transpose(1, 0, 2).copy())
    yield "deep.png", encoded(scene()[..., 0].astype(np.uint16) * 257)
    yield "cmyk.jpg", encoded(format="JPEG", mode="CMYK")
    yield "grey-alpha.png", encoded(mode="LA")
    yield "bits.png", encoded(mode="1")
    yield "jpeg-inside.png", encoded(format="JPEG")
    yield "one-frame.gif", encoded(format="GIF")
    palette = Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes(range(256)))
    yield "palette-transparent.png", file.getvalue()
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        yield f"turned-{number}.jpg", encoded(scene()[:, :20].copy(), format="JPEG", exif=exif)
    yield "broken-exif.jpg", encoded(format="JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    yield "broken-profile.png", encoded(icc_profile=b"no profile")


def _unusual_names() -> list[str]:
    composed = unicodedata.normalize("NFC", "été.png")
    return [
        "a b  c.png", "line\nbreak.png", "tab\t\x1b[31mred.png", composed, unicodedata.normalize("NFD", composed),
        "-rf.png", "--limit=1.png", "日本語.png", "#%?&*;$(touch x)`'\".png", "a..png", "n" * 251 + ".png", "UPPER.PNG",
        "CON.png", "a.tar.png", " .png",
    ]  # fmt: skip


# Masks, labels, patches


def side_cases() -> Iterator[Case]:
    """Yield files that stand beside the images."""
    grey = scene()[..., 0]
    masks: list[tuple[str, bytes, int, str]] = [
        ("of another size", encoded(grey[:10].copy()), 1, r"masks/good\.png: is 24×10, its image 24×24"),
        ("cut", encoded(grey)[:60], 1, r"masks/good\.png: damaged"),
        ("empty", b"", 1, r"masks/good\.png: an empty file"),
        ("in colours", encoded(), 1, r"masks/good\.png: "),
        ("all 0", encoded(np.zeros_like(grey)), 0, ""),
        ("16-bit labels", encoded(np.full((24, 24), 300, np.uint16)), 0, ""),
    ]
    for name, data, code, says in masks:
        ids = ("good.png",) if code == 0 else ()
        yield Case(
            f"mask: {name}", lambda f, d=data: (good(f), put(f / "masks/good.png", d))[0],  # type: ignore[misc]
            (*OWN, "--region", "foreground", "--masks", "masks", "photos"), code, says, ids,
        )  # fmt: skip
    floats = io.BytesIO()
    Image.fromarray(np.ones((24, 24), np.float32)).save(floats, "TIFF")
    yield Case(
        "mask: floats", lambda f: (good(f), put(f / "masks/good.tif", floats.getvalue()))[0],
        (*OWN, "--region", "foreground", "--masks", "masks", "photos"), 1, r"masks/good\.tif: ", (),
    )  # fmt: skip
    yield Case(
        "mask: of another image", lambda f: (good(f), put(f / "masks/other.png", encoded(grey)))[0],
        (*OWN, "--region", "foreground", "--masks", "masks", "photos"), 1, r"good\.png: has no mask in masks", (),
    )  # fmt: skip
    yield from _label_cases()
    patches: list[tuple[str, bytes, str]] = [
        ("cut", encoded()[:300], r"--patch: patch\.png: damaged"),
        ("too large", encoded(np.zeros((40, 40, 3), np.uint8)), r"patch\.png: 40×40, larger than the model's input"),
        ("transparent", encoded(np.zeros((4, 4, 4), np.uint8)), r"patch\.png: transparent throughout"),
        ("text", b"no patch", r"--patch: patch\.png: not an image"),
        ("empty", b"", r"--patch: patch\.png: an empty file"),
    ]
    for name, data, says in patches:
        yield Case(
            f"patch: {name}", lambda f, d=data: (good(f), put(f / "patch.png", d))[0],  # type: ignore[misc]
            ("attack", "adv-patch", "-q", "-m", "model.py:make", "--patch", "patch.png", "photos"), 2, says,
        )  # fmt: skip
    for number in ("²", "9" * 5000, "-1", "", "1.5"):
        shown = number[:5] if len(number) > 9 else number
        yield Case(f"target: {shown!a}", good, (*OWN, "--target", number, "photos"), 2, r"--target: .* is none of")
    yield Case("region: label:²", good, (*OWN, "--region", "label:²", "photos"), 2, r"--region: .* is none of")
    yield Case(
        "region: label with 5,000 digits", lambda f: (good(f), put(f / "masks/good.png", encoded(grey)))[0],
        (*OWN, "--region", "label:" + "9" * 5000, "--masks", "masks", "photos"), 2, r"--region: .*",
    )  # fmt: skip


def _label_cases() -> Iterator[Case]:
    tables: list[tuple[str, bytes, str]] = [
        ("three columns", b"id,class\ngood.png,red,9\n", r"labels\.csv, line 2: two columns expected"),
        ("an unknown class", b"good.png,purple\n", r"labels\.csv, line 1: 'purple' is none of the model's 3 classes"),
        ("a superscript", "good.png,²\n".encode(), r"labels\.csv, line 1: '²' is none of"),
        ("5,000 digits", b"good.png," + b"9" * 5000 + b"\n", r"labels\.csv, line 1: .* is none of"),
        ("bytes", bytes(range(256)), r"labels\.csv cannot be read"),
        ("UTF-16", "good.png,red\n".encode("utf-16"), r"labels\.csv cannot be read"),
        ("a huge field", b'good.png,"' + b"x" * 200_000, r"labels\.csv cannot be read"),
        ("nothing", b"", r"labels\.csv: holds no labels"),
        ("a heading only", b"id,class\n", r"labels\.csv: holds no labels"),
        ("an image twice", b"good.png,red\ngood.png,blue\n", r"labels\.csv, line 2: 'good\.png' .* twice"),
    ]
    for name, data, says in tables:
        yield Case(
            f"labels: {name}", lambda f, d=data: (good(f), put(f / "labels.csv", d))[0],  # type: ignore[misc]
            (*OWN, "--labels", "labels.csv", "photos"), 2, says,
        )  # fmt: skip
    yield Case("labels: no file", good, (*OWN, "--labels", "gone.csv", "photos"), 2, r"gone\.csv cannot be read")
    yield Case("labels: a folder", good, (*OWN, "--labels", "photos", "photos"), 2, r"photos cannot be read")
    yield Case(
        "labels: with BOM and CRLF",
        lambda f: (good(f), put(f / "l.csv", b"\xef\xbb\xbfid,class\r\ngood.png,red\r\n"))[0],
        (*OWN, "--labels", "l.csv", "photos"), 0, "", ("good.png",),
    )  # fmt: skip


# Manifests and stage.yaml, of an attack stage named ``stage``

Damage = Callable[[list[bytes]], bytes]


def stage_cases(stage: Path) -> Iterator[Case]:
    """Yield damaged copies of the attack stage ``stage``, which `evaluate` reads."""
    for name, damage, says in _damaged_manifests():
        yield _damaged(stage, f"manifest: {name}", lambda f, d=damage: _rewrite(f / "stage/manifest.jsonl", d), says)  # type: ignore[misc]
    for name, make in _replaced("manifest.jsonl"):
        yield _damaged(stage, f"manifest: {name}", make, r"stage/manifest\.jsonl: ")
    for name, text, says in _hostile_yaml(r"stage/stage\.yaml"):
        yield _damaged(stage, f"stage.yaml: {name}", lambda f, t=text: put(f / "stage/stage.yaml", t), says)  # type: ignore[misc]
    for name, change, says in _changed_infos():
        yield _damaged(stage, f"stage.yaml: {name}", lambda f, c=change: _change_info(f / "stage/stage.yaml", c), says)  # type: ignore[misc]
    yield _fine(stage, "manifest: CRLF", lambda lines: b"".join(lines).replace(b"\n", b"\r\n"))
    yield _fine(stage, "manifest: a last line that was cut", lambda lines: b"".join(lines) + lines[0][:50])
    yield _fine(stage, "manifest: a record twice", lambda lines: b"".join([*lines, lines[0]]))
    image = "stage/images/original/1.png"
    for name, make, says in (
        ("cut", lambda f: put(f / image, (f / image).read_bytes()[:80]), r"1\.png: damaged"),
        ("gone", lambda f: (f / image).unlink(), r"1\.png: no such file"),
        ("of another size", lambda f: put(f / image, encoded(scene()[:10].copy())), r"1\.png"),
        ("a link out", lambda f: ((f / image).unlink(), os.symlink("/etc/passwd", f / image))[0], r"leaves stage"),
    ):  # fmt: skip
        yield _damaged(stage, f"adversarial image: {name}", make, says, ("evaluate", "distortion", "stage", "-q"), 1)


def _copied(stage: Path, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        shutil.copytree(stage, folder / "stage")
        make(folder)

    return copy


def _damaged(
    stage: Path, name: str, make: Callable[[Path], object], says: str,
    words: tuple[str, ...] = ("evaluate", "stage", "-q"), code: int = 2,
) -> Case:  # fmt: skip
    return Case(name, _copied(stage, make), words, code, says)


def _fine(stage: Path, name: str, damage: Damage) -> Case:
    make = _copied(stage, lambda f: _rewrite(f / "stage/manifest.jsonl", damage))
    return Case(name, make, ("evaluate", "stage", "-q"), 0, "")


def _rewrite(path: Path, damage: Damage) -> None:
    path.write_bytes(damage(path.read_bytes().splitlines(keepends=True)))


def _field(name: str, value: str) -> Damage:
    """Return what puts JSON ``value`` in the place of a field of the second line."""

    def damage(lines: list[bytes]) -> bytes:
        record = json.loads(lines[1])
        record[name] = "@@"
        changed = json.dumps(record).replace('"@@"', value).encode() + b"\n"
        return b"".join([lines[0], changed, *lines[2:]])

    return damage


def _second(line: bytes) -> Damage:
    return lambda lines: b"".join([lines[0], line + b"\n", *lines[2:]])


def _damaged_manifests() -> Iterator[tuple[str, Damage, str]]:
    line = r"stage/manifest\.jsonl, line 2: "
    yield "a path with ..", _field("clean", '"clean/../../../etc/passwd"'), line + r"the path .* leaves its folder"
    yield "an absolute path", _field("adversarial", '"/etc/passwd"'), line + r"the path '/etc/passwd' leaves"
    yield "an id with ..", _field("id", '"../good.png"'), line + r"the path .* leaves its folder"
    yield "a path with NUL", _field("mask", '"a\\u0000b"'), line + r"the path .* NUL"
    yield "a path with a lone surrogate", _field("mask", '"a\\ud800.png"'), line
    yield "a path of a number", _field("clean", "7"), line
    yield "a cut line", lambda lines: b"".join([lines[0], lines[1][:60] + b"\n", *lines[2:]]), line
    yield "two lines run together", lambda lines: b"".join([lines[0], lines[1].rstrip(), *lines[2:]]), line
    for name, value in (
        ("NaN", "NaN"), ("Infinity", "-Infinity"), ("1e999", "1e999"), ("text", '"many"'), ("null", "null"),
        ("a negative count", "-1"), ("a fraction", "1.5"), ("a huge integer", "9" * 400), ("a list", "[1]"),
        ("an integer over 64 bits", str(2**70)),
    ):  # fmt: skip
        yield f"queries is {name}", _field("queries", value), line
    yield "deep nesting", _second(b"[" * 100_000 + b"]" * 100_000), line
    yield "deep nesting in a field that is passed over", _field("more", "[" * 100_000 + "]" * 100_000), line
    yield "a BOM", lambda lines: b"\xef\xbb\xbf" + b"".join(lines), r"stage/manifest\.jsonl, line 1: "
    yield "UTF-16", lambda lines: b"".join(lines).decode().encode("utf-16"), r"stage/manifest\.jsonl, line 1: "
    yield "bytes", _second(bytes(b for b in range(256) if b != 10)), line
    yield "no UTF-8 in a name", _second(b'{"id": "\xff"}'), line
    yield "an empty line", _second(b""), line
    yield "a list", _second(b"[]"), line
    yield "null", _second(b"null"), line
    yield "an unknown outcome", _field("outcome", '"won"'), line
    yield "a colour over 255", _field("pixels", '[{"x": 1, "y": 1, "from": [0, 0, 0], "to": [0, 0, 256]}]'), line


def _replaced(name: str) -> Iterator[tuple[str, Callable[[Path], object]]]:
    def replaced(by: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda f: ((f / "stage" / name).unlink(), by(f / "stage" / name))

    yield "a folder", replaced(lambda path: path.mkdir())
    yield "a link to itself", replaced(lambda path: os.symlink(path.name, path))
    yield "a named pipe", replaced(os.mkfifo)


def _hostile_yaml(file: str) -> Iterator[tuple[str, bytes | str, str]]:
    """Yield YAML that no reader may take, whatever it is read as."""
    bomb = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{chr(ord(n) - 1)}, *{chr(ord(n) - 1)}]\n" for n in "bcdefghij")
    yield "a tag that runs code", '!!python/object/apply:os.system ["touch ran"]', file + r", line 1: not valid YAML"
    yield "a tag deep inside", 'kind: attack\noptions: {a: !!python/name:os.system ""}', file + r", line 2: not valid"
    yield "an alias bomb", bomb, file + r", line 2: not valid YAML: aliases"
    yield "an anchor in a circle", "a: &a [*a]", file + r", line 1: not valid YAML: aliases"
    yield "a merge key", "<<: {a: 1}\nb: 2", file
    yield "a key twice", "kind: attack\nkind: segment", file + r", line 2: .*'kind' is given twice"
    yield "a list as key", "? [a, b]\n: c", file
    yield "bytes", bytes(range(256)), file + r".*: not valid YAML"
    yield "deep nesting", "[" * 10_000, file + r".*: not valid YAML"
    yield "two documents", "a: 1\n---\nb: 2", file + r".*: not valid YAML"
    yield "a number that is none", "kind: 0x_", file + r".*: not valid YAML"
    yield "2 MiB", "# " + "x" * (2 << 20), file + r": over 1024 KiB"
    yield "a list", "[1, 2]", file
    yield "text", "attack", file
    yield "an integer of 5,000 digits", "kind: " + "9" * 5000, file
    yield "base-60 digits", "kind: " + ":".join(["59"] * 2000), file
    yield "tabs", "a:\n\t- b", file + r".*: not valid YAML"


def _changed_infos() -> Iterator[tuple[str, tuple[str, Any], str]]:
    file = r"stage/stage\.yaml: "
    for field, value in (
        ("kind", 3), ("kind", "holiday"), ("options", ["a"]), ("inputs", {"images": 5}), ("identity", None),
        ("seed", "many"), ("counts", {"images": "many"}), ("wall_time", "long"), ("command", []),
    ):  # fmt: skip
        yield f"{field} is {value!r}", (field, value), file


def _change_info(path: Path, change: tuple[str, Any]) -> None:
    import yaml

    values = yaml.safe_load(path.read_text())
    values[change[0]] = change[1]
    path.write_text(yaml.safe_dump(values))


# --config and PLAN.yaml


def yaml_cases() -> Iterator[Case]:
    """Yield files of options and plans."""
    for name, text, says in _hostile_yaml(r"own\.yaml"):
        make = lambda f, t=text: (good(f), put(f / "own.yaml", t))[0]  # noqa: E731
        yield Case(f"--config: {name}", make, (*OWN, "--config", "own.yaml", "photos"), 2, says)
        yield Case(f"plan: {name}", make, ("run", "own.yaml", "--dry-run"), 2, says)
    for text, says in (
        ("pixels: many", r"own\.yaml: .*pixels"),
        ("pixels: 1e3", r"own\.yaml: .*pixels"),
        ("pixels: [1, 2]", r"own\.yaml: .*pixels"),
        ("population: .nan", r"own\.yaml: .*population"),
        ("population: " + "9" * 400, r"population"),
        ("time-limit: .nan", r"own\.yaml: .*--time-limit"),
        ("pixel: 1", r"own\.yaml: unknown key 'pixel'"),
        ("quiet: 1", r"own\.yaml: quiet: true or false expected"),
        ("population: {a: 1}", r"own\.yaml: population: one plain value expected"),
        ("region: no", r"own\.yaml: region: .*quote a word like no"),
        ("seed: -1", r"own\.yaml: .*seed"),
        ("config: own.yaml", r"own\.yaml: unknown key 'config'"),
        ('output: "a\\0b"', r"a.*b"),
    ):
        yield Case(
            f"--config: {text[:30]}", lambda f, t=text: (good(f), put(f / "own.yaml", t))[0],  # type: ignore[misc]
            ("attack", "de", "-m", "model.py:make", "-q", "--config", "own.yaml", "photos"), 2, says,
        )  # fmt: skip
    plan = "images: photos\nattacks:\n  de: {}\n"
    for name, text, says in (
        ("images is a list", plan.replace("photos", "[a, b]"), r"own\.yaml: images: text expected"),
        ("no attacks", "images: photos", r"own\.yaml: needs `images` .* and `attacks`"),
        ("attacks is a number", "images: photos\nattacks: 3", r"own\.yaml: attacks: "),
        ("an unknown attack", plan.replace("de:", "magic:"), r"own\.yaml: attacks\.magic"),
        ("an unknown key", plan + "colour: red\n", r"own\.yaml: colour: unknown key"),
        ("a matrix of a million", plan.replace("{}", "{matrix: {pixels: &x [1, 2]}}").replace("&x ", "") .replace(
            "[1, 2]", str(list(range(1, 1500)))), r"own\.yaml: attacks\.de\.matrix: 1,499 combinations"),
        ("a matrix of nothing", plan.replace("{}", "{matrix: {pixels: []}}"), r"attacks\.de\.matrix\.pixels"),
        ("a key that is a number", plan + "7: 8\n", r"own\.yaml: 7: unknown key"),
        ("a region that is none", plan + "regions: [moon]\n", r"own\.yaml: attacks\.de"),
        ("a command to run", plan + "then: {x: {command: 'rm -rf /'}}\n", r"then\.x\.command: 'rm -rf /' is no attack"),
        ("a name with a path", plan.replace("de:", "../de:"), r"own\.yaml: attacks\.\.\./de: a name is made of"),
    ):  # fmt: skip
        yield Case(
            f"plan: {name}", lambda f, t=text: put(f / "own.yaml", t),  # type: ignore[misc]
            ("run", "own.yaml", "--dry-run"), 2, says,
        )  # fmt: skip
    yield Case("plan: no file", good, ("run", "gone.yaml"), 2, r"gone\.yaml")
    yield Case("plan: a folder", good, ("run", "photos"), 2, r"photos")


# Models and weights


class _Code:
    """Pickles to a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def model_cases() -> Iterator[Case]:
    """Yield weights and models of one's own that are not what they should be."""
    for name, suffix, data, says in _weights():
        yield Case(
            f"weights: {name}", lambda f, s=suffix, d=data: (good(f), put(f / f"w{s}", d))[0],  # type: ignore[misc]
            (*OWN, "--weights", f"w{suffix}", "photos"), 2, says,
        )  # fmt: skip
    for name, suffix, data, says in _model_files():
        yield Case(
            f"model file: {name}", lambda f, s=suffix, d=data: (good(f), put(f / f"m{s}", d))[0],  # type: ignore[misc]
            (*ATTACK, "-q", "-m", f"m{suffix}", "photos"), 2, says,
        )  # fmt: skip
    for function, says in (
        ("nan", r"model\.py:nan: gives NaN or infinite logits"),
        ("nan_on_colours", r"model\.py:nan_on_colours: gives NaN or infinite logits"),
        ("too_few", r"model\.py:too_few: gives 2 logits, but has 3 class names"),
        ("none_at_all", r"model\.py:none_at_all: returns \[2, 0\] for 2 images"),
        ("maps", r"model\.py:maps: returns \[2, 3, 24, 24\]"),
        ("integers", r"model\.py:integers: returns "),
        ("mapping", r"model\.py:mapping: returns dict"),
        ("raises", r"model\.py:raises: cannot score .*no weights on the"),
        ("raises_later", r"model\.py:raises_later: .*KeyError.*layer4"),
        ("leaves", r"model\.py:leaves: raised SystemExit: bye"),
        ("leaves_later", r"model\.py:leaves_later: .*bye"),
        ("text", r"model\.py:text: returned str"),
        ("gone", r"model\.py: has no function 'gone'"),
    ):
        # What is wrong from the start leaves no stage; what shows on the images leaves one without records.
        done = () if function.endswith(("_later", "_on_colours")) and function != "leaves_later" else None
        words = (*ATTACK, "-q", "-m", f"model.py:{function}", "photos")
        yield Case(f"model: {function}", good, words, 2, says, done)
    yield Case("model: doubles", good, (*ATTACK, "-q", "-m", "model.py:doubles", "photos"), 0, "", ("good.png",))
    for name, code, says in (
        ("syntax", "def make(:", r"bad\.py:make: raised SyntaxError"),
        ("bytes", "\0\0", r"bad\.py:make: raised "),
        ("import", "import nothing_of_that_name", r"bad\.py:make: raised ModuleNotFoundError"),
        ("recursion", "def make():\n    return make()", r"bad\.py:make: raised RecursionError"),
        ("value", "make = 3", r"bad\.py: has no function 'make'"),
    ):
        yield Case(
            f"model code: {name}", lambda f, c=code: (good(f), put(f / "bad.py", c))[0],  # type: ignore[misc]
            (*ATTACK, "-q", "-m", "bad.py:make", "photos"), 2, says,
        )  # fmt: skip


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def lying(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    """Return a safetensors file with this header, whose length is told as ``length``."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _weights() -> Iterator[tuple[str, str, bytes, str]]:
    from safetensors.torch import save

    right = torch.full((1, 3, 1, 1), 20.0)
    entry = b'{"sharpness": {"dtype": "F32", "shape": [1, 3, 1, 1], "data_offsets": [0, 12]}}'
    cut = r"w\.safetensors: not a safetensors file, or cut short"
    yield "a pickle that runs code", ".pt", pickle.dumps(_Code()), r"w\.pt: holds pickled code, which is never run"
    yield "an archive that runs code", ".pt", _saved({"sharpness": _Code()}), r"w\.pt: holds pickled code"
    yield "a pickled module", ".pt", _saved(torch.nn.Linear(1, 1)), r"w\.pt: holds pickled code"
    yield "empty", ".pt", b"", r"w\.pt: not a checkpoint"
    yield "text", ".pt", b"weights", r"w\.pt: not a checkpoint"
    yield "a cut archive", ".pt", _saved({"sharpness": right})[:-40], r"w\.pt: not a checkpoint"
    yield "a list", ".pt", _saved([right]), r"w\.pt: holds no state dict"
    yield "an empty dict", ".pt", _saved({}), r"w\.pt: holds no state dict"
    yield "another shape", ".safetensors", save({"sharpness": right[0]}), r"does not fit .*1 of another shape"
    yield "a missing key", ".safetensors", save({"other": right}), r"1 tensors missing \(first 'sharpness'\)"
    yield (
        "a key too many",
        ".safetensors",
        save({"sharpness": right, "b": right.clone()}),
        r"1 unexpected \(first 'b'\)",
    )
    yield "NaN", ".safetensors", save({"sharpness": right * float("nan")}), r"'sharpness' holds NaN or infinite values"
    yield "infinity", ".pt", _saved({"sharpness": right / 0}), r"'sharpness' holds NaN or infinite values"
    yield "empty safetensors", ".safetensors", b"", cut
    yield "a header of 2^63 bytes", ".safetensors", lying(entry, 2**63), cut
    yield "a header that is cut", ".safetensors", lying(entry, len(entry) + 100), cut
    yield "offsets behind the end", ".safetensors", lying(entry, data=bytes(4)), cut
    yield "offsets that overlap", ".safetensors", lying(
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},'
        b' "b": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}}', data=bytes(16)), cut  # fmt: skip
    yield (
        "a shape of 2^60",
        ".safetensors",
        lying(entry.replace(b"1, 3, 1, 1", b"1152921504606846976"), data=bytes(12)),
        cut,
    )
    yield "a header that is no JSON", ".safetensors", lying(b"{" * 100), cut
    yield "an unknown type", ".safetensors", lying(entry.replace(b"F32", b"F99"), data=bytes(12)), cut
    header = b'{"__metadata__": {"pixelsem": "%s"}, ' + entry[1:]
    for name, metadata in (("cut", b"{"), ("a number", b"7"), ("deep", b"[" * 50_000)):
        yield f"metadata that are {name}", ".safetensors", lying(header % metadata, data=bytes(12)), r"w\.safetensors: "


def _model_files() -> Iterator[tuple[str, str, bytes, str]]:
    from safetensors.torch import save

    state = {"sharpness": torch.ones(1, 3, 1, 1)}
    tiny = torch.jit.script(torch.nn.Linear(3, 3))
    script = io.BytesIO()
    torch.jit.save(tiny, script)
    yield "no architecture", ".safetensors", save(state), r"m\.safetensors: does not say its architecture"
    code = {"arch": "model.py:make", "class_names": ["a"], "size": [24, 24], "resize": 24}
    yield "code of its own", ".safetensors", save(state, {"pixelsem": json.dumps(code)}), r"to run that code, give it"
    yield "an empty .pt2", ".pt2", b"", r"m\.pt2: "
    yield "a cut TorchScript", ".pt", script.getvalue()[:-30], r"m\.pt: not a checkpoint"
    yield "a TorchScript of something else", ".pt", script.getvalue(), r"m\.pt: "
    yield "a pickle that runs code", ".pth", pickle.dumps(_Code()), r"m\.pth: holds pickled code"


# Networks in ONNX, detectors


def file_cases() -> Iterator[Case]:
    """Yield broken files of the other networks and of detectors."""
    segment = ("segment", "--method", "rembg", "-q", "--weights", "n.onnx", "photos")
    for name, data in (("empty", b""), ("text", b"no network"), ("bytes", bytes(range(256)) * 8)):
        yield Case(f"ONNX: {name}", lambda f, d=data: (good(f), put(f / "n.onnx", d))[0], segment, 2, r"n\.onnx: ")  # type: ignore[misc]
    yield Case(
        "ONNX: takes something else", lambda f: (good(f), put(f / "n.onnx", _onnx()))[0], segment, 2, r"n\.onnx: takes"
    )
    yield Case("ONNX: cut", lambda f: (good(f), put(f / "n.onnx", _onnx()[:-20]))[0], segment, 2, r"n\.onnx: ")
    score = ("defend", "detect", "score", "-q", "--detector", "d.safetensors", "photos")
    for name, data, says in (
        ("empty", b"", r"d\.safetensors: not a detector, or cut short"),
        ("text", b"no detector", r"d\.safetensors: not a detector, or cut short"),
        ("lying", lying(b"{}", 2**62), r"d\.safetensors: not a detector, or cut short"),
        ("weights of a network", _plain_weights(), r"d\.safetensors: holds weights, but not those of a detector"),
        ("a header that is none", _plain_weights({"pixelsem-detector": "{}"}), r"not a valid detector"),
        ("a header that is deep", _plain_weights({"pixelsem-detector": "[" * 50_000}), r"not a valid detector"),
        ("only a header", _plain_weights({"pixelsem-detector": json.dumps(_DETECTOR)}), r"not a valid detector"),
    ):  # fmt: skip
        yield Case(f"detector: {name}", lambda f, d=data: (good(f), put(f / "d.safetensors", d))[0], score, 2, says)  # type: ignore[misc]


_DETECTOR = {
    "format": 1, "kind": "spam", "channels": "grey", "version": "1", "features": 686, "error": 0.1, "attack": "de",
    "search": "ab",
}  # fmt: skip


def _plain_weights(metadata: dict[str, str] | None = None) -> bytes:
    from safetensors.torch import save

    return bytes(save({"w": torch.ones(3)}, metadata))


def _onnx() -> bytes:
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 7]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
