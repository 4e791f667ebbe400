"""Success after defences: the counting, the curves, and the evaluator behind a transform."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.metrics.robustness import DONG2020, Tried, right_everywhere, survival
from pixelsem.metrics.setups import Setup
from pixelsem.models.classifier import Classifier, Preprocessing
from pixelsem.models.defended import put_behind
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions
from pixelsem.report.robustness import RobustnessRow, curves_of, robustness_table
from pixelsem.transforms.layer import apply
from pixelsem.transforms.specs import Defense, parse_defense, parse_defenses


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    preprocessing = Preprocessing((12, 12), 12, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    made = Classifier(network, name="tiny", class_names=("a", "b", "c"), preprocessing=preprocessing, digest="d" * 64)
    return made.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def behind(*texts: str) -> Classifier:
    return put_behind(classifier(), [parse_defense(text) for text in texts])


def test_a_classifier_behind_a_defence_sees_the_transformed_image() -> None:
    defenses = [parse_defense("jpeg:q=30"), parse_defense("avg-pool")]
    plain, defended = classifier(), behind("jpeg:q=30", "avg-pool")
    with torch.no_grad():
        assert torch.equal(defended(images() / 255), plain(apply(images(), defenses) / 255))
        assert not torch.equal(defended(images() / 255), plain(images() / 255))


def test_a_defence_is_part_of_the_models_identity() -> None:
    digests = {behind(*texts).digest for texts in ((), ("jpeg:q=30",), ("jpeg:q=31",), ("jpeg:q=30", "median"))}
    assert len(digests) == 4
    assert behind("jpeg:quality=30").digest == behind("jpeg:q=30").digest
    assert behind("jpeg:q=30", "median").digest != behind("median", "jpeg:q=30").digest
    assert behind("jpeg:q=30", "median").name == "tiny+jpeg:quality=30+median:kernel=3"
    assert behind().name == "tiny"


@pytest.mark.parametrize("text", ["jpeg:q=30", "median", "tvm:iterations=20", "max-pool", "resize"])
def test_candidates_of_a_defended_model_are_scored_on_the_transformed_image(text: str) -> None:
    defended = behind(text)
    evaluator = Evaluator(defended, device="cpu", batch_size=4)
    evaluator.attach(images())
    random = torch.Generator().manual_seed(2)
    edits = Edits(
        torch.tensor([0, 1, 2, 0, 1]),
        torch.randint(0, 144, (5, 2), generator=random),
        torch.randint(0, 256, (5, 2, 3), dtype=torch.uint8, generator=random),
    )
    rendered = edits.render(images())
    known = classifier()(apply(rendered, [parse_defense(text)]) / 255)
    assert torch.allclose(evaluator.score(edits), known, atol=1e-5)
    assert torch.allclose(evaluator.confirm(rendered), known, atol=1e-5)
    assert evaluator.way(edits).evaluator == "dense"


def test_a_defended_model_is_never_scored_incrementally() -> None:
    with pytest.raises(PixelsemError, match="scored dense"):
        Evaluator(behind("median"), device="cpu", scorer="incremental")
    with pytest.raises(PixelsemError, match="scored dense"):
        Evaluator(behind("median"), device="cpu").explain(1)


def test_gradients_come_from_the_defended_model() -> None:
    unit = images() / 255

    def gradient_of(model: Classifier, at: torch.Tensor) -> torch.Tensor:
        return Evaluator(model, device="cpu").loss_and_gradient(at, lambda logits, _: logits[:, 0]).gradients

    # Straight through: the plain model's gradient at the transformed image.
    at = apply(images(), [parse_defense("bit-depth:d=2")]) / 255
    assert torch.allclose(gradient_of(behind("bit-depth:d=2"), unit), gradient_of(classifier(), at), atol=1e-6)
    # Its own: averaging spreads it.
    pooled = gradient_of(classifier(), apply(images(), [parse_defense("avg-pool")]) / 255)
    assert not torch.allclose(gradient_of(behind("avg-pool"), unit), pooled, atol=1e-4)


def test_model_options_take_defences() -> None:
    options = ModelOptions(model="allconv", weights="none", defense=("jpeg:q=55", "median:k=3"))
    made = load(options)
    assert made.defense is not None
    assert [each.text for each in made.defense.defenses] == ["jpeg:quality=55", "median:kernel=3"]
    assert ModelOptions.from_dict(options.to_dict()) == options
    with pytest.raises(PixelsemError, match="is no transform"):
        ModelOptions(defense=("gif",))


def tried(name: str, before: bool, right: bool, after: bool) -> Tried:
    return Tried((name, "cat"), before, right, after)


def test_only_images_right_after_the_defence_count() -> None:
    found = survival(
        [
            tried("1", True, True, True),
            tried("2", True, True, False),
            tried("3", False, True, False),
            tried("4", True, False, True),  # wrong by the defence alone: its success says nothing
            tried("5", True, True, True),
        ]
    )
    assert found.right is not None and (found.right.successes, found.right.n) == (4, 5)  # noqa: PT018
    assert found.before is not None and (found.before.successes, found.before.n) == (3, 4)  # noqa: PT018
    assert found.after is not None and (found.after.successes, found.after.n) == (2, 4)  # noqa: PT018
    assert found.survived is not None and (found.survived.successes, found.survived.n) == (2, 3)  # noqa: PT018


def test_no_image_that_counts_is_no_rate() -> None:
    found = survival([tried("1", True, False, True)])
    assert found.right is not None
    assert found.right.value == 0
    assert (found.before, found.after, found.survived) == (None, None, None)


def test_images_right_in_every_row() -> None:
    first = [tried("1", True, True, True), tried("2", True, True, True), tried("3", True, False, True)]
    second = [tried("2", True, True, True), tried("3", True, True, True)]
    assert right_everywhere([first, second]) == {("2", "cat")}
    assert right_everywhere([]) == set()


def row(defense: Defense, attack: str = "i-fgm", delta: int = 4) -> RobustnessRow:
    setup = Setup("net", attack, {"name": "net"}, {"delta": delta}, None, 0)
    return RobustnessRow(setup, "original", "untargeted", defense, survival([tried("1", True, True, True)]))


def test_curves_are_of_several_strengths_of_one_transform() -> None:
    defenses = [*parse_defenses("jpeg:q=90:10:-40"), *parse_defenses("jpeg:q=50/60,sub=4:4:4"), parse_defense("tvm")]
    curves = curves_of([row(defense) for defense in defenses])
    assert {name: len(own) for name, own in curves.items()} == {"jpeg": 3, "jpeg:subsampling=4:4:4": 2}


def test_the_papers_numbers_stand_beside_the_same_settings_alone() -> None:
    def published(*rows: RobustnessRow) -> list[object]:
        table = robustness_table(rows, 0.95)
        keys = [column.key for column in table.columns]
        return [cells[keys.index("dong2020")] for cells in table.rows] if "dong2020" in keys else []

    assert published(row(parse_defense("jpeg:q=55")), row(parse_defense("jpeg:q=55"), "sai-fgm")) == [0.684, 0.914]
    assert published(row(parse_defense("jpeg:q=56"))) == []
    assert published(row(parse_defense("jpeg:q=55,sub=4:4:4"))) == []
    for attack, _, text in DONG2020:  # every one can be met
        assert parse_defense(text).text == text
        assert attack in ("i-fgm", "sai-fgm")


def test_the_figure_has_a_panel_per_transform_and_a_line_per_attack() -> None:
    pytest.importorskip("matplotlib")
    from pixelsem.report.robustness import draw_robustness

    defenses = [*parse_defenses("jpeg:q=90:10:-40"), *parse_defenses("avg-pool:k=3/5")]
    rows = [row(defense, attack) for attack in ("i-fgm", "sai-fgm") for defense in defenses]
    figure = draw_robustness(rows)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["jpeg", "avg-pool"]
    assert [len(axes.lines) for axes in panels] == [2, 2]
    assert sorted(panels[0].lines[0].get_xdata()) == [10, 50, 90]
