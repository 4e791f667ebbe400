"""From what a user calls a model to a :class:`Classifier` that is ready to be attacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from pixelsem.errors import ClassCountError, ModelError
from pixelsem.models.checkpoints import Metadata, first_line, fit_state, load_metadata, load_state
from pixelsem.models.classifier import Classifier, Preprocessing, compute_digest
from pixelsem.models.programs import kind_of, load_exported, load_torchscript
from pixelsem.models.registry import ARCHITECTURES
from pixelsem.models.sources import Source, build, is_factory, number_names, own_weights, unknown_name

#: Suffixes of model files.
SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2", ".ckpt", ".bin")


@dataclass(frozen=True)
class _Overrides:
    """What the user says about the input, over what the model's origin says."""

    scale: float | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    input_size: int | tuple[int, int] | None

    def apply(self, name: str, base: Preprocessing | None) -> Preprocessing:
        """Return the preprocessing to use; a new size keeps the proportion of resize to crop."""
        if base is None and self.input_size is None:
            raise ModelError(f"{name}: does not say its input size; give --input-size")
        size = (self.input_size, self.input_size) if isinstance(self.input_size, int) else self.input_size
        if base is None:
            assert size is not None
            base = Preprocessing(size, min(size))
        elif size is not None and size != base.size:
            base = replace(base, size=size, resize=max(round(base.resize / min(base.size) * min(size)), min(size)))
        return replace(
            base,
            scale=base.scale if self.scale is None else float(self.scale),
            mean=base.mean if self.mean is None else _triple("mean", self.mean),
            std=base.std if self.std is None else _triple("std", self.std),
        )


def _triple(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Return three numbers; one stands for all channels."""
    numbers = tuple(map(float, values)) * (3 if len(values) == 1 else 1)
    if len(numbers) != 3:
        raise ModelError(f"{name}: {len(numbers)} numbers given; give one for each of red, green and blue")
    return numbers[0], numbers[1], numbers[2]


def load_classifier(
    name: str | Path = "allconv",
    *,
    weights: str | Path | None = None,
    arch: str | None = None,
    scale: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Classifier:
    """Load a classifier: on the CPU, in eval mode, fp32, with no parameter asking for gradients.

    ``name`` is one of our architectures (``allconv`` …), ``torchvision:NAME``, ``timm:NAME``,
    ``FILE.py:FUNCTION`` (which is run, and returns a module or a Classifier), a TorchScript or
    ``torch.export`` file, or a checkpoint (``.safetensors``, or ``.pt`` read with ``weights_only``), whose
    architecture ``arch`` names unless the file was written by :func:`save_weights`.
    ``weights`` is a file to load into a named architecture, or ``"none"``: as initialised, the same
    each time. ``scale``, ``mean``, ``std`` and ``input_size`` replace the model's own preprocessing
    ((image · scale − mean) / std on the [0, 1] image), ``class_names`` its class names.

    Raises :class:`ModelError`, in one line, for anything that cannot be used as asked.
    """
    name = str(name)
    overrides = _Overrides(scale, mean, std, input_size)
    if _is_file(name):
        if weights is not None:
            raise ModelError(f"{name}: is a file with its own weights; --weights goes with an architecture's name")
        source, arch = _open_file(Path(name), arch, class_names)
    elif arch is not None:
        raise ModelError(f"--arch {arch}: goes with a checkpoint file; {name} names an architecture already")
    else:
        source, arch = _open_named(name, weights, class_names), name
    preprocessing = overrides.apply(name, source.preprocessing)
    names = distinct_names(class_names or source.class_names)
    network = source.network.float().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    digest = compute_digest(network, preprocessing, source.extra)
    classifier = Classifier(
        network, name=name, class_names=names, preprocessing=preprocessing,
        digest=digest, trained=source.trained, arch=arch,
    ).eval()  # fmt: skip
    _settle_class_names(classifier)
    return classifier


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Add its number to every class name that occurs twice: lists of ImageNet's classes have two cranes."""
    counts = Counter(names)
    return tuple(f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names))


def _is_file(name: str) -> bool:
    """Tell a model file from a name; raises :class:`ModelError` where it can be neither."""
    if name in ARCHITECTURES or name.startswith(("torchvision:", "timm:")) or is_factory(name):
        return False
    path = Path(name)
    if path.suffix == ".py":
        raise ModelError(f"{name}: say which function of it returns the model: {name}:FUNCTION")
    if path.suffix.lower() in SUFFIXES:
        if not path.is_file():
            raise ModelError(f"{name}: no such model file; check the path")
        return True
    if path.exists():
        raise ModelError(f"{name}: not a model file; it must end in {', '.join(SUFFIXES)} or be FILE.py:FUNCTION")
    raise unknown_name(name)


