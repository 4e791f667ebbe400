"""``pixelsem defend jpeg`` and its like: images as a transform leaves them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.options import OutputOptions, SelectionOptions, ShardOptions, expand
from pixelsem.cli.stages import close_output, exit_with, open_output, options_of
from pixelsem.engine.shards import take
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option, option_name
from pixelsem.transforms.registry import TRANSFORMS, TransformInfo
from pixelsem.transforms.specs import Defense, parse_values

if TYPE_CHECKING:
    from pixelsem.engine.defending import DefendSummary, Job
    from pixelsem.sources import ImageSource
    from pixelsem.stage import Stage

Images = Annotated[
    list[Path] | None,
    typer.Argument(
        help="An image folder, an image, or a stage: of an attack its clean and its adversarial images "
        "(default: stdin, or the newest attack stage)."
    ),
]


@dataclass(frozen=True)
class TransformOptions(Settings):
    """How a transform runs, and whether once or once per strength."""

    sweep: str | None = option(
        None,
        "One stage for each of several values of a setting: SETTING=FIRST:LAST:STEP or SETTING=A/B/C, such as "
        "q=95:5:-10 or k=3/5/7.",
        metavar="SETTING=VALUES",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int | None = option(None, "Images transformed together (default: as many as are quick).", low=1)


def register(group: typer.Typer) -> None:
    """Add one command per transform to the group ``defend``."""
    for info in TRANSFORMS.values():
        summary = f"{info.summary} ({info.paper}) In front of a model (--defense), gradients: {info.gradient}."
        group.command(info.name, help=summary)(_command(info))


def _command(info: TransformInfo) -> Callable[..., None]:
    def defend(
        *,
        context: typer.Context,
        images: Images = None,
        settings: Settings,
        transform: TransformOptions,
        selection: SelectionOptions,
        sharding: ShardOptions,
        output: OutputOptions,
    ) -> None:
        _Command(context, info, settings, transform, selection, sharding, output).run(images)

    defend.__annotations__["settings"] = info.settings
    return expand(defend)


@dataclass
class _Command:
    """One call of ``pixelsem defend NAME``."""

    context: typer.Context
    info: TransformInfo
    settings: Settings
    transform: TransformOptions
    selection: SelectionOptions
    sharding: ShardOptions
    output: OutputOptions

    def run(self, images: list[Path] | None) -> None:
        from pixelsem.fitness.evaluator import pick_device
        from pixelsem.sources import fingerprint, open_images

        console = Console(quiet=self.output.quiet, as_json=self.output.json)
        defenses = self._defenses()
        device = pick_device(self.transform.device)
        paths = resolve_inputs(images, self.output.run, ("attack",), note=console.note)
        if len(paths) > 1:
            raise PixelsemError(f"{len(paths)} inputs given; defend takes one folder, image or stage at a time")
        source = open_images(paths[0])
        jobs = self._jobs(source)
        content = fingerprint([item for job in jobs for item in job.items])
        part = take(jobs, self.sharding.part)
        failures: dict[str, str] = {}
        for defense in defenses:
            started = time.monotonic()
            stage = self._open_stage(paths[0], source, defense, content, len(part))
            summary = self._transform(stage, defense, part, device, console)
            close_output(stage, summary.counts, started)
            found = f"{summary.done} records, {summary.adversarial} with an adversarial image"
            console.note(f"{defense.text}: {found}, {len(summary.failed)} failed")
            console.result(stage.path, {"counts": summary.counts, "failures": summary.failed})
            failures |= summary.failed
        exit_with(console, failures)

    def _defenses(self) -> list[Defense]:
        """Return the transform once, or once per value of ``--sweep``."""
        if self.transform.sweep is None:
            return [Defense(self.info, self.settings)]
        if self.output.output is not None:
            raise PixelsemError("--sweep: makes several stages; leave -o out, or choose their parent with --run")
        name, values = parse_values(self.info.settings, self.transform.sweep, "--sweep")
        if name == "seed":  # one option for both: a stage could not note which value was whose
            raise PixelsemError("--sweep: seed cannot be swept, as --seed also draws --sample; run once per --seed")
        source = self.context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise PixelsemError(
                f"{option_name(name)} is swept by --sweep {self.transform.sweep}; leave one of them out"
            )
        return [
            Defense(self.info, self.info.settings.from_dict(self.settings.to_dict() | {name: value}))
            for value in dict.fromkeys(values)
        ]

    def _jobs(self, source: ImageSource) -> Sequence[Job]:
        from pixelsem.engine.defending import attack_jobs, plain_jobs
        from pixelsem.sources import select

        items = select(source.items, self.selection.limit, self.selection.sample, self.selection.seed)
        if source.stage is not None and source.stage.info.kind in ("attack", "defend"):
            return attack_jobs(source.stage, {item.id for item in items})
        return plain_jobs(items)

    def _open_stage(self, given: Path, source: ImageSource, defense: Defense, content: str, planned: int) -> Stage:
        options = options_of(defense.settings, self.transform, self.selection, images=[given]) | {"sweep": None}
        inputs: dict[str, Path] = {"images": source.root}
        model: dict[str, Any] | None = None
        identity: dict[str, Any] = {"defense": defense.identity, "images": content}
        if source.stage is not None and source.stage.info.kind in ("attack", "defend"):
            inputs[source.stage.info.kind], model = source.stage.path, source.stage.info.model
            # Attacks that found nothing on the same images have the same files, but not the same records.
            identity["searches"] = source.stage.info.contents
        return open_output(
            self.context,
            f"defend-{self.info.name}-{defense.strength:g}",
            kind="defend",
            identity=identity,
            options=options,
            inputs=inputs,
            output=self.output,
            modules=("numpy", "torch"),
            model=model,
            seed=self.selection.seed,
            shard=self.sharding.part,
            planned=planned,
        )

    def _transform(
        self, stage: Stage, defense: Defense, jobs: Sequence[Job], device: Any, console: Console
    ) -> DefendSummary:
        from pixelsem.engine.defending import DefendRun

        run = DefendRun(defense, stage, device, self.transform.batch_size)
        with console.progress(f"defend {defense.text}", len(jobs)) as bar:
            return run.run(jobs, lambda summary: bar.update(summary.done + len(summary.failed)))
