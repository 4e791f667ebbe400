"""Attack stages made by hand, small enough to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pixelsem.records import AttackRecord
from pixelsem.stage import Stage, StageInfo, digest

CLASSES = ("cat", "dog", "ship")


def prediction(name: str, confidence: float = 0.9) -> dict[str, Any]:
    others = [other for other in CLASSES if other != name]
    rest = (1 - confidence) / 2
    return {"class": name, "confidence": confidence, "top5": [[name, confidence], *([other, rest] for other in others)]}


def record(image: str = "cat/1.png", region: str = "original", **changes: Any) -> AttackRecord:
    """Return a record of an image of a cat; ``to`` and ``confidence`` say what it became."""
    to, confidence = changes.pop("to", None), changes.pop("confidence", 0.6)
    outcome = changes.get("outcome", "attacked")
    after = prediction(to or "cat", confidence)
    ranks = [[name, share, rank] for rank, (name, share) in enumerate(after["top5"], 1)]
    plain = {
        "id": image,
        "outcome": outcome,
        "region": region,
        "label": "cat",
        "label_source": "given",
        "target": None,
        "repeat": 0,
        "seed": 0,
        "clean": f"clean/{image}",
        "mask": None if region == "original" else f"masks/{region}/{image}",
        "adversarial": f"images/{region}/{image}" if to else None,
        "history": None,
        "height": 10,
        "width": 10,
        "region_pixels": {"original": 100, "foreground": 40}.get(region, 60),
        "success": to is not None,
        "queries": 400 if outcome == "attacked" else 0,
        "candidates": 500 if outcome == "attacked" else 0,
        "generations": 1 if outcome == "attacked" else 0,
        "before": prediction("cat"),
        "after": after | {"of_before_top5": ranks} if outcome == "attacked" else None,
        "pixels": [{"x": 1, "y": 2, "from": [0, 0, 0], "to": [255, 0, 7]}] if to else [],
    }
    return msgspec.convert(plain | changes, AttackRecord)


def info(
    region: str = "original", *, name: str = "allconv", counts: dict[str, int] | None = None, **options: Any
) -> StageInfo:
    settings = {"region": region, "pixels": 1, "constraint": "encode", "population": 400, "seed": 0} | options
    return StageInfo(
        kind="attack",
        command="attack de",
        identity=digest({"model": name, **settings}),
        options=settings,
        inputs={},
        model={"name": name, "digest": "ab" * 32},
        seed=settings["seed"],
        counts=counts,
    )


def write_stage(path: Path, stage: StageInfo, *records: AttackRecord) -> Path:
    Stage.create(path, stage).append(*records)
    return path
