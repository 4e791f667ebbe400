"""Where an architecture comes from: our own, torchvision's, timm's, or a function in the user's file."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from pixelsem.errors import ModelError
from pixelsem.models.checkpoints import first_line
from pixelsem.models.classifier import Classifier, Preprocessing
from pixelsem.models.registry import ARCHITECTURES, CIFAR10_CLASSES, bundled_weights, untrained

#: Part of a torchvision file's name: the first digits of its sha256.
_HASH = re.compile(r"-([a-f0-9]{8,})\.")


@dataclass(frozen=True)
class Source:
    """A network as built, with what its origin knows about it.

    ``preprocessing`` is None and ``class_names`` empty where the origin does not say; ``trained`` tells
    whether it came with weights; ``extra`` is what else identifies it (the user's code).
    """

    network: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    trained: bool = False
    extra: bytes = b""


def build(arch: str, num_classes: int | None = None, *, pretrained: bool = False) -> Source:
    """Build the architecture ``arch`` with ``num_classes`` logits (None: its own number).

    ``arch`` is a name of our own, ``torchvision:NAME``, ``timm:NAME`` or ``FILE.py:FUNCTION``.
    ``pretrained`` makes timm load its weights (it keeps them in its own way; for the others see
    :func:`own_weights`) and tells that a user's function brings trained ones. As initialised, an
    architecture always has the same weights. Raises :class:`ModelError` for an unknown name or code that fails.
    """
    with _fixed_seed():
        if arch in ARCHITECTURES:
            names = number_names(num_classes) if num_classes else CIFAR10_CLASSES
            classifier = untrained(arch, names)
            return Source(classifier.network, classifier.preprocessing, names)
        if arch.startswith("torchvision:"):
            return _from_torchvision(arch, num_classes)
        if arch.startswith("timm:"):
            return _from_timm(arch, num_classes, pretrained)
        if is_factory(arch):
            return _from_file(arch, pretrained)
    raise unknown_name(arch)


def own_weights(arch: str) -> Path | None:
    """Return the file with the weights that belong to ``arch``, downloading torchvision's where needed.

    None for timm and users' functions, which load their own. Raises :class:`ModelError` where there
    are none or the download fails.
    """
    if arch in ARCHITECTURES:
        path = bundled_weights(arch)
        if path is None:
            raise ModelError(f"{arch}: no bundled weights; give --weights FILE or train with `pixelsem defend train`")
        return path
    return _download(arch) if arch.startswith("torchvision:") else None


def number_names(count: int) -> tuple[str, ...]:
    """Return the class names "0" … for a classifier that has none."""
    return tuple(map(str, range(count)))


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Make initial weights the same every time, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


# torchvision


def torchvision_names() -> list[str]:
    """Return the names of torchvision's image classifiers, without the prefix."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def torchvision_weights(arch: str) -> Any:
    """Return torchvision's default weights entry (url, transforms, meta) of ``torchvision:NAME``."""
    from torchvision import models

    name = arch.removeprefix("torchvision:")
    if name not in torchvision_names():
        raise unknown_name(arch)
    return models.get_model_weights(name).DEFAULT


def torchvision_preprocessing(weights: Any) -> Preprocessing:
    """Return the preprocessing that belongs to torchvision's ``weights``."""
    own = weights.transforms()
    size, (resize,) = own.crop_size[0], own.resize_size
    return Preprocessing((size, size), resize, tuple(own.mean), tuple(own.std), interpolation=own.interpolation.value)


def cached_path(url: str) -> Path:
    """Return where torch.hub keeps the download of ``url``, be it there or not."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _from_torchvision(arch: str, num_classes: int | None) -> Source:
    from torchvision import models

    weights = torchvision_weights(arch)
    categories = tuple(weights.meta["categories"])
    name = arch.removeprefix("torchvision:")
    # What torchvision itself sets for its weights: these two undo the usual normalisation, and
    # their auxiliary heads serve training only.
    special = {"transform_input": True, "aux_logits": False, "init_weights": True}
    options = special if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, num_classes=num_classes or len(categories), **options)
    names = categories if num_classes in (None, len(categories)) else ()
    return Source(network, torchvision_preprocessing(weights), names)


def _download(arch: str) -> Path:
    """Return torch.hub's copy of torchvision's weights, fetched and checked against its name's hash first."""
    url: str = torchvision_weights(arch).url
    path = cached_path(url)
    if path.is_file():
        return path
    found = _HASH.search(path.name)
    advice = "fetch it on another machine and give it with --weights FILE"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), found and found.group(1), progress=sys.stderr.isatty())
    except (URLError, OSError) as error:
        raise ModelError(f"{arch}: {url} could not be downloaded ({first_line(error)}); {advice}") from error
    except RuntimeError as error:
        raise ModelError(f"{arch}: {url} came damaged ({first_line(error)}); try again, or {advice}") from error
    return path


