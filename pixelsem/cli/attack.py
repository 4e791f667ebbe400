"""``pixelsem attack NAME``: adversarial images whose changes stay inside a region."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pixelsem.attacks.registry import ATTACKS, AttackInfo
from pixelsem.attacks.settings import AttackSettings, DeviceOptions, EvaluatorOptions, GoalOptions, RegionOptions
from pixelsem.cli import attack_patch, attack_split
from pixelsem.cli.console import Console
from pixelsem.cli.inputs import newest_stage, resolve_inputs
from pixelsem.cli.options import (
    EngineOptions,
    OutputOptions,
    SelectionOptions,
    ShardOptions,
    add_defaults,
    as_text,
    expand,
)
from pixelsem.cli.stages import close_output, exit_with, masks_identity, open_output, options_of
from pixelsem.engine.shards import take
from pixelsem.errors import EXIT_SOME_FAILED, PixelsemError
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions
from pixelsem.stage import Stage, png_names

if TYPE_CHECKING:
    from pixelsem.engine.attacking import AttackRun, Tally
    from pixelsem.engine.processes import ProcessEngine
    from pixelsem.engine.ray_engine import RayEngine
    from pixelsem.engine.searching import Picture, Searcher
    from pixelsem.models import Classifier
    from pixelsem.sources import ImageItem, ImageSource

Images = Annotated[
    list[Path] | None,
    typer.Argument(help="An image folder, an image, or a segmentation stage (default: stdin, or the newest stage)."),
]


def register(app: typer.Typer) -> None:
    """Add the ``attack`` group with one command per registered attack."""
    group = typer.Typer(help="Make adversarial images whose changes stay inside a region.", no_args_is_help=True)
    for info in ATTACKS.values():
        summary = f"{info.summary} ({info.paper})"
        if info.name == attack_patch.NAME:
            attack_patch.register(group, _command(info), summary)
        else:
            group.command(info.name, help=summary)(_command(info))
    group.command("list")(_list)
    group.command("split")(expand(attack_split.attack_split))
    app.add_typer(group, name="attack")


def _command(info: AttackInfo) -> Callable[..., None]:
    def load_preset(context: typer.Context, value: str | None) -> str | None:
        if value is not None and not context.resilient_parsing:
            if value not in info.presets:
                raise PixelsemError(f"--preset: {value!r} is none of {', '.join(info.presets)}")
            fixed = {name: as_text(setting) for name, setting in info.presets[value].items()}
            add_defaults(context, fixed, first=False)
        return value

    def attack(
        *,
        context: typer.Context,
        images: Images = None,
        preset: str | None = None,
        settings: AttackSettings,
        region: RegionOptions,
        goal: GoalOptions,
        model: ModelOptions,
        evaluator: DeviceOptions,
        selection: SelectionOptions,
        sharding: ShardOptions,
        spreading: EngineOptions,
        output: OutputOptions,
    ) -> None:
        groups = (settings, region, goal, model, evaluator, selection, sharding, spreading, output)
        _AttackCommand(context, info, *groups).run(images, preset)

    text = f"Settings of a paper: {', '.join(info.presets)}. Options given beside it win."
    choice = typer.Option(help=text, is_eager=True, callback=load_preset, hidden=not info.presets)
    attack.__annotations__ |= {
        "settings": info.settings,
        "preset": Annotated[str | None, choice],
        "evaluator": EvaluatorOptions if info.access == "black" else DeviceOptions,
    }
    return expand(attack)


def _list(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON on stdout.")] = False) -> None:
    """List every attack: its norm, what it needs of the model, the paper, the default budget."""
    rows = [
        {
            "name": info.name,
            "norm": info.norm,
            "budget": info.budget,
            "access": info.access,
            "targeted": info.targeted,
            "paper": info.paper,
            "summary": info.summary,
        }
        for info in ATTACKS.values()
    ]
    console = Console(as_json=as_json)
    if as_json:
        console.data(json.dumps(rows, ensure_ascii=False))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("Attack", "Norm", "Budget", "Box", "Paper", "What it does", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "norm", "budget", "access", "paper", "summary")))
    console.table(table)


@dataclass
class _AttackCommand:
    """One call of ``pixelsem attack NAME``: from its options to a finished stage."""

    context: typer.Context
    info: AttackInfo
    settings: AttackSettings
    region: RegionOptions
    goal: GoalOptions
    model: ModelOptions
    evaluator: DeviceOptions
    selection: SelectionOptions
    sharding: ShardOptions
    spreading: EngineOptions
    output: OutputOptions

    def run(self, images: list[Path] | None, preset: str | None) -> None:
        from pixelsem.sources import open_images, select

        started = time.monotonic()
        console = Console(quiet=self.output.quiet, as_json=self.output.json)
        if isinstance(self.evaluator, EvaluatorOptions) and self.evaluator.explain:
            self._explain(console)
            return
        self._check_goal()
        given = self._input(images, console)
        source = open_images(given)
        items = select(source.items, self.selection.limit, self.selection.sample, self.selection.seed)
        masks = self._masks(source, console)
        classifier = self._classifier(console)
        engine = self._engine(masks, classifier, console)
        run, stage = self._prepare(given, source, items, masks, preset, classifier, engine)
        console.note(self._forecast(run, engine, classifier.preprocessing.size))
        with console.progress(f"attack {self.info.name}", run.total()) as bar:
            tally = run.run(lambda tally: bar.update(_done(tally), _detail(tally, started)))
        counts = self._counts(stage, tally, len(run.items))
        close_output(stage, counts, started)
        self._summary(console, tally, stage, time.monotonic() - started)
        if "maps" in counts:
            console.note(f"{counts['vulnerable_pixels']:,} vulnerable pixels in {counts['maps']} maps")
        summary = {"counts": counts, "failures": tally.failures, "complete": not tally.out_of_time}
        console.result(stage.path, summary)
        exit_with(console, tally.failures)
        if tally.out_of_time:
            raise typer.Exit(EXIT_SOME_FAILED)

    def _check_goal(self) -> None:
        if not self.info.targeted and (self.goal.targeted or self.goal.target is not None):
            wanted = "--targeted" if self.goal.target is None else "--target"
            raise PixelsemError(f"{wanted}: `attack {self.info.name}` has no targeted form; leave it out")

    def _input(self, images: list[Path] | None, console: Console) -> Path:
        paths = resolve_inputs(images, self.output.run, ("segment",), note=console.note)
        if len(paths) > 1:
            raise PixelsemError(f"{len(paths)} inputs given; an attack takes one folder, image or stage at a time")
        return paths[0]

    def _masks(self, source: ImageSource, console: Console) -> Path | None:
        """Return where masks come from: --masks, the input stage itself, or the newest stage of the same images."""
        if self.region.regions == ("original",) or self.region.masks is not None:
            return self.region.masks
        if source.stage is not None and source.stage.info.kind == "segment":
            return source.stage.path

        def same_images(stage: Stage) -> bool:
            return (stage.path / stage.info.inputs.get("images", "")).resolve() == source.root.resolve()

        newest = newest_stage(self.output.run, ("segment",), same_images)
        if newest is not None:
            console.note(f"masks: {newest}")
        return newest

    def _classifier(self, console: Console) -> Classifier:
        classifier = load(self.model)
        if not classifier.trained:
            console.problem(f"{classifier.name} has no trained weights; results mean nothing")
        return classifier

    def _prepare(
        self,
        given: Path,
        source: ImageSource,
        items: list[ImageItem],
        masks: Path | None,
        preset: str | None,
        classifier: Classifier,
        engine: Searcher | ProcessEngine | RayEngine,
    ) -> tuple[AttackRun, Stage]:
        from pixelsem.engine.attacking import AttackRun

        plan = replace(engine.plan, picture=self._picture())
        target = None if self.goal.target is None else plan.targets(0, len(classifier.class_names))[0]
        stage = self._open_stage(given, source, items, masks, preset, classifier, target)
        names = png_names(item.id for item in items)  # of all, so that parts never give two images one name
        run = AttackRun(plan, engine, stage, take(items, self.sharding.part), names)
        stage.save(planned=run.total())
        return run, stage

    def _engine(
        self, masks: Path | None, classifier: Classifier, console: Console
    ) -> Searcher | ProcessEngine | RayEngine:
        from pixelsem.engine.processes import ProcessEngine
        from pixelsem.engine.searching import AttackJob
        from pixelsem.fitness.evaluator import pick_devices

        job = AttackJob(
            self.info.name, self.settings, self.region, self.goal, self.model, self.evaluator, masks,
            self.selection.seed, classifier.digest,
        )  # fmt: skip
        if self.spreading.engine == "ray":
            from pixelsem.engine.ray_engine import RayEngine

            names, where = classifier.class_names, self.spreading
            return RayEngine(job, names, address=where.address, workers=where.ray_workers, note=console.problem)
        devices = pick_devices(self.evaluator.device)
        if len(devices) == 1:
            searcher = job.on(devices[0]).open(classifier)
            searcher.evaluator.on_measure = lambda: console.note(_MEASURING)
            return searcher
        engine = ProcessEngine(job, classifier.class_names, devices, console.problem)
        self.context.call_on_close(engine.close)
        return engine

    def _picture(self) -> Picture | None:
        if not self.info.picture:
            return None
        module, name = self.info.picture.split(":")
        return cast("Picture", getattr(import_module(f"pixelsem.report.{module}"), name))

    def _explain(self, console: Console) -> None:
        """Say how candidates of this attack would be scored: a table for people, or all as JSON."""
        from pixelsem.engine.searching import open_evaluator
        from pixelsem.fitness.evaluator import pick_devices
        from pixelsem.report.scoring import plan_table
        from pixelsem.report.tables import to_plain
        from pixelsem.report.terminal import to_rich

        pixels, population = getattr(self.settings, "pixels", 1), getattr(self.settings, "population", 400)
        first = replace(self.evaluator, device=pick_devices(self.evaluator.device)[0])
        evaluator = open_evaluator(load(self.model), first)
        evaluator.on_measure = lambda: console.note(_MEASURING)
        evaluator.attach_grey()
        way = evaluator.way_for(pixels, population * self.evaluator.in_flight)
        table = plan_table(evaluator.explain(pixels), way, pixels, evaluator.activation_bytes(pixels))
        console.table(to_rich(table, console.rich.width))
        if self.output.json:
            console.data(json.dumps({"way": asdict(way), "nodes": to_plain(table)}))

    def _open_stage(
        self,
        given: Path,
        source: ImageSource,
        items: list[ImageItem],
        masks: Path | None,
        preset: str | None,
        model: Classifier,
        target: int | None,
    ) -> Stage:
        from pixelsem.models.labels import labels_identity
        from pixelsem.sources import fingerprint

        region = self.region.to_dict()
        # By name or by number, with --targeted or without: the same target is the same run.
        targeted = self.goal.targeted or target is not None
        goal = self.goal.to_dict() | {"target": target, "targeted": targeted}
        identity = {
            "settings": self.settings.to_dict() | {n: masks_identity(p) for n, p in self.settings.mask_inputs.items()},
            "region": {name: value for name, value in region.items() if name != "masks"},
            "goal": {name: value for name, value in goal.items() if name not in ("time_limit", "labels", "attempts")},
            "labels": labels_identity(self.goal.labels),
            "seed": self.selection.seed,
            "precision": self.evaluator.precision,
            "model": model.digest,
            "classes": model.class_names,
            "images": fingerprint(items),
            "masks": masks_identity(masks) if masks and self.region.regions != ("original",) else None,
            # A search that is done is not done again for its image: a stage without them is another one.
            **({} if self.goal.attempts else {"attempts": False}),
        }
        groups = (
            self.settings, self.region, self.goal, self.model, self.evaluator, self.selection, self.spreading,
        )  # fmt: skip
        options = options_of(*groups, images=[given], preset=preset) | {"masks": masks}
        if Path(self.goal.labels).is_file():
            options["labels"] = str(Path(self.goal.labels).resolve())
        inputs = {"images": source.root} | ({"masks": masks} if masks else {})
        for name, path in self.settings.mask_inputs.items():
            options[name], inputs[name] = str(path.resolve()), path
        return open_output(
            self.context,
            f"attack-{self.info.name}-{self.region.region.replace(':', '-')}",
            kind="attack",
            identity=identity,
            options=options,
            inputs=inputs,
            output=self.output,
            modules=("numpy", "torch", "torchvision"),
            model={"name": model.name, "digest": model.digest},
            seed=self.selection.seed,
            shard=self.sharding.part,
        )

    def _forecast(self, run: AttackRun, engine: Searcher | ProcessEngine | RayEngine, size: tuple[int, int]) -> str:
        """Say how much there is to do at most, on images of this size; the progress bar says how long it takes."""
        from pixelsem.engine.ray_engine import RayEngine

        searches = run.total()
        budget = searches * self.settings.budget_in(size[0] * size[1])
        what = f"{len(run.items)} images, {searches} searches, at most {budget:,} queries"
        if isinstance(engine, RayEngine):  # how fast its machines are is not known here
            return what
        rate = engine.measure_rate(self.info.access, getattr(self.settings, "pixels", 1), searches)
        return f"{what}: {_duration(budget / rate)} at {rate:,.0f} queries/s"

    def _counts(self, stage: Stage, tally: Tally, images: int) -> dict[str, int]:
        """Count what the stage holds, whichever run put it there; only ``resumed`` and ``failed`` are of this run."""
        outcomes: Counter[str] = Counter()
        successes = 0
        maps: list[int] = []
        for record in stage.attack_records():
            outcomes[record.outcome] += 1
            successes += record.success
            maps += [] if record.vulnerable_pixels is None else [record.vulnerable_pixels]
        return {
            "images": images,
            "searches": tally.total,
            "searched": outcomes.pop("attacked", 0),
            "successes": successes,
            "resumed": tally.resumed,
            "failed": len(tally.failures),
            **({"maps": len(maps), "vulnerable_pixels": sum(maps)} if maps else {}),
            **{name.replace("-", "_"): count for name, count in sorted(outcomes.items())},
        }

    def _summary(self, console: Console, tally: Tally, stage: Stage, seconds: float) -> None:
        rate = tally.queries / seconds if seconds else 0.0
        if tally.resumed:
            console.note(f"{tally.resumed} searches were done before")
        console.note(
            f"{tally.found} of {tally.searched} searches succeeded; {tally.queries:,} queries "
            f"in {_duration(seconds)} ({rate:,.0f}/s)"
        )
        for reason, count in sorted(tally.skipped.items()):
            console.note(f"{count} searches skipped: {_SKIPPED[reason]}")
        if tally.out_of_time:
            console.problem("the time limit ended the run; the same command goes on from there")


_MEASURING = "measuring how this model is scored fastest; remembered for the next run"

_SKIPPED = {
    "misclassified": "the model is wrong on the clean image",
    "flagged-mask": "the mask is flagged as degenerate (--flagged use takes it all the same)",
    "empty-region": "the region has no pixel",
    "is-target": "the image is of the target's class already",
}


def _done(tally: Tally) -> float:
    return tally.searched + sum(tally.skipped.values()) + tally.resumed


def _detail(tally: Tally, started: float) -> str:
    rate = tally.queries / max(time.monotonic() - started, 1e-9)
    return f"{tally.found} found, {rate:,.0f} queries/s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
