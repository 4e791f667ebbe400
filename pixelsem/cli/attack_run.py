"""One call of ``pixelsem attack NAME``: from its options to a finished stage."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from pixelsem.attacks.registry import AttackInfo
from pixelsem.attacks.settings import AttackSettings, DeviceOptions, EvaluatorOptions, GoalOptions, RegionOptions
from pixelsem.cli.console import Console
from pixelsem.cli.inputs import find_masks, resolve_inputs
from pixelsem.cli.options import EngineOptions, OutputOptions, SelectionOptions, ShardOptions
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
    from pixelsem.engine.searching import AttackPlan, Picture, Searcher
    from pixelsem.models import Classifier
    from pixelsem.sources import ImageItem, ImageSource

_MEASURING = "measuring how this model is scored fastest; remembered for the next run"

_SKIPPED = {
    "misclassified": "the model is wrong on the clean image",
    "flagged-mask": "the mask is flagged as degenerate (--flagged use takes it all the same)",
    "empty-region": "the region has no pixel",
    "is-target": "the image is of the target's class already",
}


@dataclass(frozen=True)
class _Inputs:
    """What is attacked: the folder or stage as it was ``given``, the images in it, of all shards, and their masks."""

    given: Path
    source: ImageSource
    items: list[ImageItem]
    masks: Path | None


@dataclass
class AttackCommand:
    """The options of one call; :meth:`run` does what they ask for."""

    context: typer.Context
    info: AttackInfo
    preset: str | None
    settings: AttackSettings
    region: RegionOptions
    goal: GoalOptions
    model: ModelOptions
    evaluator: DeviceOptions
    selection: SelectionOptions
    sharding: ShardOptions
    spreading: EngineOptions
    output: OutputOptions

    def __post_init__(self) -> None:
        self.console = Console(quiet=self.output.quiet, as_json=self.output.json)

    def run(self, images: list[Path] | None) -> None:
        """Attack; print the stage. Raises :class:`PixelsemError`, and what ends a command with its exit code."""
        started = time.monotonic()
        if isinstance(self.evaluator, EvaluatorOptions) and self.evaluator.explain:
            self._explain()
            return
        self._check_goal()
        inputs = self._inputs(images)
        classifier = self._classifier()
        engine = self._engine(inputs.masks, classifier)
        run = self._prepare(inputs, classifier, engine)
        self.console.note(self._forecast(run, engine, classifier.preprocessing.size))
        with self.console.progress(f"attack {self.info.name}", run.total()) as bar:
            tally = run.run(lambda tally: bar.update(_done(tally), _detail(tally, started)))
        self._finish(run, tally, started)

    def _check_goal(self) -> None:
        if not self.info.targeted and (self.goal.targeted or self.goal.target is not None):
            wanted = "--targeted" if self.goal.target is None else "--target"
            raise PixelsemError(f"{wanted}: `attack {self.info.name}` has no targeted form; leave it out")
        if self.goal.repeats > 1 and not self.settings.draws:
            raise PixelsemError(
                f"--repeats: `attack {self.info.name}` draws nothing at random with these settings, so repeats would "
                "all be alike; leave it out"
            )

    def _inputs(self, images: list[Path] | None) -> _Inputs:
        from pixelsem.sources import open_images, select

        paths = resolve_inputs(images, self.output.run, ("segment",), note=self.console.note)
        if len(paths) > 1:
            raise PixelsemError(f"{len(paths)} inputs given; an attack takes one folder, image or stage at a time")
        source = open_images(paths[0])
        items = select(source.items, self.selection.limit, self.selection.sample, self.selection.seed)
        masks = find_masks(source, self.region, self.output.run, self.console.note)
        return _Inputs(paths[0], source, items, masks)

    def _classifier(self) -> Classifier:
        classifier = load(self.model)
        if not classifier.trained:
            self.console.problem(f"{classifier.name} has no trained weights; results mean nothing")
        return classifier

    def _engine(self, masks: Path | None, classifier: Classifier) -> Searcher | ProcessEngine | RayEngine:
        from pixelsem.engine.processes import ProcessEngine
        from pixelsem.engine.searching import AttackJob
        from pixelsem.fitness.evaluator import pick_devices

        job = AttackJob(
            self.info.name, self.settings, self.region, self.goal, self.model, self.evaluator, masks,
            self.selection.seed, classifier.digest,
        )  # fmt: skip
        names, problem = classifier.class_names, self.console.problem
        if self.spreading.engine == "ray":
            from pixelsem.engine.ray_engine import RayEngine

            where = self.spreading
            return RayEngine(job, names, address=where.address, workers=where.ray_workers, note=problem)
        devices = pick_devices(self.evaluator.device)
        if len(devices) == 1:
            searcher = job.on(devices[0]).open(classifier)
            searcher.evaluator.on_measure = self._say_it_measures
            return searcher
        engine = ProcessEngine(job, names, devices, problem)
        engine.on_measure = self._say_it_measures
        self.context.call_on_close(engine.close)
        return engine

    def _say_it_measures(self) -> None:
        self.console.note(_MEASURING)

    def _prepare(
        self, inputs: _Inputs, classifier: Classifier, engine: Searcher | ProcessEngine | RayEngine
    ) -> AttackRun:
        from pixelsem.engine.attacking import AttackRun

        plan = replace(engine.plan, picture=self._picture())
        stage = self._open_stage(inputs, classifier, plan)
        names = png_names(item.id for item in inputs.items)  # of all, so that parts never give two images one name
        run = AttackRun(plan, engine, stage, take(inputs.items, self.sharding.part), names)
        stage.save(planned=run.total())
        return run

    def _picture(self) -> Picture | None:
        if not self.info.picture:
            return None
        module, name = self.info.picture.split(":")
        return cast("Picture", getattr(import_module(f"pixelsem.report.{module}"), name))

    def _open_stage(self, inputs: _Inputs, model: Classifier, plan: AttackPlan) -> Stage:
        groups = (
            self.settings, self.region, self.goal, self.model, self.evaluator, self.selection, self.spreading,
        )  # fmt: skip
        options = options_of(*groups, images=[inputs.given], preset=self.preset) | {"masks": inputs.masks}
        if Path(self.goal.labels).is_file():
            options["labels"] = str(Path(self.goal.labels).resolve())
        roots = {"images": inputs.source.root} | ({"masks": inputs.masks} if inputs.masks else {})
        for name, path in self.settings.mask_inputs.items():
            options[name], roots[name] = str(path.resolve()), path
        return open_output(
            self.context,
            f"attack-{self.info.name}-{self.region.region.replace(':', '-')}",
            kind="attack",
            identity=self._identity(inputs, model, plan),
            options=options,
            inputs=roots,
            output=self.output,
            modules=("numpy", "torch", "torchvision"),
            model={"name": model.name, "digest": model.digest},
            seed=self.selection.seed,
            shard=self.sharding.part,
        )

    def _identity(self, inputs: _Inputs, model: Classifier, plan: AttackPlan) -> dict[str, object]:
        """Return all that can change the results."""
        from pixelsem.models.labels import labels_identity
        from pixelsem.sources import fingerprint

        region = self.region.to_dict()
        target = None if self.goal.target is None else plan.targets(0, len(model.class_names))[0]
        # By name or by number, with --targeted or without: the same target is the same run.
        goal = self.goal.to_dict() | {"target": target, "targeted": self.goal.targeted or target is not None}
        masks = inputs.masks
        return {
            "settings": self.settings.to_dict() | {n: masks_identity(p) for n, p in self.settings.mask_inputs.items()},
            "region": {name: value for name, value in region.items() if name != "masks"},
            "goal": {name: value for name, value in goal.items() if name not in ("time_limit", "labels", "attempts")},
            "labels": labels_identity(self.goal.labels),
            "seed": self.selection.seed,
            "precision": self.evaluator.precision,
            "model": model.digest,
            "classes": model.class_names,
            "images": fingerprint(inputs.items),
            "masks": masks_identity(masks) if masks and self.region.regions != ("original",) else None,
            # A search that is done is not done again for its image: a stage without them is another one.
            **({} if self.goal.attempts else {"attempts": False}),
        }

    def _forecast(self, run: AttackRun, engine: Searcher | ProcessEngine | RayEngine, size: tuple[int, int]) -> str:
        """Say how much there is to do at most, on images of this size; the progress bar says how long it takes."""
        from pixelsem.engine.ray_engine import RayEngine

        searches, left = run.total(), run.left()
        budget = left * self.settings.budget_in(size[0] * size[1])
        done = "" if left == searches else f", {searches - left} of them done before"
        what = f"{len(run.items)} images, {searches} searches{done}, at most {budget:,} queries"
        if not left or isinstance(engine, RayEngine):  # how fast its machines are is not known here
            return what
        rate = engine.measure_rate(self.info.access, getattr(self.settings, "pixels", 1), left)
        return f"{what}: {_duration(budget / rate)} at {rate:,.0f} queries/s"

    def _finish(self, run: AttackRun, tally: Tally, started: float) -> None:
        """Note what the stage holds, print it, and leave with the exit code."""
        stage = run.stage
        counts = self._counts(stage, tally, len(run.items))
        close_output(stage, counts, started)
        self._summary(tally, time.monotonic() - started)
        if "maps" in counts:
            self.console.note(f"{counts['vulnerable_pixels']:,} vulnerable pixels in {counts['maps']} maps")
        summary = {"counts": counts, "failures": tally.failures, "complete": not tally.out_of_time}
        self.console.result(stage.path, summary)
        exit_with(self.console, tally.failures)
        if tally.out_of_time:
            raise typer.Exit(EXIT_SOME_FAILED)

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

    def _summary(self, tally: Tally, seconds: float) -> None:
        rate = tally.queries / seconds if seconds else 0.0
        if tally.resumed:
            self.console.note(f"{tally.resumed} searches were done before")
        self.console.note(
            f"{tally.found} of {tally.searched} searches succeeded; {tally.queries:,} queries "
            f"in {_duration(seconds)} ({rate:,.0f}/s)"
        )
        for reason, count in sorted(tally.skipped.items()):
            self.console.note(f"{count} searches skipped: {_SKIPPED[reason]}")
        if tally.out_of_time:
            self.console.problem("the time limit ended the run; the same command goes on from there")

    def _explain(self) -> None:
        """Say how candidates of this attack would be scored: a table for people, or all as JSON."""
        from pixelsem.engine.searching import open_evaluator
        from pixelsem.fitness.evaluator import pick_devices
        from pixelsem.report.scoring import plan_table
        from pixelsem.report.tables import to_plain
        from pixelsem.report.terminal import to_rich

        pixels, population = getattr(self.settings, "pixels", 1), getattr(self.settings, "population", 400)
        first = replace(self.evaluator, device=pick_devices(self.evaluator.device)[0])
        evaluator = open_evaluator(load(self.model), first)
        evaluator.on_measure = self._say_it_measures
        evaluator.attach_grey()
        way = evaluator.way_for(pixels, population * self.evaluator.in_flight)
        table = plan_table(evaluator.explain(pixels), way, pixels, evaluator.activation_bytes(pixels))
        self.console.table(to_rich(table, self.console.rich.width))
        if self.output.json:
            self.console.data(json.dumps({"way": asdict(way), "nodes": to_plain(table)}))


def _done(tally: Tally) -> float:
    return tally.searched + sum(tally.skipped.values()) + tally.resumed


def _detail(tally: Tally, started: float) -> str:
    rate = tally.queries / max(time.monotonic() - started, 1e-9)
    return f"{tally.found} found, {rate:,.0f} queries/s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
