"""``pixelsem evaluate panels``: a figure of attacked images, with what changed circled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.figures import need_matplotlib
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import output_folder
from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pixelsem.cli.attack_stages import AttackStages, Search
    from pixelsem.metrics.setups import Setup
    from pixelsem.records import AttackRecord, Prediction
    from pixelsem.report.panels import Attacked, PanelRow

#: What a figure may be, by suffix.
FORMATS = (".png", ".svg", ".pdf")

_NOT_ATTACKED = {
    "misclassified": "not attacked: misclassified",
    "empty-region": "not attacked: empty region",
    "flagged-mask": "not attacked: mask flagged",
}


@dataclass(frozen=True)
class PanelOptions(Settings):
    """What the figure shows and where it goes."""

    output: Path | None = option(
        None,
        "The figure: a .png, .svg or .pdf file (default: a PNG of its own name beside the stages, or below --run "
        "where that is given).",
        flag="-o",
    )
    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    rows: int = option(8, "Rows at most; those with most successful attacks first, then by name.", low=1, high=200)
    only: Literal["all", "success"] = option("all", "Show all attacked images, or those with a successful attack.")
    difference: bool = option(True, "Show the amplified difference between attacked and clean image.")
    amplify: float | None = option(
        None, "How often differences are amplified (default: as far as the largest allows).", low=0.01, high=255
    )
    l2: bool = option(
        False, "State how far each attacked image is from the clean one: L2 (of images in 0–1) and SSIM.", flag="--l2"
    )
    match_l2: bool = option(
        False, "Compare attacks at equal distance (qian2021, Figs. 4–6): of each attack show, per image, the "
        "successful search whose L2 is nearest to the other attacks'; images whose L2 agree best first. Includes --l2.",
        flag="--match-l2",
    )  # fmt: skip
    size: int = option(192, "Pixels per panel at most; an image is never made smaller.", low=16, high=2048)
    json: bool = option(False, "Print what is in the figure as JSON on stdout in place of its path.", flag="--json")
    quiet: bool = option(False, "No notes on stderr.", flag="-q")


Stages = Annotated[
    list[Path] | None,
    typer.Argument(help="Attack stages; several make one figure (default: stdin, or the newest attack stage)."),
]

Images = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="ID", help="Show this image (its relative path); repeat it for more, in order."),
]


def evaluate_panels(
    *, context: typer.Context, stages: Stages = None, image: Images = None, options: PanelOptions
) -> None:
    """Draw attacked images: original, regions, attacked (changed pixels circled) and the difference.

    One row per image, and per target of targeted attacks; one attacked column per region (wang2021, Figs. 1–2).
    Of repeated searches the first is shown. Several networks or searches are shown row by row.
    """
    console = Console(quiet=options.quiet, as_json=options.json)
    _check_output(options.output)
    need_matplotlib()
    from pixelsem.cli.attack_stages import open_attacks
    from pixelsem.report.figures import save_figure
    from pixelsem.report.panels import draw_panels

    attacks = open_attacks(stages, options.run, console.note)
    figure_data = _FigureData(attacks)
    wanted = image or []
    chosen = figure_data.choose(options, wanted)
    failures = attacks.failures
    shown, rows = _load(chosen, options.rows, options.l2 or options.match_l2, failures)
    if not rows:
        raise PixelsemError(next(reversed(failures.values())))
    title = figure_data.title
    figure = draw_panels(rows, attacked=title, difference=options.difference, gain=options.amplify, size=options.size)
    name = f"evaluate-panels-{figure_data.identity(options, wanted)[:6]}.png"
    path = output_folder(context, options, attacks.paths, name)
    save_figure(figure, path)
    if len(chosen) > len(shown):
        console.note(f"{len(shown)} of {len(chosen)} rows are shown; --rows shows more")
    summary = {"figure": str(path), "rows": [line.summary() for line in shown], "of": len(chosen)}
    console.data(json.dumps(summary, ensure_ascii=False) if options.json else str(path))
    exit_with(console, failures)


def _check_output(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise PixelsemError(f"-o {path}: a figure ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if path.is_dir():
        raise PixelsemError(f"-o {path}: a folder, not a file")


@dataclass
class _Line:
    """One row of the figure before its files are read: an image (and target) under one search, by region."""

    id: str
    target: str | None
    setup: str
    attack: tuple[str, str]
    found: dict[str, Search] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What stands at the row's side."""
        return " · ".join(filter(None, [self.setup, self.id, self.target and f"to {self.target}"]))

    @property
    def hits(self) -> int:
        """In how many regions the attack succeeded."""
        return sum(search.record.success for search in self.found.values())

    @property
    def ran(self) -> bool:
        """Was there a search in any region?"""
        return any(search.record.outcome == "attacked" for search in self.found.values())

    def l2(self) -> float | None:
        """Return the mean L2 of the successes, in units of 0 to 255; None where their files cannot be read."""
        from pixelsem.cli.attack_stages import to_tensor
        from pixelsem.metrics.distortion import l2

        hits = [search for search in self.found.values() if search.record.adversarial is not None]
        try:
            pairs = [(clean, search.attempt(clean)) for search in hits for clean in (search.clean(),)]
            clean, attacked = (to_tensor(images) for images in zip(*pairs, strict=True))
        except (InputError, StageError, ValueError):  # of two sizes
            return None
        return float(l2(clean, attacked).mean())

    def summary(self) -> dict[str, Any]:
        """What ``--json`` says of the row."""
        success = {region: search.record.success for region, search in self.found.items()}
        return {"id": self.id, "target": self.target, "search": self.setup or None, "success": success}