def _open_named(name: str, weights: str | Path | None, class_names: Sequence[str] | None) -> Source:
    """Build the architecture ``name`` with its own weights, those of a file, or none."""
    count = len(class_names) if class_names else None
    if weights == "none":
        return build(name, count)
    if weights is not None:
        path = Path(weights)
        return _fill(name, path, load_metadata(path), class_names)
    own = own_weights(name)
    if own is None:
        return build(name, pretrained=True)
    return _fill(name, own, load_metadata(own), None)


def _open_file(path: Path, arch: str | None, class_names: Sequence[str] | None) -> tuple[Source, str]:
    """Open a model file; return it with the architecture it turned out to have."""
    kind = kind_of(path)
    if kind == "state":
        metadata = load_metadata(path)
        if arch is None:
            arch = _arch_of(path, metadata)
        return _fill(arch, path, metadata, class_names), arch
    if arch is not None:
        raise ModelError(f"{path}: holds a whole model; leave --arch out")
    extra = sha256(path.read_bytes()).digest()
    if kind == "torchscript":
        return Source(load_torchscript(path), trained=True, extra=extra), str(path)
    network, size = load_exported(path)
    preprocessing = None if size is None else Preprocessing(size, min(size))
    return Source(network, preprocessing, trained=True, extra=extra), str(path)


def _arch_of(path: Path, metadata: Metadata | None) -> str:
    """Return the architecture a checkpoint names; a file of weights cannot make the user's code run."""
    if metadata is None:
        load_state(path)  # a file that is no checkpoint at all is told first
        raise ModelError(f"{path}: does not say its architecture; give --arch")
    if is_factory(metadata.arch):
        raise ModelError(f"{path}: was made by {metadata.arch}; to run that code, give it with --arch")
    return metadata.arch


def _fill(arch: str, path: Path, metadata: Metadata | None, class_names: Sequence[str] | None) -> Source:
    """Build ``arch`` with the weights in ``path``; what the file says of itself goes before what ``arch`` says."""
    state = load_state(path)
    names = metadata.class_names if metadata else ()
    source = build(arch, len(class_names or names) or None)
    fit_state(source.network, state, path, arch)
    if metadata is None:
        return replace(source, trained=True)
    return replace(source, trained=True, preprocessing=metadata.preprocessing, class_names=metadata.class_names)


def _settle_class_names(classifier: Classifier) -> None:
    """Number the classes where they have no names; raise :class:`ModelError` where names and logits differ."""
    count = _count_logits(classifier)
    classifier.class_names = classifier.class_names or number_names(count)
    given = len(classifier.class_names)
    if given != count:
        raise ClassCountError(
            f"{classifier.name}: gives {count} logits, but has {given} class names; name all with --classes", count
        )


def _count_logits(classifier: Classifier) -> int:
    """Score a black image alone and beside a grey one; return the number of logits.

    Raises :class:`ModelError` where the network fails at this size, gives no finite [N, classes] logits, or
    answers differently for the same image in another batch (it was exported in training mode).
    """
    name = classifier.name
    height, width = classifier.preprocessing.size
    pair = torch.zeros(2, 3, height, width)
    pair[1] = 0.5
    try:
        with torch.no_grad():
            both, alone = classifier(pair), classifier(pair[:1])
    except ModelError:
        raise
    except Exception as error:  # memory, devices
        raise ModelError(f"{name}: cannot score a {width}×{height} image ({first_line(error)})") from error
    for logits, count in ((both, 2), (alone, 1)):
        if not isinstance(logits, Tensor):
            raise ModelError(f"{name}: returns {type(logits).__name__}; it must return logits [N, classes]")
        if logits.ndim != 2 or len(logits) != count or not logits.numel() or not logits.is_floating_point():
            raise ModelError(f"{name}: returns {list(logits.shape)} for {count} images; it must return [N, classes]")
        if not logits.isfinite().all():
            raise ModelError(f"{name}: gives NaN or infinite logits for a black image; check --scale, --mean and --std")
    if not torch.allclose(both[:1], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise ModelError(f"{name}: scores an image differently in another batch; save or export it in eval mode")
    return len(alone[0])
