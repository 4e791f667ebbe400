"""Every attack by name. A new attack is one module, one settings dataclass, and one entry here.

Help and completions read this module without torch, so settings are in modules of their own that import nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pixelsem.attacks.settings import DE_PRESETS, AttackSettings, DESettings
from pixelsem.attacks.settings_black_box import SPARSE_RS_PRESETS, CMASettings, RandomSettings, SparseRSSettings
from pixelsem.attacks.settings_dong2020 import (
    FgmSettings,
    IFgmSettings,
    MiFgmSettings,
    MSaiFgmSettings,
    SaFgmSettings,
    SaiFgmSettings,
)
from pixelsem.attacks.settings_exhaustive import ExhaustiveSettings
from pixelsem.attacks.settings_jsma import JSMA_PRESETS, JsmaSettings
from pixelsem.attacks.settings_patches import AdvPatchSettings, LavanSettings
from pixelsem.attacks.settings_qian2021 import (
    CW_PRESETS,
    M_DI2_FGSM_PRESETS,
    PGD_PRESETS,
    CarliniWagnerSettings,
    CfrSettings,
    MDi2FgmSettings,
    PgdSettings,
)

if TYPE_CHECKING:
    from pixelsem.attacks.base import Attack


@dataclass(frozen=True)
class AttackInfo:
    """What there is to know of an attack without running it.

    ``function`` is ``module:name`` under ``pixelsem.attacks``; ``presets`` maps a name to the settings it fixes;
    ``access`` says whether it needs gradients (white) or only confidences (black); ``norm`` is the one that its
    changes are small in, ``budget`` how small by default, in words; ``guide`` is ``module:factory`` under
    ``pixelsem.engine`` of what makes the superpixels and the attention that it goes by; ``picture`` is
    ``module:function`` under ``pixelsem.report`` of what draws its maps of pixels; ``remark`` is what its help says
    of settings that there are not.
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
    picture: str = ""
    remark: str = ""

    @property
    def help(self) -> str:
        """What the command's help begins with."""
        text = f"{self.summary} ({self.paper})"
        return f"{text}\n\n{self.remark}" if self.remark else text

    def load(self) -> Attack:
        """Import and return the attack's function."""
        module, name = self.function.split(":")
        attack: Attack = getattr(import_module(f"pixelsem.attacks.{module}"), name)
        return attack