#: The options that decide what the figure shows.
_SHOWN = ("rows", "only", "difference", "amplify", "size", "l2", "match_l2")


class _FigureData:
    """All that could be shown of some stages."""

    def __init__(self, attacks: AttackStages) -> None:
        self.attacks, self.setups = attacks, attacks.setups

    @property
    def title(self) -> str:
        """What stands above attacked images: how many pixels changed, where that is the same everywhere."""
        counts = {setup.pixels for setup in self.setups}
        pixels = counts.pop() if len(counts) == 1 else None
        if not isinstance(pixels, int):
            return "attacked"
        return "1 pixel changed" if pixels == 1 else f"{pixels} pixels changed"

    def identity(self, options: PanelOptions, wanted: Sequence[str]) -> str:
        """Return the digest of what the figure shows."""
        from pixelsem.stage import digest

        shown = {name: getattr(options, name) for name in _SHOWN}
        return digest({"stages": self.attacks.identities, "images": list(wanted), **shown})

    def choose(self, options: PanelOptions, wanted: Sequence[str] = ()) -> list[_Line]:
        """Return the lines to show: of the images ``wanted`` in their order, else of all, best first.

        Raises :class:`PixelsemError` where there is none, or not one of an image that is wanted.
        """
        groups = [[line for line in group if line.ran] for group in self._groups()]
        groups = [group for group in groups if group]
        if not groups:
            raise PixelsemError(f"{', '.join(self.attacks.names)}: no image was attacked; there is nothing to show")
        if options.only == "success":
            groups = [group for group in groups if any(line.hits for line in group)]
            if not groups:
                raise PixelsemError(
                    f"{', '.join(self.attacks.names)}: no attack succeeded; --only all shows what was tried"
                )
        ordered = _matched(groups) if options.match_l2 else _ordered(groups)
        return [line for group in self._selected(ordered, wanted) for line in group]

    def _selected(self, groups: list[list[_Line]], wanted: Sequence[str]) -> list[list[_Line]]:
        known = {group[0].id for group in groups}
        for image in wanted:
            if image not in known:
                raise PixelsemError(f"--image {image}: not among the images to show, such as {min(known)}")
        order = {image: number for number, image in enumerate(wanted)}
        if not order:
            return groups
        return sorted((group for group in groups if group[0].id in order), key=lambda group: order[group[0].id])

    def _groups(self) -> list[list[_Line]]:
        """Gather what belongs to one image and target: one line per search."""
        from pixelsem.metrics.success import sort_regions

        groups: dict[tuple[str, str], dict[int, _Line]] = {}
        for number, setup in enumerate(self.setups):
            name = _setup_name(setup, self.setups)
            for search in self.attacks.searches(setup).values():
                record = search.record
                if record.repeat == 0:
                    group = groups.setdefault((record.id, record.target or ""), {})
                    line = group.setdefault(
                        number, _Line(record.id, record.target, name, (setup.network, setup.attack))
                    )
                    line.found.setdefault(record.region, search)
        for line in (line for group in groups.values() for line in group.values()):
            line.found = {region: line.found[region] for region in sort_regions(line.found)}
        return [list(groups[key].values()) for key in sorted(groups)]


def _setup_name(setup: Setup, setups: Sequence[Setup]) -> str:
    """Return what tells a setup from the others in a few words; nothing where it is alone."""
    pixels = None if setup.pixels is None else f"{setup.pixels} px"
    network = setup.network if len({each.network for each in setups}) > 1 else None
    attack = setup.attack if len({each.attack for each in setups}) > 1 else None
    return " ".join(filter(None, [network, attack, pixels, setup.details])) if len(setups) > 1 else ""


