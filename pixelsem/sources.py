"""Where a command's images come from: an image folder, one image file, or a stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pixelsem.errors import PixelsemError, StageError
from pixelsem.images import SUFFIXES, list_images
from pixelsem.records import AttackRecord, DefendRecord, SegmentRecord
from pixelsem.stage import STAGE_FILE, Stage, digest

#: The role under which a segmentation stage declares the folder of its source images.
IMAGES_ROLE = "images"


@dataclass(frozen=True)
class ImageItem:
    """One image: its ``id`` (relative path, with ``/``), its file and the name of its class folder.

    ``folder`` is the first folder of the id, as in torchvision's ImageFolder; None in a flat folder.
    """

    id: str
    path: Path
    folder: str | None


@dataclass(frozen=True)
class ImageSource:
    """Images under one ``root``; ``stage`` is the stage they were named by, where it was one."""

    root: Path
    items: list[ImageItem]
    stage: Stage | None = None


def open_images(path: Path) -> ImageSource:
    """Find the images that ``path`` stands for, in the order of their ids.

    ``path`` is an image folder (flat or ``class/…``, sub-folders kept), one image file, a segmentation stage
    (the images it was made from, under its input ``images``), an attack stage (its own clean images, by the ids
    they came with) or a stage of transformed images (these). Raises :class:`PixelsemError` where there is no
    image, :class:`StageError` where a stage's images are not where it says.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise PixelsemError(f"{path}: not an image (known: {', '.join(sorted(SUFFIXES))}), nor a folder or stage")
        return ImageSource(path.parent, [_item(path.name, path)])
    if not path.is_dir():
        raise PixelsemError(f"{path}: no such file or folder")
    source = _of_stage(Stage.open(path)) if (path / STAGE_FILE).is_file() else _of_folder(path)
    if not source.items:
        raise PixelsemError(f"{path}: holds no image (looked for {', '.join(sorted(SUFFIXES))}, in sub-folders too)")
    return source


def _item(image_id: str, path: Path) -> ImageItem:
    parts = PurePosixPath(image_id).parts
    return ImageItem(image_id, path, parts[0] if len(parts) > 1 else None)


def _of_folder(root: Path) -> ImageSource:
    return ImageSource(root, [_item(path.relative_to(root).as_posix(), path) for path in list_images(root)])


def _of_stage(stage: Stage) -> ImageSource:
    if stage.info.kind not in ("segment", "attack", "defend"):
        raise StageError(f"{stage.path}: a stage of {stage.info.command!r} holds no images")
    root = _source_root(stage) if stage.info.kind == "segment" else stage.path
    found: dict[str, ImageItem] = {}
    for record in stage.records():
        if isinstance(record, SegmentRecord):
            # Not resolved: a link that the user keeps in the image folder may lead out of it.
            found.setdefault(record.id, _item(record.id, root / record.image))
        elif isinstance(record, AttackRecord) and record.id not in found:
            stage.resolve(record.clean)
            found[record.id] = _item(record.id, root / record.clean)
        elif isinstance(record, DefendRecord) and record.id not in found:
            stage.resolve(record.image)
            found[record.id] = _item(record.id, root / record.image)
    return ImageSource(root, sorted(found.values(), key=lambda item: PurePosixPath(item.id).parts), stage)


def _source_root(stage: Stage) -> Path:
    if IMAGES_ROLE not in stage.info.inputs:
        raise StageError(f"{stage.path}: names no input {IMAGES_ROLE!r}")
    root = stage.path / stage.info.inputs[IMAGES_ROLE]
    if not root.is_dir():
        raise StageError(
            f"{stage.path}: its images are not at {root.resolve()}; put them back there, or correct "
            f"`inputs: {IMAGES_ROLE}` in {stage.path / STAGE_FILE}"
        )
    return root


def select(
    items: Sequence[ImageItem], limit: int | None = None, sample: int | None = None, seed: int = 0
) -> list[ImageItem]:
    """Return the first ``limit`` items, or ``sample`` of these drawn at random; their order is kept.

    An item's draw depends on ``seed`` and its id alone: images that come or go elsewhere in the folder
    change the sample only where they enter it.
    """
    chosen = list(items if limit is None else items[:limit])
    if sample is None or sample >= len(chosen):
        return chosen
    lots = {item.id: hashlib.sha256(f"{seed}\0{item.id}".encode()).digest() for item in chosen}
    drawn = set(sorted(lots, key=lambda image_id: lots[image_id])[:sample])
    return [item for item in chosen if item.id in drawn]


def fingerprint(items: Sequence[ImageItem]) -> str:
    """Return the digest of the images' ids and contents: the identity of a command's input.

    Where the folder lies does not enter it, so that a moved one is still the same.
    """
    with ThreadPoolExecutor() as pool:  # hashing and reading both let other threads run
        contents = pool.map(lambda item: file_digest(item.path), items)
        return digest({item.id: content for item, content in zip(items, contents, strict=True)})


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file; of a broken link or a pipe, which reading reports later, an empty text."""
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