def _fast_gradient(name: str, summary: str, settings: type[FgmSettings], paper: str = "") -> AttackInfo:
    """Make the entry of one of dong2020's methods, or of a baseline of theirs by an earlier ``paper``."""
    guided = issubclass(settings, SaFgmSettings)
    return AttackInfo(
        name=name,
        summary=summary,
        settings=settings,
        function="superpixel_fgm:superpixel_fast_gradient" if guided else "fgm:fast_gradient",
        norm="L2",
        budget="4·√(3·H·W) of 255",
        access="white",
        paper=f"{paper}, dong2020" if paper else "dong2020",
        guide="guides:superpixels_and_attention" if guided else "",
    )


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
        AttackInfo(
            name="sparse-rs",
            summary="Change K pixels, found by random search over smaller and smaller parts of them.",
            settings=SparseRSSettings,
            function="sparse_rs:sparse_rs",
            norm="L0",
            budget="1 pixel",
            access="black",
            paper="Croce et al. 2022",
            presets=SPARSE_RS_PRESETS,
        ),
        AttackInfo(
            name="random",
            summary="Change K pixels drawn at random again and again: the chance that searches must beat.",
            settings=RandomSettings,
            function="random_search:random_search",
            norm="L0",
            budget="1 pixel",
            access="black",
            paper="baseline",
        ),
        AttackInfo(
            name="cma-es",
            summary="Change K pixels, found by the evolution strategy that adapts its covariance matrix.",
            settings=CMASettings,
            function="cma_es:cma_es",
            norm="L0",
            budget="1 pixel",
            access="black",
            paper="Hansen 2016",
        ),
        AttackInfo(
            name="exhaustive",
            summary="Try colours at every pixel: a map of where one pixel is enough.",
            settings=ExhaustiveSettings,
            function="exhaustive:exhaustive",
            norm="L0",
            budget="every pixel × 8 colours",
            access="black",
            paper="pixelsem",
            picture="vulnerability:draw_vulnerability",
        ),
        _fast_gradient(
            "fgm", "Change all pixels along the gradient, in one step.", FgmSettings, paper="Goodfellow et al. 2015"
        ),
        _fast_gradient(
            "i-fgm",
            "Change all pixels along the gradient, in several steps.",
            IFgmSettings,
            paper="Kurakin et al. 2017",
        ),
        _fast_gradient(
            "mi-fgm",
            "Change all pixels along the gradient and those before it.",
            MiFgmSettings,
            paper="Dong et al. 2018",
        ),
        _fast_gradient(
            "sa-fgm", "Change attended superpixels, each as a whole, along the gradient, in one step.", SaFgmSettings
        ),
        _fast_gradient(
            "sai-fgm",
            "Change attended superpixels, each as a whole, along the gradient, in several steps.",
            SaiFgmSettings,
        ),
        _fast_gradient(
            "m-sai-fgm",
            "Change attended superpixels, each as a whole, along the gradient and those before it.",
            MSaiFgmSettings,
        ),
        AttackInfo(
            name="cfr",
            summary="Change what the class's evidence lies in, weighed by Grad-CAM.",
            settings=CfrSettings,
            function="cfr:contributing_features",
            norm="L2",
            budget="20 steps",
            access="white",
            paper="qian2021",
            guide="guides:attention",
        ),
        AttackInfo(
            name="pgd",
            summary="Climb the loss within an L∞ or L2 ball from a random start.",
            settings=PgdSettings,
            function="pgd:projected_gradient_descent",
            norm="L∞, L2",
            budget="16 of 255; L2 128 of 255",
            access="white",
            paper="Madry et al. 2018, qian2021",
            presets=PGD_PRESETS,
        ),
        AttackInfo(
            name="m-di2-fgsm",
            summary="Climb the loss of randomly resized images with momentum, so that the change transfers.",
            settings=MDi2FgmSettings,
            function="diverse_inputs:diverse_inputs",
            norm="L∞",
            budget="16 of 255",
            access="white",
            paper="Xie et al. 2019, qian2021",
            presets=M_DI2_FGSM_PRESETS,
        ),
        AttackInfo(
            name="cw",
            summary="Find the smallest change that alters the prediction (Carlini and Wagner).",
            settings=CarliniWagnerSettings,
            function="carlini_wagner:carlini_wagner",
            norm="L2",
            budget="1,000 iterations",
            access="white",
            paper="Carlini and Wagner 2017, qian2021",
            presets=CW_PRESETS,
        ),
        AttackInfo(
            name="jsma",
            summary="Change the most salient pair of values, step by step, until the class is reached.",
            settings=JsmaSettings,
            function="jsma:saliency_map",
            norm="L0",
            budget="14.5 % of the values",
            access="white",
            paper="Papernot et al. 2016, qian2021",
            presets=JSMA_PRESETS,
        ),
        AttackInfo(
            name="adv-patch",
            summary="Put a visible patch into the image: trained for it, or one for many images.",
            settings=AdvPatchSettings,
            function="patches:adversarial_patch",
            norm="L0",
            budget="15 % of the pixels",
            access="white",
            paper="Brown et al. 2017, qian2021",
            guide="patches:given_patch",
            remark="There is no preset of Brown et al.: they train one patch for many images, as `adv-patch fit` does, "
            "but turned and scaled at random and against several networks at once. Nor is there a --c: qian2021's "
            "c = 1 is the weight of the only term there is, which Adam's steps do not depend on.",
        ),
        AttackInfo(
            name="lavan",
            summary="Put a small patch of visible noise into a corner or onto the region.",
            settings=LavanSettings,
            function="patches:localised_noise",
            norm="L0",
            budget="2 % of the pixels",
            access="white",
            paper="Karmon et al. 2018, qian2021",
            remark="There is no preset of Karmon et al.: they too change 2 % of the pixels, but aim at a target "
            "(--target) and also let noise leave the range of an image, which no file can hold.",
        ),
    )
}
