"""Small segmentation stages to review, and decisions on them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelsem.images import pixel_digest, write_image
from pixelsem.records import SegmentRecord
from pixelsem.regions.masks import coverage_flags
from pixelsem.regions.review import FORMAT, mask_digest
from pixelsem.stage import Stage, StageInfo, digest, open_stage

SIZE = (44, 60)


def disc(x: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (columns - x) ** 2 + (rows - 22) ** 2 < 100


def scene(seed: int) -> NDArray[np.uint8]:
    """A red disc at the left and a blue one at the right, on green."""
    image = np.zeros((*SIZE, 3))
    image[:] = (40, 160, 60)
    image[disc(16)], image[disc(44)] = (200, 30, 40), (30, 40, 200)
    return np.clip(image + np.random.default_rng(seed).normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def make_stage(folder: Path, ids: list[str], *, method: str = "grabcut", **masks: NDArray[Any]) -> Stage:
    """A stage of both discs in every image; other masks by id with ``_`` for ``/`` and ``.``."""
    options = {"method": method, "upscale": 0, "iterations": 2, "margin": 0.04, "rect": None, "hints": None}
    info = StageInfo(
        "segment", "segment images", digest({"ids": ids, "method": method}), options, {"images": "../photos"}
    )
    stage = Stage.create(folder / "stage", info)
    for number, name in enumerate(ids):
        write_image(folder / "photos" / name, scene(number))
        values = masks.get(name.replace("/", "_").replace(".", "_"))
        if values is None:
            values = np.where(disc(16) | disc(44), 255, 0).astype(np.uint8)
        soft = values.dtype == np.uint16
        inside = values >= 32768 if soft else values > 0
        kind: Any = "soft" if soft else "labels" if method == "slic" else "binary"
        mask = f"masks/{Path(name).with_suffix('.png').as_posix()}"
        write_image(stage.path / mask, values)
        coverage = float(inside.mean())
        flags = [] if kind == "labels" else coverage_flags(coverage)  # superpixels are everywhere
        stage.append(SegmentRecord(name, name, mask, kind, coverage, flags, digests={"mask": pixel_digest(values)}))
    return stage


def records(stage: Stage) -> dict[str, SegmentRecord]:
    return {record.id: record for record in open_stage(stage.path).segment_records()}


def png(levels: NDArray[np.uint8]) -> str:
    """Scribbles as the page exports them: transparent where nothing is drawn."""
    alpha = np.where(levels == 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([levels, levels, levels, alpha], axis=2)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def entry(stage: Stage, name: str, **asked: Any) -> dict[str, Any]:
    return {"id": name, "mask": mask_digest(stage, records(stage)[name]), **asked}


def write_decisions(stage: Stage, *entries: dict[str, Any], **changes: Any) -> Path:
    path = stage.path.parent / "decisions.json"
    content = {"format": FORMAT, "stage": stage.info.identity, "images": list(entries)} | changes
    path.write_text(json.dumps(content))
    return path


def strokes(white: NDArray[np.bool_] | None = None, black: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    levels = np.full(SIZE, 128, np.uint8)
    for where, level in ((white, 255), (black, 0)):
        if where is not None:
            levels[where] = level
    return levels
