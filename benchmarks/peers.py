"""The same one-pixel search by pixelsem and by those who offer it: queries per second and seconds per image.

Everyone attacks the same images of the same model with the same population and number of generations, on the same
device with the same threads. Nobody stops early, so that the budgets are equal. What each asked the model is counted
at the model: a query is one image that went through it for a candidate of the search. A candidate that costs no
query (because it changes nothing) is not counted. Tests of success and clean images are counted apart.
"""

from __future__ import annotations

import argparse
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checkout
import numpy as np
import torch
from common import Row, add_common_options, middle, names, note, numbers, show, spread, wait_for, write_rows
from machine import describe, warn_if_busy
from numpy.typing import NDArray
from torch import Tensor, nn

from pixelsem import __version__
from pixelsem.attacks.base import Searches
from pixelsem.attacks.de import differential_evolution
from pixelsem.attacks.settings import DESettings
from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator, pick_device
from pixelsem.images import read_image
from pixelsem.models import load_classifier
from pixelsem.models.classifier import Classifier
from pixelsem.models.inputs import fit_image
from pixelsem.report.tables import Column, Table
from pixelsem.sources import open_images


class Tally:
    """Counts the images that go through a model.

    :ivar queries: those of candidates.
    :ivar checks: those that went through inside :meth:`checking`.
    """

    def __init__(self) -> None:
        self.queries = self.checks = 0
        self._checking = False

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Count what goes through the model in this block as checks."""
        before, self._checking = self._checking, True
        try:
            yield
        finally:
            self._checking = before

    def reset(self) -> None:
        """Forget what was counted."""
        self.queries = self.checks = 0

    def watch(self, network: nn.Module) -> nn.Module:
        """Return the network with a last layer that leaves the logits alone and counts their rows.

        Copies of the network count here too: a function is not copied with the layer that calls it.
        """

        def count(_: nn.Module, __: object, logits: Tensor) -> None:
            if self._checking:
                self.checks += len(logits)
            else:
                self.queries += len(logits)

        last = nn.Identity()
        last.register_forward_hook(count)
        return nn.Sequential(network, last)


@dataclass(frozen=True)
class Task:
    """What everyone has to do.

    :ivar classifier: on the device, its network watched by ``tally``.
    :ivar images: uint8 [N, 3, H, W] on the CPU.
    :ivar labels: int64 [N], the classes to get away from.
    """

    classifier: Classifier
    tally: Tally
    images: Tensor
    labels: Tensor
    pixels: int
    population: int
    generations: int
    batches: Sequence[int]
    device: torch.device
    seed: int

    @property
    def genes(self) -> int:
        """How many numbers a candidate is."""
        return 5 * self.pixels


class Contestant(ABC):
    """One way to do the task.

    :ivar version: of the library.
    :ivar population: candidates per generation; not everyone lets one choose.
    :ivar batch: images in one forward pass at most.
    """

    precision = "fp32"
    version: str
    batch: int

    def __init__(self, task: Task) -> None:
        self.task = task
        self.population = task.population

    @abstractmethod
    def attack(self, images: Tensor, labels: Tensor, generations: int) -> int:
        """Attack uint8 [N, 3, H, W] images; return of how many the best candidate is of another class."""

    def warm_up(self) -> None:
        """Get everything ready that a long run does once; here, choose the fastest batch size."""
        seconds = {batch: self._try(batch) for batch in self.task.batches}
        self.batch = min(seconds, key=lambda batch: seconds[batch])

    def _try(self, batch: int) -> float:
        self.batch = batch
        self.attack(self.task.images[:1], self.task.labels[:1], 1)
        start = time.perf_counter()
        self.attack(self.task.images[:1], self.task.labels[:1], 1)
        return time.perf_counter() - start

    def unit(self, images: Tensor) -> Tensor:
        """Return 8-bit images as the classifier takes them, on the device."""
        return images.to(self.task.device).float() / 255


class _CountingEvaluator(Evaluator):
    """The evaluator; clean images and confirmations are no queries.

    :ivar batch: candidates per forward pass of those scored last.
    """

    tally: Tally
    batch: int

    def score(self, edits: Edits) -> Tensor:
        logits = super().score(edits)
        self.batch = self.way(edits).batch_size
        return logits

    def attach(self, images: Tensor) -> Tensor:
        with self.tally.checking():
            return super().attach(images)

    def confirm(self, images: Tensor) -> Tensor:
        with self.tally.checking():
            return super().confirm(images)


class Pixelsem(Contestant):
    """``pixelsem attack de --no-early-stop``, all images in lock-step."""

    scorer = "dense"
    version = __version__

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._evaluator = _CountingEvaluator(
            task.classifier,
            device=task.device,
            precision=self.precision,
            batch_size=task.batches[0] if len(task.batches) == 1 else None,
            scorer=self.scorer,
        )
        self._evaluator.tally = task.tally

    def attack(self, images: Tensor, labels: Tensor, generations: int) -> int:
        task = self.task
        settings = DESettings(population=task.population, generations=generations, pixels=task.pixels, early_stop=False)
        searches = Searches.of(images, labels, seed=task.seed)
        before = self._evaluator.queries
        outcomes = list(differential_evolution(searches, self._evaluator, settings))
        if task.tally.queries < self._evaluator.queries - before:
            raise PixelsemError("the model was not seen to answer every query; nothing here can be believed")
        found = torch.stack([outcome.adversarial for outcome in outcomes])
        classes = self._evaluator.confirm(found).argmax(1).cpu()
        return int((classes != labels[[outcome.search for outcome in outcomes]]).sum())

    def warm_up(self) -> None:
        # The evaluator chooses its own batch size with the first candidates, as it does for every user.
        self.attack(self.task.images, self.task.labels, 1)
        self.batch = self._evaluator.batch


class PixelsemIncremental(Pixelsem):
    """The same with ``--evaluator incremental``."""

    scorer = "incremental"


class PixelsemIncrementalBf16(PixelsemIncremental):
    """The same with ``--precision bf16``."""

    precision = "bf16"


class Torchattacks(Contestant):
    """torchattacks' ``OnePixel``: best1bin without crossover; ``steps`` come after the initial population."""

    def __init__(self, task: Task) -> None:
        import torchattacks

        super().__init__(task)
        self.version = version("torchattacks")
        # The library multiplies with the number of genes what it divided by it before.
        self.population = max(1, task.population // task.genes) * task.genes
        outcomes = self._outcomes = []  # type: list[bool]

        class OnePixel(torchattacks.OnePixel):  # type: ignore[misc]
            def _attack_success(self, *given: Any) -> bool:
                with task.tally.checking():
                    outcomes.append(bool(super()._attack_success(*given)))
                return False

        self._attack: Callable[..., Any] = partial(
            OnePixel, task.classifier, pixels=task.pixels, popsize=task.population
        )

    def attack(self, images: Tensor, labels: Tensor, generations: int) -> int:
        np.random.seed(self.task.seed)
        attack = self._attack(steps=generations - 1, inf_batch=self.batch)
        fallen = 0
        for image, label in zip(self.unit(images).split(1), labels.split(1), strict=True):
            self._outcomes.clear()
            attack(image, label)
            fallen += bool(self._outcomes and self._outcomes[-1])
        return fallen


class Art(Contestant):
    """ART's ``PixelAttack`` with ``th`` pixels and ``es=1``, differential evolution: one search per image.

    Its population is 400, or what multiple of the number of genes is next below.
    """

    def __init__(self, task: Task) -> None:
        from art.attacks.evasion import PixelAttack
        from art.estimators.classification import PyTorchClassifier

        super().__init__(task)
        self.version = version("adversarial-robustness-toolbox")
        self.population = max(1, 400 // task.genes) * task.genes
        outcomes = self._outcomes = []  # type: list[bool]

        class Attack(PixelAttack):  # type: ignore[misc]
            def _attack_success(self, *given: Any) -> bool:
                with task.tally.checking():
                    outcomes.append(bool(super()._attack_success(*given)))
                return False

        self._attack: Callable[..., Any] = Attack
        kind = "gpu" if task.device.type == "cuda" else "cpu"
        self._estimator = PyTorchClassifier(
            task.classifier, nn.CrossEntropyLoss(), task.images.shape[1:], len(task.classifier.class_names),
            clip_values=(0.0, 1.0), device_type=kind,
        )  # fmt: skip
        self._predict = self._estimator.predict

    def attack(self, images: Tensor, labels: Tensor, generations: int) -> int:
        np.random.seed(self.task.seed)
        self._estimator.predict = partial(self._predict, batch_size=self.batch)
        attack = self._attack(self._estimator, th=self.task.pixels, es=1, max_iter=generations - 1)
        fallen = 0
        for image, label in zip((images.float() / 255).numpy(), labels.numpy(), strict=True):
            self._outcomes.clear()
            attack.generate(image[None], np.array([label]))
            fallen += self._outcomes[-1]
        return fallen


class Scipy(Contestant):
    """SciPy's ``differential_evolution`` with pixelsem's own defaults, around a batched fitness."""

    vectorized = True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.version = version("scipy")
        self.population = max(1, task.population // task.genes) * task.genes

    def attack(self, images: Tensor, labels: Tensor, generations: int) -> int:
        return sum(
            self._search(image, int(label), generations) for image, label in zip(self.unit(images), labels, strict=True)
        )

    def _search(self, image: Tensor, label: int, generations: int) -> bool:
        from scipy.optimize import differential_evolution as scipy_evolution

        height, width = image.shape[1:]

        def fitness(genes: NDArray[np.float64]) -> Any:
            logits = self._logits(image, genes.reshape(len(genes), -1).T)
            confidence = logits.softmax(1)[:, label].double().cpu().numpy()
            return confidence if self.vectorized else float(confidence[0])

        found = scipy_evolution(
            fitness, [(0, width), (0, height), (0, 256), (0, 256), (0, 256)] * self.task.pixels,
            strategy="rand1bin", maxiter=generations - 1, popsize=self.population // self.task.genes,
            mutation=(0.5, 1.0), recombination=0.7, init="latinhypercube", polish=False, tol=0.0, atol=-1.0,
            vectorized=self.vectorized, updating="deferred" if self.vectorized else "immediate", seed=self.task.seed,
        )  # fmt: skip
        with self.task.tally.checking():
            return bool(self._logits(image, found.x[None]).argmax() != label)

    @torch.inference_mode()
    def _logits(self, image: Tensor, candidates: NDArray[np.float64]) -> Tensor:
        """Return the logits of candidates, float64 [C, genes]."""
        _, height, width = image.shape
        pixel = torch.from_numpy(candidates).to(image.device).long().view(len(candidates), -1, 5)
        x, y = pixel[..., 0].clamp(max=width - 1), pixel[..., 1].clamp(max=height - 1)
        colour = pixel[..., 2:].clamp(max=255).float() / 255
        images = image.repeat(len(candidates), 1, 1, 1)
        images[torch.arange(len(candidates), device=image.device)[:, None], :, y, x] = colour
        return torch.cat([self.task.classifier(batch) for batch in images.split(self.batch)])


class ScipyPlain(Scipy):
    """The same as most would write it: one candidate at a time."""

    vectorized = False

    def warm_up(self) -> None:
        self.batch = 1
        self._try(self.batch)


CONTESTANTS: dict[str, type[Contestant]] = {
    "pixelsem-dense": Pixelsem,
    "pixelsem-incremental": PixelsemIncremental,
    "pixelsem-incremental-bf16": PixelsemIncrementalBf16,
    "torchattacks": Torchattacks,
    "art": Art,
    "scipy": Scipy,
    "scipy-plain": ScipyPlain,
}


def make_task(options: argparse.Namespace) -> Task:
    """Load model and images; label each with what the model says of it."""
    device = pick_device(options.device)
    classifier = load_classifier(options.model).to(device)
    images = read_images(options.images, options.limit, classifier)
    tally = Tally()
    with torch.inference_mode():
        labels = classifier(images.to(device).float() / 255).argmax(1).cpu()
    classifier.network = tally.watch(classifier.network).eval()
    return Task(
        classifier, tally, images, labels, options.pixels, options.population, options.generations,
        sorted(options.batches), device, options.seed,
    )  # fmt: skip


def read_images(folder: Path, limit: int, classifier: Classifier) -> Tensor:
    """Return the first images of a folder at the model's resolution, uint8 [N, 3, H, W]."""
    items = open_images(folder).items[:limit]
    pixels = [fit_image(read_image(item.path), classifier.preprocessing) for item in items]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def enter(wanted: Sequence[str], task: Task) -> dict[str, Contestant]:
    """Return those that are installed, warmed up."""
    entered: dict[str, Contestant] = {}
    for name in wanted:
        try:
            contestant = CONTESTANTS[name](task)
        except ImportError as error:
            note(f"{name}: left out ({error}); pip install 'pixelsem[bench]'")
            continue
        contestant.warm_up()
        entered[name] = contestant
        note(f"{name} {contestant.version}: ready, batches of {contestant.batch}")
    return entered


@dataclass(frozen=True)
class Run:
    """One run of one contestant over all images."""

    seconds: float
    queries: int
    checks: int
    fallen: int


def time_run(contestant: Contestant, task: Task) -> Run:
    """Let one do the task."""
    task.tally.reset()
    wait_for(task.device)
    start = time.perf_counter()
    fallen = contestant.attack(task.images, task.labels, task.generations)
    wait_for(task.device)
    return Run(time.perf_counter() - start, task.tally.queries, task.tally.checks, fallen)


def summarise(name: str, contestant: Contestant, runs: Sequence[Run], task: Task) -> Row:
    """Return medians over the runs."""
    count, rates = len(task.images), [run.queries / run.seconds for run in runs]
    return {
        "contestant": name,
        "version": contestant.version,
        "model": task.classifier.name,
        "images": count,
        "pixels": task.pixels,
        "population": contestant.population,
        "generations": task.generations,
        "precision": contestant.precision,
        "device": str(task.device),
        "batch": contestant.batch,
        "candidates": contestant.population * task.generations * count,
        "queries": runs[0].queries,
        "checks": runs[0].checks,
        "fallen": runs[0].fallen,
        "queries_per_second": middle(rates),
        "seconds_per_image": middle([run.seconds / count for run in runs]),
        "spread": {
            "queries_per_second": spread(rates),
            "seconds_per_image": spread([run.seconds / count for run in runs]),
        },
        "repeats": len(runs),
        "machine": describe(task.device),
    }


def make_table(rows: Sequence[Row]) -> Table:
    """Return the results for people."""
    columns = [
        Column("contestant", "By", about=True),
        Column("version", "Version"),
        Column("precision", "Precision"),
        Column("batch", "Batch", "count"),
        Column("candidates", "Candidates", "count"),
        Column("queries", "Queries", "count"),
        Column("checks", "Checks", "count"),
        Column("fallen", "Fallen", "count"),
        Column("queries_per_second", "Queries/s", "number", 1),
        Column("seconds_per_image", "Seconds per image", "number", 2),
    ]
    first = rows[0]
    title = (
        f"One attack by several: {first['model']}, {first['images']} images, {first['pixels']} pixels, "
        f"{first['generations']} generations, {first['device']}"
    )
    return Table("peers", title, columns, [[row[column.key] for column in columns] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    samples = checkout.ROOT / "sample_images" / "images"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="allconv", help="as in `pixelsem --model` (default: allconv)")
    parser.add_argument("--images", type=Path, default=samples, help="folder of images (default: sample_images)")
    parser.add_argument("--limit", type=int, default=4, help="how many of them (default: 4)")
    parser.add_argument("--pixels", type=int, default=1, help="changed pixels (default: 1)")
    parser.add_argument("--population", type=int, default=400, help="candidates per generation (default: 400)")
    parser.add_argument("--generations", type=int, default=10, help="the initial population included (default: 10)")
    sizes = "batch sizes that peers choose from; a single one is for everyone (default: 128,256,512)"
    parser.add_argument("--batches", type=numbers, default=[128, 256, 512], help=sizes)
    parser.add_argument("--contestants", type=names, default=list(CONTESTANTS), help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--repeats", type=int, default=3, help="runs of everyone, in turns (default: 3)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.contestants if name not in CONTESTANTS]:
        parser.error(f"--contestants: {unknown[0]!r} is none of {', '.join(CONTESTANTS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    warn_if_busy()
    warnings.filterwarnings("ignore", module="art")
    try:
        rows = _run(options)
    except PixelsemError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")
    write_rows(options.json, rows)
    if rows:
        show(make_table(rows))


def _run(options: argparse.Namespace) -> list[Row]:
    task = make_task(options)
    entered = enter(options.contestants, task)
    runs: dict[str, list[Run]] = {name: [] for name in entered}
    for turn in range(options.repeats):
        for name, contestant in entered.items():
            run = time_run(contestant, task)
            runs[name].append(run)
            note(f"turn {turn + 1}, {name}: {run.queries / run.seconds:.1f} queries/s")
    return [summarise(name, contestant, runs[name], task) for name, contestant in entered.items()]


if __name__ == "__main__":
    main()
