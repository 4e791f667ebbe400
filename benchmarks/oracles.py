"""Do the attacks do what other implementations of them do? On the bundled AllConv and CIFAR-10 test images.

    pip install adversarial-robustness-toolbox && pip install --no-deps torchattacks
    python benchmarks/oracles.py --images CIFAR/test --json benchmarks/results/oracles.json

Both sides attack the same images with the same settings, and what they find is rounded to 8 bits before it is scored.
Of the images that the network gets right, success and distance: of those that both sides have changed the class of,
the mean L2 norm of the change in units of 0 to 1, or for JSMA the number of values that differ.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import checkout  # noqa: F401
import numpy as np
import torch
from common import Row, keep_rows, kept_rows, names, note, show, write_rows
from machine import describe
from torch import Tensor, nn

from pixelsem.attacks.base import Progress, Searches
from pixelsem.attacks.registry import ATTACKS
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import read_image
from pixelsem.metrics.intervals import Rate, rate
from pixelsem.models import load_classifier
from pixelsem.models.classifier import Classifier
from pixelsem.report.tables import Column, Table
from pixelsem.sources import open_images

#: How far success and mean distance of two sides may lie apart.
SUCCESS, DISTANCE = 0.03, 0.05

#: uint8 [N, 3, H, W] images that a peer makes of clean ones, float [N, 3, H, W] in [0, 1], and labels, int64 [N].
Peer = Callable[[Classifier, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """One attack on both sides.

    ``attack`` and ``options`` are pixelsem's; ``peer`` says whose the other side is. ``targeted`` ones go for the
    class after the label. ``differs`` explains a difference that is the peer's own doing; pixelsem may then have
    more success or a smaller distance, never less or a larger one.
    """

    name: str
    attack: str
    options: dict[str, Any]
    peer: str
    run: Peer
    measure: Literal["l2", "l0"] = "l2"
    targeted: bool = False
    differs: str = ""


@dataclass(frozen=True)
class Found:
    """What both sides came to: success of each image, bool [N], and distances, float [N]; pixelsem's first."""

    success: tuple[Tensor, Tensor]
    distance: tuple[Tensor, Tensor]

    @property
    def rates(self) -> tuple[float, float]:
        """The share of successes."""
        ours, theirs = (float(each.float().mean()) for each in self.success)
        return ours, theirs

    @property
    def means(self) -> tuple[float, float]:
        """The mean distance where both succeed."""
        both = self.success[0] & self.success[1]
        ours, theirs = (float(each[both].float().mean()) for each in self.distance)
        return ours, theirs

    @property
    def agrees(self) -> bool:
        """Are success and distance of both within the bounds of each other?"""
        return abs(self._more) <= SUCCESS and abs(self._farther) <= DISTANCE

    @property
    def no_worse(self) -> bool:
        """Is what pixelsem has less of success, or more of distance, within the bounds?"""
        return self._more >= -SUCCESS and self._farther <= DISTANCE

    @property
    def _more(self) -> float:
        return self.rates[0] - self.rates[1]

    @property
    def _farther(self) -> float:
        return self.means[0] / self.means[1] - 1


