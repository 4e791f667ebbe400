"""``pixelsem defend detect``: a detector of adversarial images by steganalysis, trained and used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.options import OutputOptions, expand
from pixelsem.cli.stages import close_output, exit_with, open_output, options_of
from pixelsem.defenses.settings_detection import EnsembleSettings, FeatureSettings, SplitSettings
from pixelsem.errors import PixelsemError, StageError
from pixelsem.files import one_line
from pixelsem.settings import Settings, option
from pixelsem.stage import STAGE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelsem.defenses.detecting import Measured, Samples
    from pixelsem.defenses.detector import Detector
    from pixelsem.defenses.features import Extractor, FeatureType
    from pixelsem.records import DetectionRecord
    from pixelsem.stage import Stage

#: The description of the attack whose images a stage holds the scores of, as the attack's own ``stage.yaml`` has it.
ATTACK_FILE = "attack.yaml"

Attacked = Annotated[
    list[Path] | None, typer.Argument(help="One attack stage (default: stdin, or the newest attack stage).")
]
Scored = Annotated[
    list[Path] | None,
    typer.Argument(
        help="An attack stage, whose clean and adversarial images are scored; or an image folder, an image, or "
        "another stage (default: stdin, or the newest attack stage)."
    ),
]


@dataclass(frozen=True)
class ComputeOptions(Settings):
    """Where features are computed."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N; spam is computed there.")
    workers: int | None = option(None, "Processes that compute srm and srmq1 (default: one per core).", low=1)


def register(defend: typer.Typer) -> None:
    """Add the group ``detect`` to the group ``defend``."""
    group = typer.Typer(
        help="Tell adversarial images from clean ones by steganalysis (dong2020, §4.2).", no_args_is_help=True
    )
    group.callback()(lambda: None)
    group.command("train")(expand(detect_train))
    group.command("score")(expand(detect_score))
    defend.add_typer(group, name="detect")


