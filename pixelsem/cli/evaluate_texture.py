"""``pixelsem evaluate texture``: is there more texture in the foreground than around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.evaluate_masks import Masks, open_masks
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import InputError, PixelsemError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.metrics.texture import RegionTexture, TextureSummary
    from pixelsem.regions.matching import NamedMasks
    from pixelsem.sources import ImageItem


@dataclass(frozen=True)
class TextureOptions(Settings):
    """Whose texture is measured, and how."""

    images: Path | None = option(
        None, "The images of the masks; a segmentation stage knows its own. A folder, one image, or a stage.", flag="-i"
    )
    wet_cost: float = option(
        1e10,
        "Cost of a pixel around which nothing varies; it decides how large the means are. Others cost 9 at most.",
        low=10.0,
    )


def evaluate_texture(
    *, context: typer.Context, masks: Masks = None, what: TextureOptions, options: TableOptions
) -> None:
    """HILL texture cost of foreground and background (dong2020, §3.2): the less, the more texture.

    Per image the mean cost over either region, then the mean over the images, the paired difference and how often
    the foreground has more texture.
    """
    from pixelsem.metrics.texture import summarize
    from pixelsem.report.masks import texture_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    sources = open_masks(resolve_inputs(masks, options.run, ("segment",), note=console.note))
    found: dict[str, TextureSummary] = {}
    notes: list[str] = []
    failures: dict[str, str] = {}
    for name, source in sources.items():
        items = _images(source, what.images)
        work = _Work(source, what.wet_cost)
        with console.progress(f"texture {name}", len(items)) as bar, ThreadPoolExecutor() as pool:
            for number, _ in enumerate(pool.map(work.measure, items), 1):
                bar.update(number)
        notes += work.notes()
        failures |= {f"{name} {image}": problem for image, problem in sorted(work.failures.items())}
        if work.done:
            found[name] = summarize([work.done[item.id] for item in items if item.id in work.done], options.confidence)
    if not found:
        _nothing(console, sources.values(), failures)
    key = digest({"masks": [source.identity() for source in sources.values()], "wet_cost": what.wet_cost})
    paths = [source.path for source in sources.values()]
    folder = tables_folder(context, options, paths, f"evaluate-texture-{key[:6]}")
    tables = [texture_table(found, what.wet_cost, options.confidence)]
    show_tables(console, folder, tables, notes, {"inputs": [*map(str, paths)], "failures": failures})
    exit_with(console, failures)


def _images(source: NamedMasks, given: Path | None) -> Sequence[ImageItem]:
    from pixelsem.sources import open_images

    if given is None and not source.is_stage:
        raise PixelsemError(f"{source.path}: a mask folder does not know its images; give them with --images DIR")
    return open_images(given or source.path).items


def _nothing(console: Console, sources: Iterable[NamedMasks], failures: dict[str, str]) -> None:
    """Leave, saying why nothing could be measured."""
    exit_with(console, failures)
    where = ", ".join(str(source.path) for source in sources)
    raise PixelsemError(f"{where}: no image has a mask with both a foreground and a background")


@dataclass
class _Work:
    """Measures images one by one."""

    source: NamedMasks
    wet_cost: float
    done: dict[str, RegionTexture] = field(default_factory=dict)
    one_region: list[str] = field(default_factory=list)
    without_mask: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def measure(self, item: ImageItem) -> None:
        """Measure one image; safe to call from several threads."""
        try:
            self._measure(item)
        except InputError as error:
            self.failures[item.id] = str(error)

    def _measure(self, item: ImageItem) -> None:
        from pixelsem.images import read_image
        from pixelsem.metrics.texture import region_texture, to_grey

        entry = self.source.find(item.id)
        if entry is None:
            self.without_mask.append(item.id)
            return
        grey = to_grey(read_image(item.path))
        if grey.shape != entry.values.shape:
            (height, width), (rows, columns) = grey.shape, entry.values.shape
            raise InputError(f"{entry.path}: is {columns}×{rows}, its image {width}×{height}")
        texture = region_texture(grey, entry.region("foreground"), self.wet_cost)
        if texture is None:
            self.one_region.append(item.id)
        else:
            self.done[item.id] = texture

    def notes(self) -> list[str]:
        """Say what was left out."""
        left = ((self.without_mask, "have no mask"), (self.one_region, "are all foreground or all background"))
        return [f"{len(names)} images {why} in {self.source.path}; left out" for names, why in left if names]
