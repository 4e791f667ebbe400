"""Class activation: where in an image a classifier sees a class (dong2020 §3.2; qian2021 §III-C).

Both methods weigh the channels A⁽ᵏ⁾ of one feature map, add them up and keep what is positive:

- Grad-CAM (qian2021, Eqs. 4 and 5): the weight is the gradient of the class's logit, averaged over the map.
- CAM (Zhou et al. 2016, the attention mask of dong2020): the weight is the one by which the fully connected
  layer multiplies the channel's average. It exists where the logits are a linear function of the averages of
  the last map: global average pooling and one linear layer (or a 1×1 convolution before the pooling, whose
  own map of the class then is the CAM). There the gradient of the logit is that weight over the map's area,
  the same at every pixel, so that one formula serves both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import pick_device
from pixelsem.models.classifier import Classifier
from pixelsem.models.inputs import fit_image, unfit_map
from pixelsem.models.labels import Labels, labels_identity
from pixelsem.models.options import load
from pixelsem.regions.settings import CamSettings

Method = Literal["cam", "gradcam"]

#: How far the gradients of a linear function may lie apart, as a share of the largest: fp32's rounding.
_SAME = 1e-4

_NEAR_NAMES = 3


@dataclass(frozen=True)
class Focus:
    """The feature map of a network that is looked at, found by :func:`find_focus`.

    ``layer`` is the module that gives it, or the function where no module does; ``method`` what is computed:
    ``gradcam`` also where ``cam`` was asked for and the network does not allow it. ``call`` is the map's number
    in the order of execution, None where it is the output of the module ``layer``.
    """

    layer: str
    method: Method
    call: int | None = None


def class_activation(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    layer: str | None = None,
    method: Method = "gradcam",
) -> Tensor:
    """Return where the evidence for a class is, float32 [N, H, W] in [0, 1], on the classifier's device.

    ``images`` are [N, 3, H, W], uint8 or floats in [0, 1], of a size that the network takes; ``classes`` int64
    [N]. The map of Eq. 5 is enlarged (bilinear) to H × W and divided by its maximum; where nothing speaks for
    the class it is 0 throughout. ``layer`` and ``method``: see :func:`find_focus`, whose errors it raises. A
    map does not depend on the other images but for the order of sums.
    """
    focus = find_focus(classifier, method, layer)
    return activation_maps(classifier, images, focus, lambda _: classes)


def activation_maps(classifier: Classifier, images: Tensor, focus: Focus, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the maps of :func:`class_activation` at a ``focus`` that is known already.

    ``choose`` gets the logits, float32 [N, classes], and returns the class of each image, int64 [N].
    """

    def evidence(logits: Tensor) -> Tensor:
        wanted = choose(logits.detach()).to(logits.device, copy=True)
        return logits.gather(1, wanted[:, None]).sum()

    features, gradient = _differentiate(classifier, _unit(images, classifier), focus, evidence)
    weights = gradient.mean((2, 3), keepdim=True)  # Eq. 4
    weighted = F.relu((weights * features).sum(1, keepdim=True))  # Eq. 5
    height, width = images.shape[2:]
    enlarged = F.interpolate(weighted, size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    peaks = enlarged.amax((1, 2), keepdim=True)
    return torch.where(peaks > 0, enlarged / peaks, 0.0)


def find_focus(classifier: Classifier, method: Method = "gradcam", layer: str | None = None) -> Focus:
    """Choose the feature map that the activation of a class is taken from.

    For ``gradcam`` it is the output of the last convolution with more than one pixel, taken after what follows
    at the same size: batch normalisation, activation, the end of its block (``layer4`` of a ResNet, relu5_3 of
    VGG-16, as Selvaraju et al. 2017 have it). A last convolution that makes the logits' own maps is passed
    over (SqueezeNet, All-CNN, NiN): it belongs to the classifier, and at its output only the one channel of
    the class has a gradient. For ``cam`` it is the map that is pooled, where the logits depend on its channels'
    averages linearly; that is tried out. Else it is Grad-CAM's. A vision transformer's only convolution is its
    first layer, whose map says little: name another module where it has one with maps.

    ``layer`` is a module's name in ``classifier.network`` and takes the place of both maps. Raises
    :class:`PixelsemError` where there is no such module, its output is no map [N, C, h, w] of more than one
    pixel, or the network has no convolution that can be found. TorchScript and ``torch.export`` files have no
    modules to find; of the latter there still is CAM.
    """
    run = _Run(classifier)
    if layer is not None:
        run.check(layer)
    if method == "cam":
        focus = Focus(run.pooled, "cam", run.count - 1) if layer is None else Focus(layer, "cam")
        if _is_averaged(classifier, run.images, focus):
            return focus
    return Focus(run.last_convolution() if layer is None else layer, "gradcam")


def _unit(images: Tensor, classifier: Classifier) -> Tensor:
    """Return images as floats in [0, 1] on the classifier's device."""
    with torch.inference_mode(False):  # what was made there cannot have a gradient; a copy can
        images = images.to(classifier.mean.device).clone()
        return images.float() if images.is_floating_point() else images.float() / 255


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point() and value[0, 0].numel() > 1


@contextmanager
def _exact() -> Iterator[None]:
    """Allow gradients, and fp32 as on the CPU: a map must not depend on the device."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
    ):
        yield


class _Cut:
    """Takes the place of one feature map: the network's gradient begins there, and nothing before is kept.

    The network gets a copy, as it may overwrite its operands.
    """

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.leaf: Tensor | None = None
        self._change = change

    def __call__(self, output: Tensor) -> Tensor:
        self.leaf = self._change(output.detach()).clone().requires_grad_()
        return self.leaf.clone()


class _CutCall(TorchFunctionMode):
    """Counts the maps that PyTorch's functions return, and cuts at the one with the number ``call``."""

    def __init__(self, call: int, cut: _Cut | None = None) -> None:
        super().__init__()
        self.count = 0
        self.last: Tensor | None = None
        self.function = ""
        self._call, self._cut = call, cut

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not _is_map(output):
            return output
        if self._cut is not None and self.count == self._call:
            output = self._cut(output)
        self.count += 1
        self.last, self.function = output, getattr(func, "__name__", "")
        return output


def _differentiate(
    classifier: Classifier,
    images: Tensor,
    focus: Focus,
    score: Callable[[Tensor], Tensor],
    change: Callable[[Tensor], Tensor] = lambda features: features,
) -> tuple[Tensor, Tensor]:
    """Return the feature map and the gradient of ``score`` (logits to a number) there, both [N, C, h, w].

    ``change`` may put other values into the map. The gradient is 0 where the logits do not depend on the map.
    """
    cut = _Cut(change)
    with _exact():
        if focus.call is None:
            handle = classifier.network.get_submodule(focus.layer).register_forward_hook(lambda _m, _i, out: cut(out))
            try:
                total = score(classifier(images))
            finally:
                handle.remove()
        else:
            with _CutCall(focus.call, cut):
                logits = classifier(images)
            total = score(logits)
        if cut.leaf is None:
            raise PixelsemError(f"{classifier.name}: does not come to {focus.layer} with these images")
        if not total.requires_grad:
            return cut.leaf.detach(), torch.zeros_like(cut.leaf)
        (gradient,) = torch.autograd.grad(total, cut.leaf, allow_unused=True, materialize_grads=True)
    return cut.leaf.detach(), gradient


def _is_averaged(classifier: Classifier, images: Tensor, focus: Focus) -> bool:
    """Do the logits depend on the channels' averages of the map, linearly, and on nothing else of it?

    Then the gradient is one at all pixels and for all values of the map, which is tried on random ones.
    """
    generator = torch.Generator().manual_seed(1)

    def mix(logits: Tensor) -> Tensor:
        return (logits @ torch.randn(logits.shape[1], generator=generator).to(logits.device)).sum()

    def scatter(features: Tensor) -> Tensor:
        # Every channel has its level: around 0 the random values would average out.
        random = torch.randn(features.shape, generator=generator) + torch.randn(
            (*features.shape[:2], 1, 1), generator=generator
        )
        return random.to(features.device) * (features.std() + 1)

    _, gradient = _differentiate(classifier, images, focus, mix, scatter)
    apart = (gradient - gradient.mean((0, 2, 3), keepdim=True)).abs().max()
    return bool(gradient.abs().max() > 0 and apart <= _SAME * gradient.abs().max())


@dataclass(frozen=True)
class _Call:
    """What a module gave when it was last called."""

    module: nn.Module
    output: Tensor
    version: int

    @property
    def shape(self) -> torch.Size:
        return self.output.shape

    def gave(self, output: Tensor, version: int) -> bool:
        """Is this the same map with the same values? In place, the same memory holds several in turn."""
        mine = self.output.data_ptr(), self.output.shape, self.version
        return mine == (output.data_ptr(), output.shape, version)


class _Run:
    """One run of the network on a few images of noise, and the maps that came up.

    :ivar images: the noise, float32 [N, 3, H, W] in [0, 1].
    :ivar count: how many maps PyTorch's functions returned.
    :ivar pooled: what the last of them is called.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        noise = torch.rand(4, 3, *classifier.preprocessing.size, generator=torch.Generator().manual_seed(0))
        self.images = noise.to(classifier.mean.device)
        self._calls: dict[str, _Call] = {}
        self._modules = {
            name: module
            for name, module in classifier.network.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule)  # which take no hooks
        }
        handles = [module.register_forward_hook(self._note(name)) for name, module in self._modules.items()]
        functions = _CutCall(-1)
        try:
            with torch.inference_mode(False), torch.no_grad(), functions:
                self._classes = classifier(self.images).shape[1]
        finally:
            for handle in handles:
                handle.remove()
        self.count = functions.count
        self.pooled = functions.function if functions.last is None else self._name(functions.last, functions.function)

    def _note(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            self._calls.pop(name, None)  # in the order of the last calls
            if isinstance(output, Tensor):
                self._calls[name] = _Call(module, output, output._version)

        return note

    def _name(self, output: Tensor, otherwise: str) -> str:
        """Return the outermost module that gave this very map."""
        names = [name for name, call in self._calls.items() if call.gave(output, output._version)]
        return min(names, key=lambda name: name.count("."), default=otherwise)

    def last_convolution(self) -> str:
        """Return the name of Grad-CAM's layer; see :func:`find_focus`."""
        calls = list(self._calls.items())
        places = [at for at, (_, call) in enumerate(calls) if type(call.module) is nn.Conv2d and _is_map(call.output)]
        if not places:
            raise PixelsemError(
                f"{self._classifier.name}: has no convolution (torch.nn.Conv2d) with a map of more than one pixel; "
                "name another module with --layer, or give the model as code where it is a TorchScript or exported file"
            )
        end = len(calls)
        if len(places) > 1 and self._makes_logits(places[-1]):
            end = places.pop()
        start = places[-1]
        size = calls[start][1].shape[2:]
        last = [call for _, call in calls[start:end] if _is_map(call.output) and call.shape[2:] == size][-1]
        same = [name for name, call in calls[start:end] if call.gave(last.output, last.version)]
        return min(same, key=lambda name: name.count("."))

    def _makes_logits(self, place: int) -> bool:
        calls = list(self._calls.values())
        after = [call for call in calls[place + 1 :] if isinstance(call.module, nn.Conv2d | nn.Linear)]
        return calls[place].shape[1] == self._classes and not after

    def check(self, layer: str) -> None:
        """Raise :class:`PixelsemError` where the module ``layer`` gives no map, with names that come close."""
        if layer in self._calls and _is_map(self._calls[layer].output):
            return
        fitting = [name for name, call in self._calls.items() if _is_map(call.output)]
        near = difflib.get_close_matches(layer, fitting, _NEAR_NAMES, 0) or fitting[-_NEAR_NAMES:]
        advice = f"; there are {', '.join(near)} …" if near else ""
        if layer not in self._modules:
            raise PixelsemError(f"--layer: {self._classifier.name} has no module {layer!r}{advice}")
        what = list(self._calls[layer].shape) if layer in self._calls else "no tensor"
        raise PixelsemError(
            f"--layer: {layer} of {self._classifier.name} gives {what}, not a feature map [N, C, h, w]{advice}"
        )


class Attention:
    """CAM or Grad-CAM with its settings and classifier, as a :class:`pixelsem.regions.registry.Segmenter`.

    A mask has its image's size. It is the map of the classifier's input laid back over the image: what the
    classifier's crop leaves out is 0.
    """

    kind: Literal["soft"] = "soft"
    whole = False

    def __init__(self, method: Method, settings: CamSettings) -> None:
        """Load the classifier, on ``--device``; raises :class:`PixelsemError` for what cannot be used as asked."""
        self.settings = settings
        self.batch = settings.batch_size
        self._method = method
        self._classifier = load(settings).to(pick_device(settings.device))
        self._labels = Labels(settings.labels, self._classifier.class_names)
        self._focus = find_focus(self._classifier, method, settings.layer)
        self._shown: dict[str, str] = {}
        # A network uses all cores by itself; and while hooks look into it, it belongs to one thread.
        self._turn = Lock()

    @property
    def threshold(self) -> float:
        """The share of 65535 from which a pixel is foreground (φ; dong2020 §3.2)."""
        return self.settings.threshold

    @property
    def model(self) -> dict[str, object]:
        """The classifier, and what of it is looked at."""
        name, digest = self._classifier.name, self._classifier.digest
        return {"name": name, "digest": digest, "layer": self._focus.layer, "activation": self._focus.method}

    @property
    def remarks(self) -> list[str]:
        """The layer; a map that is not the one asked for, and a model that knows nothing."""
        name, layer = self._classifier.name, self._focus.layer
        if self._focus.method == self._method:
            remarks = [f"{self._method} of {name} at {layer}"]
        else:
            remarks = [f"{name}: its logits are not linear in the averages of one map; gradcam at {layer} instead"]
        return remarks + ([] if self._classifier.trained else [f"{name} has no trained weights; masks mean nothing"])

    @property
    def identity(self) -> dict[str, object]:
        """The classifier by content, the layer that was chosen, the labels, and what becomes of a map."""
        return {
            "model": self._classifier.digest,
            "classes": self._classifier.class_names,
            "labels": labels_identity(self.settings.labels),
            "layer": self._focus.layer,
            "activation": self._focus.method,
            "threshold": self.settings.threshold,
            "tau": self.settings.tau,
            "resize": self.settings.resize,
        }

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the masks, uint16 [H, W], the maximum of each 65535 (or all of it 0)."""
        preprocessing, resize = self._classifier.preprocessing, self.settings.resize
        fitted = np.stack([fit_image(image, preprocessing, resize) for image in images])
        maps = self._maps(torch.from_numpy(fitted).permute(0, 3, 1, 2), ids).numpy()
        return [
            self._mask(unfit_map(values, image.shape, preprocessing, resize))
            for values, image in zip(maps, images, strict=True)
        ]

    def shown(self, image_id: str) -> str:
        """Return the class that the latest mask of an image shows; asked once per mask."""
        return self._shown.pop(image_id)

    def _maps(self, fitted: Tensor, ids: Sequence[str]) -> Tensor:
        def choose(logits: Tensor) -> Tensor:
            predicted = logits.argmax(1).tolist()
            chosen = [self._labels.of(each, top)[0] for each, top in zip(ids, predicted, strict=True)]
            names = self._classifier.class_names
            self._shown |= {each: names[number] for each, number in zip(ids, chosen, strict=True)}
            return torch.tensor(chosen)

        try:
            with self._turn:
                return activation_maps(self._classifier, fitted, self._focus, choose).cpu()
        except torch.OutOfMemoryError as error:
            raise PixelsemError(f"out of memory with {len(ids)} images at once; give a smaller --batch-size") from error

    def _mask(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        peak = values.max()
        shares = values / peak if peak > 0 else values
        shares = np.where(shares >= self.settings.tau, shares, 0)
        return np.rint(shares * 65535).astype(np.uint16)


def open_cam(settings: CamSettings, ids: Iterable[str] = ()) -> Attention:
    """Open CAM; see :class:`Attention`. The ids are not asked for: labels are taken image by image."""
    return Attention("cam", settings)


def open_gradcam(settings: CamSettings, ids: Iterable[str] = ()) -> Attention:
    """Open Grad-CAM; see :class:`Attention`."""
    return Attention("gradcam", settings)
