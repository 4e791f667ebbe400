"""What the commands that train a network share: where it runs, and how its epochs are told and recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pixelsem.cli.console import Bar, Console
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.records import EpochRecord, SaliencyEpochRecord
    from pixelsem.stage import Stage

R = TypeVar("R", "EpochRecord", "SaliencyEpochRecord")


@dataclass(frozen=True)
class TrainingOptions(Settings):
    """Where a network is trained, and what is told of its data."""

    data_name: str | None = option(None, "What the model card calls the data.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")

    def name_of(self, data: Path) -> str:
        """Return what the model card calls the folder ``data``."""
        return self.data_name or data.resolve().name


def follow(
    steps: Iterator[R | float],
    stage: Stage,
    console: Console,
    bar: Bar,
    epochs: int,
    tell: Callable[[R], str],
    export: Callable[[list[R]], None] = lambda _: None,
) -> list[R]:
    """Show the progress of a training, record its epochs and return them; those of a resumed checkpoint count once.

    ``steps`` are records and, in between, shares done. ``tell`` returns the line on a new epoch; ``export`` is given
    all epochs up to it before it is recorded.
    """
    log: list[R] = []
    known = stage.keys()
    for step in steps:
        if isinstance(step, float):
            bar.update(step * epochs, f"epoch {len(log) + 1} of {epochs}")
            continue
        log.append(step)
        if step.key not in known:
            export(log)
            stage.append(step)
            console.note(tell(step))
    return log
