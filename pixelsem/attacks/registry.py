"""Every attack by name. A new attack is one module, one settings dataclass, and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pixelsem.attacks.settings import DE_PRESETS, AttackSettings, DESettings

if TYPE_CHECKING:
    from pixelsem.attacks.base import Attack


@dataclass(frozen=True)
class AttackInfo:
    """What there is to know of an attack without running it.

    ``function`` is ``module:name`` under ``pixelsem.attacks``; ``presets`` maps a name to the settings it fixes;
    ``access`` says whether it needs gradients (white) or only confidences (black); ``norm`` is the one that its
    changes are small in, ``budget`` how small by default, in words; ``guide`` is ``module:factory`` under
    ``pixelsem.engine`` of what makes the superpixels and the attention that it goes by.
    """

    name: str
    summary: str
    settings: type[AttackSettings]
    function: str
    norm: str
    budget: str
    access: Literal["white", "black"]
    paper: str
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targeted: bool = True
    guide: str = ""

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
            budget="1 pixel",
            access="black",
            paper="su2017, wang2021",
            presets=DE_PRESETS,
        ),
    )
}