def torchattacks_of(name: str, **options: Any) -> Peer:
    """Return an attack of torchattacks."""

    def run(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        import torchattacks

        torch.manual_seed(0)
        attack = getattr(torchattacks, name)(classifier, **options)
        if name == "JSMA":
            attack.set_mode_targeted_by_function(lambda _, labels: next_class(labels))
        found: Tensor = attack(images, labels)
        return found

    return run


def art_of(name: str, steps: int, epsilon: float, **options: Any) -> Peer:
    """Return an attack of ART that goes ``steps`` steps of equal length within an L2 ball of radius ``epsilon``."""

    def run(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        import art.attacks.evasion
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            classifier, nn.CrossEntropyLoss(), images.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        attack = getattr(art.attacks.evasion, name)(
            estimator, norm=2, eps=epsilon, eps_step=epsilon / steps, max_iter=steps, verbose=False, **options
        )
        return torch.from_numpy(attack.generate(images.numpy(), y=labels.numpy()))

    return run


def next_class(labels: Tensor) -> Tensor:
    """Return the class after each label, the first after the last."""
    return (labels + 1) % 10


_UNITS = 255
_MEASURES = {"l2": "L2", "l0": "changed values"}
_DELTA = 2.0
_CW = torchattacks_of("CW", c=1, kappa=0, lr=0.01, steps=200)
_LENGTH = _DELTA * (3 * 32 * 32) ** 0.5 / _UNITS  # ε of dong2020 in units of 0 to 1

COMPARISONS = {
    each.name: each
    for each in (
        Comparison("FGM", "fgm", {"delta": _DELTA}, "ART", art_of("ProjectedGradientDescent", 1, _LENGTH)),
        Comparison("I-FGM", "i-fgm", {"delta": _DELTA}, "ART", art_of("ProjectedGradientDescent", 10, _LENGTH)),
        Comparison(
            "MI-FGM", "mi-fgm", {"delta": _DELTA}, "ART", art_of("MomentumIterativeMethod", 10, _LENGTH, decay=1.0)
        ),
        Comparison(
            "PGD, L∞ 2/255", "pgd", {"epsilon": 2.0, "step": 1.0, "steps": 10},
            "torchattacks", torchattacks_of("PGD", eps=2 / 255, alpha=1 / 255, steps=10),
        ),
        Comparison(
            "PGD, L∞ 16/255", "pgd", {}, "torchattacks", torchattacks_of("PGD", eps=16 / 255, alpha=2 / 255, steps=20)
        ),
        Comparison(
            "PGD, L2 128/255", "pgd", {"norm": "l2"},
            "torchattacks", torchattacks_of("PGDL2", eps=128 / 255, alpha=16 / 255, steps=20),
        ),
        Comparison(
            "M-DI²-FGSM", "m-di2-fgsm", {"epsilon": 4.0, "step": 1.0},
            "torchattacks", torchattacks_of("DIFGSM", eps=4 / 255, alpha=1 / 255, steps=20, decay=1.0),
        ),
        Comparison(
            "C&W, as published", "cw", {"rounding": "after", "steps": 200},
            "torchattacks", _CW,
            differs="torchattacks takes 0 for the largest other logit where all of them are negative, and ends the "
            "whole batch where the summed loss has not fallen for a tenth of the iterations",
        ),
        Comparison(
            "C&W, rounding during", "cw", {"steps": 200},
            "torchattacks", _CW,
            differs="the search sees 8 bits, torchattacks' does not",
        ),
        Comparison(
            "JSMA, θ = 1", "jsma", {"theta": 1.0, "gamma": 0.1},
            "torchattacks", torchattacks_of("JSMA", theta=1.0, gamma=0.1), "l0", targeted=True,
        ),
    )
}  # fmt: skip


def right_images(folder: Path, count: int) -> tuple[Classifier, Tensor, Tensor]:
    """Return AllConv, and those of ``count`` images, as many of each class, that it gets right.

    ``folder`` has one sub-folder per class. The images are uint8 [N, 3, 32, 32], their labels int64 [N].
    """
    classifier = load_classifier("allconv")
    of_class: dict[str, list[Path]] = {}
    for item in open_images(folder).items:
        of_class.setdefault(str(item.folder), []).append(item.path)
    chosen = [(path, classifier.class_names.index(n)) for n, paths in of_class.items() for path in paths[: count // 10]]
    images = torch.from_numpy(np.stack([read_image(path) for path, _ in chosen])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in chosen])
    with torch.no_grad():
        right = classifier(images.float() / _UNITS).argmax(1) == labels
    return classifier, images[right], labels[right]


def compare(
    comparison: Comparison,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    known: dict[Peer, Tensor] | None = None,
) -> Found:
    """Run and score both sides on the CPU; what a peer made of the same images before may be ``known``."""
    known = {} if known is None else known
    if comparison.run not in known:
        known[comparison.run] = attack_of_peer(comparison, classifier, images, labels)
    sides = attack(comparison, classifier, images, labels), known[comparison.run]
    ours, theirs = (judge(side, comparison, classifier, images, labels) for side in sides)
    return Found((ours[0], theirs[0]), (ours[1], theirs[1]))


def attack(comparison: Comparison, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return what pixelsem makes of the images, uint8 [N, 3, H, W]."""
    info = ATTACKS[comparison.attack]
    evaluator = Evaluator(classifier, device="cpu", scorer="dense")
    searches = Searches.of(images, labels, targets=next_class(labels) if comparison.targeted else None)
    outcomes = info.load()(searches, evaluator, info.settings(**comparison.options), Progress())
    return torch.stack([outcome.adversarial for outcome in sorted(outcomes, key=lambda outcome: outcome.search)])


def attack_of_peer(comparison: Comparison, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return what the other side makes of the images, rounded: uint8 [N, 3, H, W]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = comparison.run(classifier, images.float() / _UNITS, labels)
    return (found.detach() * _UNITS).round().clamp(0, _UNITS).to(torch.uint8)


def judge(
    found: Tensor, comparison: Comparison, classifier: Classifier, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the success, bool [N], and the distance, float [N], of 8-bit images."""
    with torch.no_grad():
        top = classifier(found.float() / _UNITS).argmax(1)
    change = (found.float() - images.float()).flatten(1)
    distance = (change != 0).sum(1) if comparison.measure == "l0" else change.norm(dim=1) / _UNITS
    return (top == next_class(labels) if comparison.targeted else top != labels), distance


def peer_version(peer: str) -> str:
    """Return a peer's name with its version."""
    return f"{peer} {version('adversarial-robustness-toolbox' if peer == 'ART' else peer)}"


def share_of(share: float, images: int) -> Rate | None:
    """Return a share of so many images with its 95 % Wilson interval."""
    return rate(round(share * images), images)


def make_table(rows: Sequence[Row]) -> Table:
    """Return the results for people."""
    columns = (
        Column("attack", "Attack"),
        Column("peer", "Other side"),
        Column("images", "Images", "count"),
        Column("success", "Success, pixelsem", "rate"),
        Column("their_success", "Success, other", "rate"),
        Column("distance", "Distance, pixelsem", "number", 3),
        Column("their_distance", "Distance, other", "number", 3),
        Column("measure", "of"),
        Column("agrees", "Within 3 points and 5 %"),
    )
    cells = [
        [row["attack"], row["peer"], row["images"], *(share_of(each, row["images"]) for each in row["success"]),
         *row["distance"], _MEASURES[row["measure"]], "yes" if row["agrees"] else "differs"]
        for row in rows
    ]  # fmt: skip
    notes = [f"{row['attack']}: {row['differs']}." for row in rows if row["differs"]]
    return Table("oracles", "The same attacks by others", columns, cells, notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, show a table and write the list of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="CIFAR-10 images, a folder per class")
    parser.add_argument("--count", type=int, default=100, help="images, as many of each class (default: 100)")
    parser.add_argument("--attacks", type=names, default=None, help="those of pixelsem's attacks (default: all)")
    parser.add_argument("--json", metavar="FILE|-", help="list of results, which goes on where it is; - is stdout")
    options = parser.parse_args(arguments)
    classifier, images, labels = right_images(options.images, options.count)
    rows, known = kept_rows(options.json), dict[Peer, Tensor]()
    for comparison in COMPARISONS.values():
        wanted = options.attacks is None or comparison.attack in options.attacks
        if not wanted or any(row["attack"] == comparison.name for row in rows):
            continue
        found = compare(comparison, classifier, images, labels, known)
        rows.append({
            "attack": comparison.name, "options": comparison.options, "peer": peer_version(comparison.peer),
            "images": len(images), "success": found.rates, "distance": found.means, "measure": comparison.measure,
            "agrees": found.agrees, "differs": comparison.differs, "machine": describe(torch.device("cpu")),
        })  # fmt: skip
        note(f"{comparison.name}: success {found.rates}, distance {found.means}")
        keep_rows(options.json, rows)
    show(make_table(rows))
    write_rows(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
