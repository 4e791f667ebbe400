"""Work for the tests of Ray workers, importable in their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from pixelsem.engine.groups import Key
from pixelsem.engine.ray_pool import Results, Work
from pixelsem.errors import PixelsemError
from pixelsem.sources import ImageItem


@dataclass(frozen=True)
class Doubling:
    """Gives back, for each image, its number doubled and the process; images named in ``deadly`` end that.

    ``log`` is a folder: every image leaves a file there when it is begun. An image in ``once`` is deadly only as long
    as it has left none. Images named in ``broken`` raise an error, those in ``wrong`` one that nothing helps against.
    Those in ``together`` are worked on once all of them are begun, and fail after 200 seconds. Where ``refuses`` is
    set, the work cannot be set up.
    """

    log: Path
    deadly: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    refuses: str = ""
    dies_at_start: bool = False
    parts: int = 1
    seconds: float = 0.0

    def open(self) -> Work:
        if self.refuses:
            raise PixelsemError(self.refuses)
        if self.dies_at_start:
            os._exit(7)
        return self._do

    def _do(self, items: Sequence[ImageItem], done: AbstractSet[Key]) -> Results:
        for item in items:
            begun = self.log / f"{item.id}.{time.time_ns()}"
            known = any(self.log.glob(f"{item.id}.*"))
            begun.touch()
            if item.id in self.together:
                self._wait()
            if item.id in self.deadly or (item.id in self.once and not known):
                os._exit(7)
            if item.id in self.broken:
                raise ValueError("so it is")
            if item.id in self.wrong:
                raise PixelsemError("the model gives no numbers")
            for part in range(self.parts):
                key = (item.id, str(part))
                if key not in done:
                    time.sleep(self.seconds)
                    yield key, (item.id, part, 2 * int(item.id), os.getpid())

    def _wait(self) -> None:
        deadline = time.monotonic() + 200
        while not all(any(self.log.glob(f"{name}.*")) for name in self.together):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {self.together} are begun")
            time.sleep(0.01)
