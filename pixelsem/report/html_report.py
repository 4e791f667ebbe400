"""The report: one page with the answer, charts, tables, runs and every attacked image; it needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import IO, Any

from pixelsem.metrics import success as metrics
from pixelsem.metrics.setups import Setup
from pixelsem.metrics.success import GOALS
from pixelsem.report.answers import Answer, answers, region_rates, search_name, setup_name
from pixelsem.report.effort import ends_with_success
from pixelsem.report.gallery import Gallery, GalleryItem
from pixelsem.report.html_tables import to_html
from pixelsem.report.page_charts import Bar, flow_chart, query_chart, rate_chart
from pixelsem.report.pages import data_block, data_uri, open_template
from pixelsem.report.success import success_tables
from pixelsem.report.tables import Table, level
from pixelsem.stage import StageInfo

#: With more classes than these a chart of all pairs says nothing.
_CLASSES = 20

#: Tables that another one on the page shows as well, and those that are open from the start.
_DOUBLED, _OPEN = ("success",), ("table2", "paired")


@dataclass(frozen=True)
class Picture:
    """A figure that another command drew: its ``name`` and the bytes of a ``png`` or ``svg`` file."""

    name: str
    kind: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Found:
    """What another command wrote: the folder's or file's name, its tables and figures."""

    name: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Run:
    """A stage behind the numbers: its name (unique on the page), how to repeat it, and what ``stage.yaml`` says."""

    name: str
    repeat: str
    info: StageInfo


@dataclass(frozen=True)
class Report:
    """What the page is about; ``confidence`` is the level of all intervals, ``notes`` say what is missing.

    ``runs`` go by the names of stages in ``setups``.
    """

    title: str
    setups: Sequence[Setup]
    runs: Mapping[str, Run]
    found: Sequence[Found] = ()
    notes: Sequence[str] = ()
    confidence: float = 0.95


def write_report(
    file: IO[bytes], report: Report, items: Iterable[GalleryItem], *, whole: int = 96, thumbnail: int = 112
) -> int:
    """Write the page; return how many searches are in its gallery. Items are taken and written one by one.

    Images of at most ``whole`` pixels a side are in the page as they are; of larger ones a picture of
    ``thumbnail`` pixels is, and their files are loaded from beside the page.
    """
    # Files beside a page on a disk are no "self" to it in every browser.
    head, tail = open_template("html_report", report.title, "data: blob: file: 'self'")
    for mark, content in _parts(report).items():
        head = head.replace(f"<!-- {mark} -->".encode(), content.encode())
    file.write(head)
    gallery = Gallery(whole=whole, thumbnail=thumbnail)
    for item in items:
        file.writelines(gallery.add(item))
    file.writelines(gallery.finish())
    about = {
        "setups": [{"name": setup_name(setup), "network": setup.network} for setup in report.setups],
        "stages": [{"name": run.name, "repeat": run.repeat, "seed": run.info.seed} for run in report.runs.values()],
        "blocks": gallery.blocks,
    }
    file.write(data_block("about", about))
    file.write(tail)
    return gallery.count


def _parts(report: Report) -> dict[str, str]:
    """Return the parts of the page that are there before its script runs; all text in them is escaped."""
    tables = [table for table in success_tables(report.setups, report.confidence) if table.name not in _DOUBLED]
    sources = _names(report, [name for setup in report.setups for name in setup.stages])
    return {
        "question": _question(report),
        "answers": "".join(_answer(report, found) for found in answers(report.setups, report.confidence)),
        "notes": _notes(report.notes),
        "charts": "".join(_figure(*chart) for chart in _charts(report)),
        "tables": "".join(_table(table, sources, table.name in _OPEN) for table in tables),
        "found": "".join(map(_found, report.found)),
        "runs": "".join(_run(number, run) for number, run in enumerate(report.runs.values())),
    }


def _question(report: Report) -> str:
    networks = sorted({setup.network for setup in report.setups})
    about = networks[0] if len(networks) == 1 else "each classifier"
    return f"Where is {escape(about)} fragile: in the object or around it?"


def _answer(report: Report, found: Answer) -> str:
    first, *rest = map(escape, found.sentences)
    more = "".join(f"<p>{sentence}</p>" for sentence in rest)
    return (
        f'<article class="answer"><p class="about">{escape(found.about)}</p><h2>{escape(found.verdict)}</h2>'
        f'<p class="first">{first}</p>{more}{_names(report, found.stages)}</article>'
    )


def _names(report: Report, stages: Sequence[str]) -> str:
    """Return links to the runs behind something."""
    links = [
        f'<a href="#run-{number}">{escape(run.name)}</a> ({escape(run.info.command)}, seed {run.info.seed})'
        for number, (name, run) in enumerate(report.runs.items())
        if name in stages
    ]
    return f'<p class="from">From {", ".join(links)}</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside class="missing" aria-label="Notes"><h2>Note</h2><ul>{lines}</ul></aside>'


def _charts(report: Report) -> Iterator[tuple[str, str, str]]:
    """Yield (title, chart, what is below it)."""
    rates = {
        search_name(setup, goal): [Bar(region, region, found) for region, found in by_region.items()]
        for setup in report.setups
        for goal in GOALS
        if (by_region := region_rates(setup, goal, report.confidence))
    }
    if rates:
        reached = any(record.target is not None for setup in report.setups for record in setup.records)
        targeted = " (targeted: that reached at least one target)" if reached else ""
        below = f"Share of the attacked images that were misclassified{targeted}, Wilson {level(report.confidence)}."
        yield "Success by region", rate_chart(rates if len(rates) > 1 else {"": next(iter(rates.values()))}), below
    for setup in report.setups:
        about = f" · {setup_name(setup)}" if len(report.setups) > 1 else ""
        yield from ((title + about, chart, below) for title, chart, below in _setup_charts(setup))


def _setup_charts(setup: Setup) -> Iterator[tuple[str, str, str]]:
    searches = metrics.attacked(metrics.select(setup.records, "untargeted"))
    series = {
        region: ([r.queries for r in own if r.success], len(own))
        for region in setup.regions
        if (own := [record for record in searches if record.region == region])
    }
    steps = {query for found, _ in series.values() for query in found}
    if ends_with_success(setup) and len(steps) > 1:  # else all took the same number of steps
        below = "Untargeted searches that had succeeded within so many candidates scored by the model, of all searches."
        yield "Success by queries", query_chart(series), below
    hits = [record for record in searches if record.success and record.after is not None]
    counts = Counter((record.label, record.after.class_) for record in hits if record.after is not None)
    classes = sorted({name for pair in counts for name in pair})
    if 1 < len(classes) <= _CLASSES:
        below = "Untargeted successes of all regions by the class of the image (rows) and the one it was taken for."
        yield "From class to class", flow_chart(classes, counts), below


def _figure(title: str, chart: str, below: str) -> str:
    caption = f"<figcaption><h3>{escape(title)}</h3><p>{escape(below)}</p></figcaption>"
    return f'<figure class="panel">{caption}<div class="wide" tabindex="0" role="group">{chart}</div></figure>'


def _table(table: Table, sources: str, shown: bool) -> str:
    mark = " open" if shown else ""
    return f'<details class="panel"{mark}><summary>{escape(table.title)}</summary>{to_html(table)}{sources}</details>'


def _found(found: Found) -> str:
    """Return what another command wrote, as it wrote it."""
    source = f'<p class="from">From {escape(found.name)}, as it was written</p>'
    pictures = "".join(_picture(picture, source) for picture in found.pictures)
    return pictures + "".join(_table(table, source, False) for table in found.tables)


def _picture(picture: Picture, source: str) -> str:
    kind = "svg+xml" if picture.kind == "svg" else picture.kind
    image = f'<img class="plate" alt="{escape(picture.name)}" src="{data_uri(picture.data, kind)}">'
    return f'<figure class="panel"><figcaption><h3>{escape(picture.name)}</h3></figcaption>{image}{source}</figure>'


def _run(number: int, run: Run) -> str:
    info = run.info
    model = info.model or {}
    facts = {
        "Command": info.command,
        "Seed": info.seed,
        "Model": model.get("name"),
        "Weights": str(model["digest"])[:12] if "digest" in model else None,
        "Identity": info.identity[:12],
        "Counts": _pairs(info.counts or {}),
        "Time": None if info.wall_time is None else f"{info.wall_time:,.0f} s",
        "Versions": _pairs(info.versions or {}),
        "Options": _pairs(info.options),
    }
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    head = f'<article class="panel run" id="run-{number}"><h3>{escape(run.name)}</h3><pre>{escape(run.repeat)}</pre>'
    return f"{head}<dl>{rows}</dl></article>"


def _pairs(values: Mapping[str, Any]) -> str:
    """Return options or counts in one line, those that were not given left out."""
    return ", ".join(f"{name.replace('_', '-')} {_plain(value)}" for name, value in values.items() if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