# timm


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ModelError(f"timm: cannot be imported ({first_line(error)}); pip install 'pixelsem[timm]'") from error


def _from_timm(arch: str, num_classes: int | None, pretrained: bool) -> Source:
    timm = _timm()
    name = arch.removeprefix("timm:")
    if not timm.is_model(name):
        raise unknown_name(arch)
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        network = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # no such tag, no weights published, no network, hub errors of many kinds
        advice = "fetch its model.safetensors on another machine and give it with --weights FILE"
        raise ModelError(f"{arch}: could not be loaded ({first_line(error)}); {advice}") from error
    config = timm.data.resolve_model_data_config(network)
    size = config["input_size"][1:]
    resize = max(int(min(size) / config["crop_pct"]), min(size))
    mean, std, filtering = tuple(config["mean"]), tuple(config["std"]), config["interpolation"]
    preprocessing = Preprocessing(tuple(size), resize, mean, std, interpolation=filtering)
    return Source(network, preprocessing, _timm_class_names(timm, network, num_classes), pretrained)


def _timm_class_names(timm: Any, network: nn.Module, num_classes: int | None) -> tuple[str, ...]:
    """Return the names of the ImageNet classes a timm model knows; empty where it knows others."""
    subset = timm.data.infer_imagenet_subset(network)
    if num_classes is not None or not subset:
        return ()
    if subset == "imagenet-1k":
        return tuple(torchvision_weights("torchvision:resnet18").meta["categories"])
    return tuple(timm.data.ImageNetInfo(subset).label_descriptions())


# A function in the user's own file


def is_factory(name: str) -> bool:
    """Tell whether ``name`` has the form ``FILE.py:FUNCTION``."""
    path, _, function = name.rpartition(":")
    return path.endswith(".py") and function.isidentifier()


def _from_file(arch: str, trained: bool) -> Source:
    path_text, _, name = arch.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give FILE.py:FUNCTION")
    code = path.read_bytes()
    with _importable(path.parent):
        try:
            factory = getattr(_run_file(path, code), name, None)
            made = factory() if callable(factory) else None
        except (Exception, SystemExit) as error:
            raise ModelError(f"{arch}: raised {type(error).__name__}: {first_line(error)}") from error
    if not callable(factory):
        raise ModelError(f"{path}: has no function {name!r}; give FILE.py:FUNCTION")
    if isinstance(made, Classifier):
        return Source(made.network, made.preprocessing, made.class_names, trained, code)
    if isinstance(made, nn.Module):
        return Source(made, trained=trained, extra=code)
    raise ModelError(f"{arch}: returned {type(made).__name__}; it must return a torch.nn.Module or a Classifier")


def _run_file(path: Path, code: bytes) -> ModuleType:
    """Run a Python file's code as a module of its own name, so that two files of one name do not meet."""
    module = ModuleType(f"pixelsem_user_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look modules up by name
    exec(compile(code, path, "exec"), vars(module))
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it could when run as a script."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


# Names that are none of these


def unknown_name(name: str) -> ModelError:
    """Return the error for a name that is no model, with the closest ones that are."""
    close = difflib.get_close_matches(name, _known_names(name), 3, 0.75)
    source, _, bare = name.rpartition(":")
    if not source:
        close += [f"torchvision:{match}" for match in difflib.get_close_matches(bare, torchvision_names(), 2, 0.8)]
    hint = f"did you mean {' or '.join(close)}?" if close else "`pixelsem models` lists them; a file needs its suffix"
    return ModelError(f"{name}: no such model; {hint}")


def _known_names(name: str) -> list[str]:
    listings: dict[str, Callable[[], list[str]]] = {
        "torchvision": torchvision_names,
        "timm": lambda: list(_timm().list_models()),
    }
    source = name.partition(":")[0]
    return [f"{source}:{known}" for known in listings[source]()] if source in listings else list(ARCHITECTURES)
