"""A trained detector as a file: safetensors with a JSON header, checked on reading; nothing in it is ever run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import safetensors
from msgspec import Struct
from numpy.typing import NDArray
from safetensors.numpy import save

from pixelsem.defenses.features import FeatureType, Rows
from pixelsem.defenses.fld import Ensemble
from pixelsem.defenses.settings_detection import Channels, FeatureKind
from pixelsem.errors import PixelsemError
from pixelsem.files import one_line, write_atomically

#: The name of a detector's file in the stage that made it.
DETECTOR_FILE = "detector.safetensors"

_HEADER_KEY = "pixelsem-detector"
_DIGEST_BYTES = 16


class _Header(Struct, forbid_unknown_fields=True):
    format: Literal[1]
    kind: FeatureKind
    channels: Channels
    version: str
    features: int
    error: float | None
    attack: str
    search: str


@dataclass(frozen=True)
class Detector:
    """Tells adversarial images from clean ones by steganalysis features.

    :ivar type: the features that it takes; ``version`` says how they were computed.
    :ivar attack: the attack that it was trained on, for people, and ``search``, the digest of what that did to whom.
    :ivar seen: the digests (:func:`pixelsem.images.pixel_digest`) of the clean images that it was trained on.
    :ivar made: those of the adversarial images that it was trained on.
    """

    ensemble: Ensemble
    type: FeatureType
    version: str
    attack: str
    search: str
    seen: frozenset[str] = field(default=frozenset(), repr=False)
    made: frozenset[str] = field(default=frozenset(), repr=False)

    def knows(self, digest: str) -> bool:
        """Was it trained on the image of this digest, clean or adversarial?"""
        return digest in self.seen or digest in self.made

    def score(self, rows: Rows, type: FeatureType) -> NDArray[np.float64]:
        """Return the mean votes, float64 [N] in [-1, 1], of features [N, D] of ``type``; above 0 is adversarial.

        Raises :class:`PixelsemError` for features of another type.
        """
        if type != self.type:
            wanted, given = (f"{one.kind} ({one.channels})" for one in (self.type, type))
            raise PixelsemError(f"the detector takes {wanted} features, {given} were given")
        return self.ensemble.score(np.asarray(rows, np.float64))


def save_detector(detector: Detector, path: Path) -> None:
    """Write a detector, atomically; equal detectors give equal files. Raises :class:`OutputError`."""
    ensemble = detector.ensemble
    header = _Header(
        format=1,
        kind=detector.type.kind,
        channels=detector.type.channels,
        version=detector.version,
        features=ensemble.features,
        error=None if np.isnan(ensemble.error) else ensemble.error,
        attack=detector.attack,
        search=detector.search,
    )
    tensors: dict[str, NDArray[Any]] = {
        "subspaces": ensemble.subspaces.astype(np.int32),
        "weights": ensemble.weights,
        "thresholds": ensemble.thresholds,
        "seen": _packed(detector.seen),
        "made": _packed(detector.made),
    }
    with write_atomically(path) as file:
        file.write(save(tensors, {_HEADER_KEY: msgspec.json.encode(header).decode()}))


def load_detector(path: Path) -> Detector:
    """Read a detector; ``path`` is its file, or the stage that made it.

    Raises :class:`PixelsemError`, naming the file, where it is missing, damaged, no detector, of another format, or
    where its features are computed otherwise by what is installed.
    """
    if path.is_dir():
        path = path / DETECTOR_FILE
    if not path.is_file():
        raise PixelsemError(f"{path}: no such detector; `pixelsem defend detect train` makes one")
    header, tensors = _read(path)
    type = FeatureType(header.kind, header.channels)
    problem = _problem(header, type, tensors)
    if problem is not None:
        raise PixelsemError(f"{path}: not a valid detector: {problem}; train it anew")
    if type.version != header.version:
        raise PixelsemError(
            f"{path}: takes features of version {header.version}, here they are of {type.version}; train it anew"
        )
    error = float("nan") if header.error is None else header.error
    subspaces = tensors["subspaces"].astype(np.int64)
    ensemble = Ensemble(header.features, subspaces, tensors["weights"], tensors["thresholds"], error)
    seen, made = (_unpacked(tensors[name]) for name in ("seen", "made"))
    return Detector(ensemble, type, header.version, header.attack, header.search, seen, made)


def detector_digest(path: Path) -> str:
    """Return the sha256 (hex) of a detector's file, given as for :func:`load_detector` and checked by it."""
    file = path / DETECTOR_FILE if path.is_dir() else path
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _packed(digests: frozenset[str]) -> NDArray[np.uint8]:
    """Return digests as bytes [N, 16], in an order of their own."""
    return np.frombuffer(bytes.fromhex("".join(sorted(digests))), np.uint8).reshape(-1, _DIGEST_BYTES)


def _unpacked(rows: NDArray[np.uint8]) -> frozenset[str]:
    return frozenset(row.tobytes().hex() for row in rows)


def _read(path: Path) -> tuple[_Header, dict[str, NDArray[Any]]]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_HEADER_KEY)
            if text is None:
                raise PixelsemError(f"{path}: holds weights, but not those of a detector")
            header = msgspec.json.decode(text, type=_Header)
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (msgspec.DecodeError, RecursionError) as error:
        raise PixelsemError(f"{path}: not a valid detector: {one_line(error)}; train it anew") from error
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise PixelsemError(f"{path}: not a detector, or cut short ({one_line(error)}); train it anew") from error


def _problem(header: _Header, type: FeatureType, tensors: dict[str, NDArray[Any]]) -> str | None:
    """Say what does not fit in a detector's file; None where all does."""
    kinds = {
        "subspaces": (np.int32, 2),
        "weights": (np.float64, 2),
        "thresholds": (np.float64, 1),
        "seen": (np.uint8, 2),
        "made": (np.uint8, 2),
    }
    if set(tensors) != set(kinds):
        return f"it holds {', '.join(sorted(tensors)) or 'nothing'}, not {', '.join(sorted(kinds))}"
    for name, (dtype, axes) in kinds.items():
        if tensors[name].dtype != dtype or tensors[name].ndim != axes:
            return f"{name} is {tensors[name].dtype} with {tensors[name].ndim} axes"
    count, size = tensors["subspaces"].shape
    if (
        count % 2 == 0
        or size == 0
        or tensors["weights"].shape != (count, size)
        or tensors["thresholds"].shape != (count,)
    ):
        return "its shapes do not fit together"
    if header.features != type.size:
        return f"{header.kind} ({header.channels}) has {type.size} features, not {header.features}"
    if tensors["subspaces"].min() < 0 or tensors["subspaces"].max() >= header.features:
        return "it takes features that there are not"
    if not all(np.isfinite(tensors[name]).all() for name in ("weights", "thresholds")):
        return "it holds NaN or infinite values"
    if any(tensors[name].shape[1] != _DIGEST_BYTES for name in ("seen", "made")):
        return "its digests of images are cut"
    return None
