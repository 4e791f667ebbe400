"""From model options to a loaded classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pixelsem.errors import ModelError, PixelsemError, StageError
from pixelsem.models.settings import ModelOptions
from pixelsem.stage import STAGE_FILE

if TYPE_CHECKING:
    from pixelsem.models import Classifier
    from pixelsem.models.inputs import Resize
    from pixelsem.stage import Stage

#: The model options that are paths.
_PATHS = frozenset({"weights", "classes"})


def load(options: ModelOptions) -> Classifier:
    """Load the classifier that ``options`` describe: on the CPU, in eval mode, fp32. Raises :class:`ModelError`."""
    from pixelsem.models import load_classifier
    from pixelsem.models.defended import put_behind

    classifier = load_classifier(
        options.model,
        weights=_weights(options.weights),
        arch=options.arch,
        scale=options.scale,
        mean=options.mean,
        std=options.std,
        input_size=options.input_size,
        class_names=None if options.classes is None else read_class_names(options.classes),
    )
    return put_behind(classifier, options.defenses)


def _weights(path: Path | None) -> Path | str | None:
    # A stage notes its paths relative to itself, so that "none" comes back from --config as "../../none".
    return "none" if path is not None and path.name == "none" and not path.exists() else path


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read one class name per line, blank lines skipped; raises :class:`ModelError` for none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: class names cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ModelError(f"{path}: holds no class names; expected one per line")
    return names


def model_of(stage: Stage) -> ModelOptions:
    """Return the options of the model that ``stage`` was made with, its files as seen from here.

    Raises :class:`StageError` where these are damaged.
    """
    noted = stage.info.options
    values = {field.name: noted[field.name] for field in fields(ModelOptions) if noted.get(field.name) is not None}
    for name in _PATHS & values.keys():
        values[name] = stage.path / str(values[name])
    try:
        return ModelOptions.from_dict(values)
    except PixelsemError as error:
        raise StageError(f"{stage.path / STAGE_FILE}: {error}; correct it there") from error


def resize_of(stage: Stage) -> Resize:
    """Return how the images of ``stage`` came to its model's resolution; raises :class:`StageError` for no known way.

    Where the stage does not say, by the model's own resize and crop.
    """
    from pixelsem.models.inputs import Resize

    ways: tuple[Resize, ...] = get_args(Resize)
    noted = stage.info.options.get("resize") or "crop"
    if noted not in ways:
        said = f"`options: resize` is none of {', '.join(ways)} ({str(noted)[:40]})"
        raise StageError(f"{stage.path / STAGE_FILE}: {said}; correct it there")
    return ways[ways.index(noted)]


def parse_models(texts: Sequence[str]) -> dict[str, ModelOptions]:
    """Read a list of models, as ``--models`` takes it; return their options by the name to call them by.

    An item is a model as ``--model`` takes it, ``MODEL=WEIGHTS`` with the file to load into it, or a YAML file that
    gives each model a name and any model options: ``{name: {model: allconv, weights: w.safetensors}}``, paths
    relative to the file. Raises :class:`PixelsemError` for a file that is none, and for a name that occurs twice.
    """
    found: dict[str, ModelOptions] = {}
    for text in filter(None, texts):
        for name, options in _read_models(Path(text)) if _is_yaml(text) else [_parse_model(text)]:
            if name in found:
                raise PixelsemError(f"--models: {name} is there twice; name them apart in a YAML file")
            found[name] = options
    if not found:
        raise PixelsemError("--models: names no model")
    return found


def _is_yaml(text: str) -> bool:
    return Path(text).suffix.lower() in (".yaml", ".yml")


def _parse_model(text: str) -> tuple[str, ModelOptions]:
    model, equals, weights = text.partition("=")
    if equals and not (model and weights):
        raise PixelsemError(f"--models: {text!r} is not MODEL or MODEL=WEIGHTS")
    return text, ModelOptions(model=model, weights=Path(weights) if weights else None)


def _read_models(file: Path) -> Iterator[tuple[str, ModelOptions]]:
    from pixelsem.yaml_files import read_yaml

    values = read_yaml(file)
    if not isinstance(values, dict) or not all(isinstance(each, dict) for each in values.values()):
        raise PixelsemError(f"{file}: expected a mapping of names to model options, like 'mine: {{model: allconv}}'")
    for name, options in values.items():
        own = {str(key).replace("-", "_"): value for key, value in options.items()}
        for path in _PATHS & own.keys():
            own[path] = file.parent / str(own[path])
        model = str(own.get("model", ""))
        if model and (file.parent / model.partition(":")[0]).is_file():  # FILE, or FILE.py:FUNCTION
            own["model"] = str(file.parent / model)
        try:
            yield str(name), ModelOptions.from_dict(own)
        except PixelsemError as error:
            raise PixelsemError(f"{file}: {name}: {error}") from error
