from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pixelsem.defenses.detector import Detector, load_detector, save_detector
from pixelsem.defenses.features import FeatureType
from pixelsem.defenses.fld import Ensemble
from pixelsem.errors import PixelsemError

SPAM = FeatureType("spam", "luma")


def detector() -> Detector:
    rng = np.random.default_rng(0)
    subspaces = np.stack([rng.permutation(686)[:4] for _ in range(3)])
    ensemble = Ensemble(686, subspaces, rng.normal(size=(3, 4)), rng.normal(size=3), 0.125)
    seen, made = frozenset({"0" * 32, "a" * 32}), frozenset({"b" * 32})
    return Detector(ensemble, SPAM, SPAM.version, "i-fgm, δ=4", "abc", seen, made)


def parts() -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return the tensors and the header of a valid file."""
    made = detector().ensemble
    tensors = {
        "subspaces": made.subspaces.astype(np.int32),
        "weights": made.weights,
        "thresholds": made.thresholds,
        "seen": np.zeros((2, 16), np.uint8),
        "made": np.ones((3, 16), np.uint8),
    }
    header = {
        "format": 1, "kind": "spam", "channels": "luma", "version": "spam-1", "features": 686, "error": 0.1,
        "attack": "i-fgm", "search": "abc",
    }  # fmt: skip
    return tensors, header


def write(path: Path, tensors: dict[str, np.ndarray], header: object) -> Path:
    path.write_bytes(save(tensors, {"pixelsem-detector": json.dumps(header)}))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = detector()
    save_detector(made, tmp_path / "detector.safetensors")
    for path in (tmp_path / "detector.safetensors", tmp_path):
        read = load_detector(path)
        assert replace(read, ensemble=made.ensemble) == made
        for name in ("features", "error"):
            assert getattr(read.ensemble, name) == getattr(made.ensemble, name)
        for name in ("subspaces", "weights", "thresholds"):
            assert np.array_equal(getattr(read.ensemble, name), getattr(made.ensemble, name))
    rows = np.random.default_rng(1).normal(size=(9, 686))
    assert np.array_equal(read.score(rows, SPAM), made.score(rows, SPAM))


def test_an_error_that_was_not_measured_stays_so(tmp_path: Path) -> None:
    ensemble = replace(detector().ensemble, error=float("nan"))
    made = replace(detector(), ensemble=ensemble, seen=frozenset(), made=frozenset())
    save_detector(made, tmp_path / "d.safetensors")
    read = load_detector(tmp_path / "d.safetensors")
    assert np.isnan(read.ensemble.error)
    assert read.seen == read.made == frozenset()


def test_it_knows_the_images_that_it_was_trained_on() -> None:
    assert all(detector().knows(digest * 32) for digest in "0ab")
    assert not detector().knows("c" * 32)


def test_equal_detectors_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_detector(detector(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_features_of_another_type_are_refused() -> None:
    with pytest.raises(PixelsemError, match=r"takes spam \(luma\) features, spam \(mean\) were given"):
        detector().score(np.zeros((1, 686)), FeatureType("spam", "mean"))


@pytest.mark.parametrize(
    ("tensors", "header", "says"),
    [
        ({"weights": np.zeros((3, 5))}, {}, "shapes"),
        ({"weights": np.zeros((3, 4), np.float32)}, {}, "float32"),
        ({"weights": np.full((3, 4), np.nan)}, {}, "NaN"),
        ({"thresholds": np.full(3, np.inf)}, {}, "infinite"),
        ({"thresholds": np.zeros((3, 1))}, {}, "2 axes"),
        ({"subspaces": np.full((3, 4), 686, np.int32)}, {}, "features that there are not"),
        ({"subspaces": np.full((3, 4), -1, np.int32)}, {}, "features that there are not"),
        (
            {"subspaces": np.zeros((2, 4), np.int32), "weights": np.zeros((2, 4)), "thresholds": np.zeros(2)},
            {},
            "shapes",
        ),
        ({"seen": np.zeros((2, 5), np.uint8)}, {}, "digests"),
        ({"made": np.zeros((2, 5), np.uint8)}, {}, "digests"),
        ({"made": np.zeros((2, 16))}, {}, "made is float64"),
        ({"more": np.zeros(1)}, {}, "it holds made, more"),
        ({}, {"features": 2058}, "has 686 features, not 2058"),
        ({}, {"channels": "separate"}, "has 2058 features, not 686"),
        ({}, {"kind": "other"}, "not a valid detector"),
        ({}, {"format": 2}, "not a valid detector"),
        ({}, {"extra": 1}, "not a valid detector"),
        ({}, {"version": "spam-0"}, "version spam-0, here they are of spam-1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, tensors: dict, header: dict, says: str) -> None:
    own, described = parts()
    load_detector(write(tmp_path / "good", own, described))
    path = write(tmp_path / "bad", own | tensors, described | header)
    with pytest.raises(PixelsemError, match=says) as raised:
        load_detector(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("case", ["missing", "empty", "cut", "pickle", "weights", "header", "folder"])
def test_what_is_no_detector_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "detector.safetensors"
    tensors, header = parts()
    whole = save(tensors, {"pixelsem-detector": json.dumps(header)})
    contents = {
        "empty": b"",
        "cut": whole[:-9],
        "pickle": pickle.dumps({"weights": 1}),
        "weights": save(tensors),
        "header": save(tensors, {"pixelsem-detector": "{"}),
    }
    if case in contents:
        path.write_bytes(contents[case])
    with pytest.raises(PixelsemError, match=str(path)) as raised:
        load_detector(tmp_path if case == "folder" else path)
    assert "\n" not in str(raised.value)
