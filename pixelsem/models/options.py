"""From model options to a loaded classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pixelsem.errors import ModelError
from pixelsem.models.settings import ModelOptions

if TYPE_CHECKING:
    from pixelsem.models import Classifier


def load(options: ModelOptions) -> Classifier:
    """Load the classifier that ``options`` describe: on the CPU, in eval mode, fp32. Raises :class:`ModelError`."""
    from pixelsem.models import load_classifier

    return load_classifier(
        options.model,
        weights=_weights(options.weights),
        arch=options.arch,
        scale=options.scale,
        mean=options.mean,
        std=options.std,
        input_size=options.input_size,
        class_names=None if options.classes is None else read_class_names(options.classes),
    )


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
