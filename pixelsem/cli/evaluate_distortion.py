"""``pixelsem evaluate distortion``: how often attacks succeed, and how much of the image they change for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixelsem.cli.attack_stages import Group
    from pixelsem.metrics.distortion import Distortion
    from pixelsem.metrics.intervals import Rate
    from pixelsem.report.distortion import DistortionRow

Stages = Annotated[
    list[Path] | None,
    typer.Argument(help="Attack stages; several make one table (default: stdin, or the newest attack stage)."),
]


@dataclass(frozen=True)
class DistortionOptions(Settings):
    """Which images count, and where pixels are compared."""

    common: bool = option(
        False, "Count only images that were attacked in every row, so that every model is right on them (qian2021, "
        "§IV-A).", flag="--common",
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")


def evaluate_distortion(
    *, context: typer.Context, stages: Stages = None, what: DistortionOptions, options: TableOptions
) -> None:
    """Attack success rate, SSIM, PSNR and L0, L1, L2, L∞ by network, attack and region (qian2021, Table I).

    Means over the successes, and over all tries where what failed was kept too. norms.csv has every measure with
    its interval and median.
    """
    from pixelsem.cli.attack_stages import common_images, open_attacks
    from pixelsem.report.distortion import distortion_table, norms_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    attacks = open_attacks(stages, options.run, console.note)
    groups, notes = attacks.groups(), list(attacks.notes)
    if what.common:
        images = common_images(groups)
        if not images:
            raise PixelsemError(f"{', '.join(attacks.names)}: no image was attacked in every row; leave --common out")
        notes.append(f"{len(images)} images were attacked in every row")
        groups = [group.kept(images) for group in groups]
    failures = attacks.failures
    rows: list[DistortionRow] = []
    with console.progress("distortion", len(groups)) as bar:
        for number, group in enumerate(groups, 1):
            rows += _rows(group, what.device, failures, options.confidence)
            bar.update(number)
    key = digest({"stages": attacks.identities, "common": what.common})
    folder = tables_folder(context, options, attacks.paths, f"evaluate-distortion-{key[:6]}")
    level = options.confidence
    tables = [distortion_table(rows, level, what.common), norms_table(rows, level)]
    show_tables(console, folder, tables, notes, {"inputs": attacks.names, "failures": failures})
    exit_with(console, failures)


def _rows(group: Group, device: str, failures: dict[str, str], confidence: float) -> Iterator[DistortionRow]:
    """Yield a group's row of the successes and, where every failed try is known as well, that of all tries."""
    from pixelsem.report.distortion import DistortionRow
    from pixelsem.report.setups import describe_search

    found = measure_searches(group, device, failures)
    hits = {search.record.key for search in group.attacked if search.record.success}
    names, asr = describe_search(group.setup, group.region, group.goal), success_rate(group, confidence)
    yield DistortionRow(names, "successes", asr, {key: one for key, one in found.items() if key in hits})
    if len(hits) < len(found) == len(group.attacked):
        yield DistortionRow(names, "all tries", asr, found)


def success_rate(group: Group, confidence: float) -> Rate | None:
    """Return the successes over the searches that ran; with several targets per image, its interval allows for that."""
    from pixelsem.metrics.success import success

    found = success([search.record for search in group.searches], group.region, confidence)
    return found.untargeted1 if group.goal == "untargeted" else found.targeted


def measure_searches(group: Group, device: str, failures: dict[str, str]) -> dict[tuple[str, ...], Distortion]:
    """Measure what is known of a group's attacked images, by their records' keys, in order."""
    from pixelsem.cli.attack_stages import read_pairs, to_tensor
    from pixelsem.fitness.evaluator import pick_device
    from pixelsem.metrics.distortion import measure

    place = pick_device(device)
    found: dict[tuple[str, ...], Distortion] = {}
    for pairs in read_pairs(group.attacked, failures):
        known = [(pair.search.record.key, pair.clean, pair.attempt) for pair in pairs if pair.attempt is not None]
        if known:
            clean = to_tensor([clean for _, clean, _ in known]).to(place)
            attacked = to_tensor([attempt for _, _, attempt in known]).to(place)
            found |= zip((key for key, _, _ in known), measure(clean, attacked), strict=True)
    return found
