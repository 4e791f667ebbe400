"""Classifiers behind image transforms: what a defender runs and an adaptive attacker attacks."""

from __future__ import annotations

from collections.abc import Sequence

from pixelsem.models.classifier import Classifier
from pixelsem.stage import digest
from pixelsem.transforms.layer import DefenseLayer
from pixelsem.transforms.specs import Defense


def put_behind(classifier: Classifier, defenses: Sequence[Defense]) -> Classifier:
    """Return a classifier that sees every image as ``defenses`` leave it, in their order, on the same network.

    Its name and its digest say so. Without defences it is ``classifier`` itself.
    """
    if not defenses:
        return classifier
    return Classifier(
        classifier.network,
        name="+".join([classifier.name, *(defense.text for defense in defenses)]),
        class_names=classifier.class_names,
        preprocessing=classifier.preprocessing,
        digest=digest({"model": classifier.digest, "defenses": [defense.identity for defense in defenses]}),
        trained=classifier.trained,
        arch=classifier.arch,
        defense=DefenseLayer(defenses).to(classifier.mean.device),
    ).eval()