def _matched(groups: Sequence[list[_Line]]) -> list[list[_Line]]:
    """Keep one line per network and attack: those whose L2 lie nearest together.

    Groups with most attacks come first, then those that agree best; groups without successes of at least two
    attacks are left out. Raises :class:`PixelsemError` where that is all.
    """
    keyed = []
    for group in groups:
        by_attack: dict[tuple[str, str], list[tuple[float, _Line]]] = {}
        for line in group:
            if line.hits and (length := line.l2()):
                by_attack.setdefault(line.attack, []).append((length, line))
        if len(by_attack) > 1:
            ratio, lines = min(
                (_nearest(by_attack, length) for length in _lengths(by_attack)), key=lambda pick: pick[0]
            )
            keyed.append((-len(lines), ratio, lines[0].id, lines[0].target or "", lines))
    if not keyed:
        raise PixelsemError("--match-l2: no image was successfully attacked in two ways; there is nothing to match")
    return [lines for *_, lines in sorted(keyed, key=lambda item: item[:-1])]


def _lengths(by_attack: Mapping[tuple[str, str], Sequence[tuple[float, _Line]]]) -> list[float]:
    return sorted({length for found in by_attack.values() for length, _ in found})


def _nearest(
    by_attack: Mapping[tuple[str, str], Sequence[tuple[float, _Line]]], length: float
) -> tuple[float, list[_Line]]:
    """Return each attack's line of the L2 nearest to ``length`` (as a ratio), and largest over smallest of these."""
    picked = [min(found, key=lambda each: abs(log(each[0] / length))) for found in by_attack.values()]
    lengths = [each for each, _ in picked]
    return max(lengths) / min(lengths), [line for _, line in picked]


def _ordered(groups: Sequence[list[_Line]]) -> list[list[_Line]]:
    """Put most successes first; among equals, every image's first target comes before any one's second."""
    turns: dict[tuple[str, int], int] = {}
    keyed = []
    for group in groups:
        hits = sum(line.hits for line in group)
        turn = turns.setdefault((group[0].id, hits), 0)
        turns[group[0].id, hits] += 1
        keyed.append((-hits, turn, group[0].id, group[0].target or "", group))
    return [group for *_, group in sorted(keyed, key=lambda item: item[:-1])]


def _load(
    lines: Sequence[_Line], count: int, distances: bool, failures: dict[str, str]
) -> tuple[list[_Line], list[PanelRow]]:
    """Read the files of the first ``count`` lines that can be read; what is wrong with others goes to ``failures``."""
    shown: list[_Line] = []
    rows: list[PanelRow] = []
    for line in lines:
        if len(rows) == count:
            break
        try:
            rows.append(_read(line, distances))
            shown.append(line)
        except (InputError, StageError) as error:
            failures[line.name] = str(error)
    return shown, rows


def _read(line: _Line, distances: bool = False) -> PanelRow:
    """Read a row's images and masks; raises :class:`InputError` and :class:`StageError`."""
    from pixelsem.report.panels import PanelRow

    first = next(search for search in line.found.values() if search.record.outcome == "attacked")
    clean = first.clean()
    attacked = {region: _attacked(search, clean) for region, search in line.found.items()}
    if distances:
        attacked = {region: replace(found, note=_distance(clean, found.image)) for region, found in attacked.items()}
    masks = {region: mask for region, search in line.found.items() if (mask := search.mask()) is not None}
    return PanelRow(line.name, clean, _answer(first.record.before), attacked, masks)


def _distance(clean: NDArray[np.uint8], attacked: NDArray[np.uint8] | None) -> str:
    """Say how far an attacked image is from the clean one: ``L2 1.56, SSIM 0.991``."""
    from pixelsem.cli.attack_stages import to_tensor
    from pixelsem.metrics.distortion import LARGEST, measure

    if attacked is None:
        return ""
    (found,) = measure(to_tensor([clean]), to_tensor([attacked]))
    return f"L2 {found.l2 / LARGEST:.2f}" + ("" if found.ssim is None else f", SSIM {found.ssim:.3f}")


def _attacked(search: Search, clean: NDArray[np.uint8]) -> Attacked:
    """Return what became of one search: the file it wrote, or the best try where none succeeded."""
    from pixelsem.report.panels import Attacked

    record = search.record
    places = tuple((change.x, change.y) for change in record.pixels)
    return Attacked(search.attempt(clean), _verdict(record), record.success, places)


def _verdict(record: AttackRecord) -> str:
    """Say in a few words what the model makes of the attacked image."""
    if record.after is None:
        return _NOT_ATTACKED.get(record.outcome, "not attacked")
    if record.success:
        return f"→ {_answer(record.after)}"
    missed = f", not {record.target}" if record.target else ""
    still = "still " if record.after.class_ == record.label else ""
    return f"{still}{_answer(record.after)}{missed}"


def _answer(prediction: Prediction) -> str:
    return f"{prediction.class_} {100 * prediction.confidence:.0f} %"