def detect_train(
    *,
    context: typer.Context,
    stage: Attacked = None,
    features: FeatureSettings,
    ensemble: EnsembleSettings,
    split: SplitSettings,
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:
    """Train a detector on an attack's clean and adversarial images, and test it on those held out.

    Steganalysis features and an ensemble of Fisher linear discriminants (Liu et al. 2019, Kodovský et al. 2012), the
    threshold at equal priors. Takes the images that fooled the model (--attempts: all); a clean image and all that was
    made of it are on one side of the split. `pixelsem evaluate detection` makes the table.
    """
    from pixelsem.defenses.detector import DETECTOR_FILE, load_detector
    from pixelsem.metrics.setups import search_identity

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    given = _one(resolve_inputs(stage, output.run, ("attack",), note=console.note))
    samples, attack = _pairs_of(given, split, ensemble.seed)
    trained_on = ", ".join(filter(None, [_trained_on(attack), split.region]))
    about = trained_on, search_identity(attack.info, split.region)
    extractor = _extractor(_feature_type(features), compute)
    type = extractor.type
    made = open_output(
        context,
        f"detector-{type.kind}-{_short(attack)}",
        kind="train-detector",
        identity={
            "images": _fingerprint(samples),
            "features": [type.version, type.channels],
            "ensemble": ensemble.to_dict(),
            "split": split.to_dict(),
        },
        options=options_of(features, ensemble, split, compute, stage=[samples.root]),
        inputs={"images": samples.root},
        output=output,
        modules=("numpy", "scipy", "torch"),
        model=_described(type, about),
        seed=ensemble.seed,
    )
    _note_attack(made, attack)
    file = made.path / DETECTOR_FILE
    failures: dict[str, str] = {}
    if _is_done(made, file):
        console.note("trained before")
    else:
        failures = _train(console, made, samples, extractor, ensemble, split, about)
        close_output(made, _counts(detection_records(made), failures), started)
    records = detection_records(made)
    _tell_training(console, load_detector(file), records)
    console.note(f"use it with: pixelsem defend detect score … --detector {file}")
    summary = {"counts": made.info.counts, "detector": str(file), "failures": failures, **_summary(records)}
    console.result(made.path, summary)
    exit_with(console, failures)


def _pairs_of(path: Path, split: SplitSettings, seed: int) -> tuple[Samples, Stage]:
    """Return what is trained on, and the attack that made it; raises :class:`PixelsemError` for other images."""
    from pixelsem.defenses.detecting import draw, open_samples

    samples = open_samples(path, split.region, split.attempts)
    if samples.attack is None:
        raise PixelsemError(f"{samples.root}: is no attack stage; a detector learns from clean and adversarial images")
    return samples if split.sample is None else draw(samples, split.sample, seed), samples.attack


def _train(
    console: Console,
    made: Stage,
    samples: Samples,
    extractor: Extractor,
    ensemble: EnsembleSettings,
    split: SplitSettings,
    about: tuple[str, str],
) -> dict[str, str]:
    """Measure the samples and train on them; write the detector and the records. Return, by image, what failed."""
    from pixelsem.defenses.detecting import train_detector
    from pixelsem.defenses.detector import DETECTOR_FILE, save_detector

    with console.progress(f"measure {extractor.type.kind}", len(samples.items)) as bar:
        measured = _measure_all(samples, extractor, bar.update)
    try:
        with console.progress("train", 1) as bar:
            detector, records = train_detector(
                measured, extractor, ensemble, split.test_share, about,
                lambda size, count, error: bar.update(0, f"{count} of {size} features: P_E {100 * error:.1f} %"),
            )  # fmt: skip
    except PixelsemError:
        for problem in measured.failures.values():  # why too few are left
            console.problem(problem)
        raise
    save_detector(detector, made.path / DETECTOR_FILE)
    # Those of an earlier training, which could not read all, are of another detector.
    held = {record.key: record for record in detection_records(made)}
    made.replace([(held[record.key], record) for record in records if held.get(record.key, record) != record])
    made.append(*(record for record in records if record.key not in held))
    return measured.failures


def detect_score(
    *,
    context: typer.Context,
    images: Scored = None,
    detector: Annotated[Path, typer.Option(help="The detector's file, or the stage that made it.")],
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:
    """Score images with a detector: the mean vote in [-1, 1] of its discriminants, above 0 adversarial.

    Images that the detector was trained on, clean or adversarial, and in an attack stage all that was made of them,
    are scored too but kept apart: no rate counts them.
    """
    from pixelsem.defenses.detecting import Scorer, measure, open_samples
    from pixelsem.defenses.detector import detector_digest, load_detector

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    loaded = load_detector(detector)
    given = _one(resolve_inputs(images, output.run, ("attack",), note=console.note))
    samples = open_samples(given)
    extractor = _extractor(loaded.type, compute)
    digest = detector_digest(detector)
    made = open_output(
        context,
        f"detect-{loaded.type.kind}",
        kind="detect",
        identity={"detector": digest, "images": _fingerprint(samples)},
        options=options_of(compute, images=[given], detector=detector),
        inputs={"images": samples.root, "detector": detector},
        output=output,
        modules=("numpy", "scipy", "torch"),
        model=_described(loaded.type, (loaded.attack, loaded.search)) | {"digest": digest},
    )
    if samples.attack is not None:
        _note_attack(made, samples.attack)
    earlier = detection_records(made)
    known = {record.key for record in earlier}
    left = [sample for sample in samples.items if sample.key not in known]
    scorer = Scorer(loaded, loaded.type, earlier)
    failures: dict[str, str] = {}
    with console.progress(f"detect {loaded.type.kind}", len(left)) as bar:
        done = 0
        for chunk in measure(left, extractor):
            made.append(*scorer.score(chunk))
            failures |= chunk.failures
            done += len(chunk.samples) + len(chunk.failures)
            bar.update(done)
    scored = detection_records(made)
    counts = _counts(scored, failures)
    close_output(made, counts, started)
    _tell_scores(console, scored)
    console.result(made.path, {"counts": counts, "failures": failures, **_summary(scored)})
    exit_with(console, failures)


def _is_done(made: Stage, file: Path) -> bool:
    """Was the detector trained by an earlier run, of every image?"""
    return file.is_file() and (made.info.counts or {"failed": 1})["failed"] == 0


def detection_records(stage: Stage) -> list[DetectionRecord]:
    """Return the records of a stage of this group. Raises :class:`StageError` for a damaged one."""
    from pixelsem.records import DetectionRecord

    return [record for record in stage.records() if isinstance(record, DetectionRecord)]


def _one(paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise PixelsemError(f"{len(paths)} inputs given; a detector takes one at a time")
    return paths[0]


def _feature_type(features: FeatureSettings) -> FeatureType:
    """Return the type of features; raises :class:`PixelsemError` where what it needs is not installed."""
    from pixelsem.defenses.features import FeatureType
    from pixelsem.defenses.rich_models import sealwatch_version

    if features.features != "spam":
        sealwatch_version()
    return FeatureType(features.features, features.combination)


def _extractor(type: FeatureType, compute: ComputeOptions) -> Extractor:
    from pixelsem.defenses.features import Extractor
    from pixelsem.defenses.rich_models import default_workers
    from pixelsem.fitness.evaluator import pick_device

    return Extractor(type, pick_device(compute.device), compute.workers or default_workers())


def _short(attack: Stage) -> str:
    """Return an attack's name: ``i-fgm``."""
    return attack.info.command.removeprefix("attack ").removesuffix(" images").replace(" ", "-")


def _trained_on(attack: Stage) -> str:
    """Return an attack's name with its budget: ``i-fgm, δ=4``. Raises :class:`StageError` for one that is no number."""
    delta = attack.info.options.get("delta")
    try:
        return _short(attack) if delta is None else f"{_short(attack)}, δ={float(delta):g}"
    except (TypeError, ValueError, OverflowError) as error:
        file = attack.path / STAGE_FILE
        raise StageError(f"{file}: `options: delta` is no number ({one_line(error)}); correct it there") from error


def _described(type: FeatureType, about: tuple[str, str]) -> dict[str, Any]:
    """Return how a stage names its detector, for :mod:`pixelsem.cli.evaluate_detection`."""
    attack, search = about
    features = f"{type.kind} ({type.channels})"
    return {"name": "detector", "features": features, "trained_on": attack, "search": search}


def _fingerprint(samples: Samples) -> str:
    """Return the digest of what the images hold and of which records they are."""
    from pixelsem.sources import file_digest
    from pixelsem.stage import digest

    return digest({"\0".join(sample.key): file_digest(sample.path) for sample in samples.items})


def _note_attack(made: Stage, attack: Stage) -> None:
    """Keep what the attack was, so that the stage can be evaluated without the attack's own."""
    import msgspec

    from pixelsem.files import write_text
    from pixelsem.yaml_files import dump_yaml

    write_text(made.path / ATTACK_FILE, dump_yaml(msgspec.to_builtins(attack.info)))


def _measure_all(samples: Samples, extractor: Extractor, report: Callable[[int], None]) -> Measured:
    """Measure every sample, in memory."""
    from pixelsem.defenses.detecting import Measured, measure

    found = Measured()
    for chunk in measure(samples.items, extractor):
        found.samples += chunk.samples
        found.rows += chunk.rows
        found.digests += chunk.digests
        found.failures |= chunk.failures
        report(len(found.samples) + len(found.failures))
    return found


def _counts(records: Sequence[DetectionRecord], failures: dict[str, str]) -> dict[str, int]:
    seen = [record for record in records if record.split == "train"]
    return {
        "images": len(records),
        "clean": sum(record.kind == "clean" for record in records),
        "adversarial": sum(record.kind == "adversarial" for record in records),
        "trained_on": len(seen),
        "failed": len(failures),
    }


def _summary(records: Sequence[DetectionRecord]) -> dict[str, Any]:
    """Return the rates on images that were not trained on, for ``--json``."""
    from pixelsem.metrics.detection import measure

    test = [record for record in records if record.split == "test"]
    found = measure(test)
    unknown = [record.detected for record in test if record.kind == "unknown"]
    summary: dict[str, Any] = {"flagged": [sum(unknown), len(unknown)]} if unknown else {}
    if found is not None:
        summary |= {
            "test_images": found.images,
            "detected": found.detected.value,
            "false_alarms": found.false_alarms.value,
            "error": found.error.value,
            "area": found.area.value,
        }
    return summary


def _tell_training(console: Console, detector: Detector, records: Sequence[DetectionRecord]) -> None:
    ensemble = detector.ensemble
    size = ensemble.subspaces.shape[1]
    out_of_bag = "" if ensemble.error != ensemble.error else f", out-of-bag P_E {100 * ensemble.error:.2f} %"
    console.note(
        f"{len(ensemble)} discriminants of {size} of {ensemble.features} features, trained on {len(detector.seen)} "
        f"images{out_of_bag}"
    )
    _tell_scores(console, records)


def _tell_scores(console: Console, records: Sequence[DetectionRecord]) -> None:
    from pixelsem.metrics.detection import measure

    test = [record for record in records if record.split == "test"]
    seen, unknown = len(records) - len(test), [record.detected for record in test if record.kind == "unknown"]
    if seen:
        console.note(f"{seen} images were trained on, or made of such; the rates are without them")
    if unknown:
        console.note(f"{sum(unknown)} of {len(unknown)} images called adversarial")
    found = measure(test)
    if found is None:
        return
    hits, alarms = found.detected, found.false_alarms
    console.note(
        f"detected {100 * hits.value:.2f} % ({hits.successes}/{hits.n}), false alarms {100 * alarms.value:.2f} % "
        f"({alarms.successes}/{alarms.n}), P_E {100 * found.error.value:.2f} %, AUC {found.area.value:.3f}"
    )
