"""Every attack by name. A new attack is one module, one settings dataclass, and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pixelsem.attacks.settings import DE_PRESETS, DESettings
from pixelsem.settings import Settings

if TYPE_CHECKING:
    from pixelsem.attacks.base import Attack


@dataclass(frozen=True)
class AttackInfo:
    """What there is to know of an attack without running it.

    ``function`` is ``module:name`` under ``pixelsem.attacks``; ``presets`` maps a name to the settings it fixes;
    ``access`` says whether it needs gradients (white) or only confidences (black).
    """

    name: str
    summary: str
    settings: type[Settings]
    function: str
    norm: str
    access: Literal["white", "black"]
    paper: str
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def load(self) -> Attack:
        """Import and return the attack's function."""
        module, name = self.function.split(":")
        attack: Attack = getattr(import_module(f"pixelsem.attacks.{module}"), name)
        return attack


ATTACKS = {
    info.name: info
    for info in (
        AttackInfo(
            name="de",
            summary="Change one, three, five or K pixels, found by differential evolution.",
            settings=DESettings,
            function="de:differential_evolution",
            norm="L0",
            access="black",
            paper="su2017, wang2021",
            presets=DE_PRESETS,
        ),
    )
}
