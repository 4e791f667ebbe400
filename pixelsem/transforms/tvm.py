"""Total variance minimisation (Guo et al. 2018, "Countering Adversarial Images"; dong2020, §4.2)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.transforms.rounding import to_8_bits, to_unit
from pixelsem.transforms.settings import TvmSettings

#: Primal step at a weight of 1: what takes the solver fastest to within 0.5 % of the optimum, by trial. The dual
#: step follows, as their product must not exceed 1/8, the bound that the gradient's norm sets.
_PRIMAL = 0.012


def minimise_variation(images: Tensor, settings: TvmSettings) -> Tensor:
    """Drop pixels of uint8 [N, 3, H, W] and fill them in with least total variation: uint8 [N, 3, H, W].

    Every channel of a pixel is dropped on its own (Guo et al.: X(i, j, k), k being the channel). Which are depends on
    ``settings.seed`` and the image's own pixels alone (:func:`kept_values`): an image always comes out the same.
    """
    kept = kept_values(images, settings.drop, settings.seed)
    return to_8_bits(solve(to_unit(images), kept, settings.weight, settings.iterations))


def kept_values(images: Tensor, drop: float, seed: int) -> Tensor:
    """Return which values of uint8 [N, 3, H, W] are kept, bool [N, 3, H, W], each with probability 1 − ``drop``.

    The draws are those of a counter-based generator (Philox) keyed by the seed and the sha256 of an image's pixels.
    """
    rows = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    drawn = [_generator(pixels, seed).random(pixels.shape) >= drop for pixels in rows]
    kept = torch.from_numpy(np.stack(drawn) if drawn else np.empty(rows.shape, bool))
    return kept.to(images.device).permute(0, 3, 1, 2).contiguous()


def _generator(pixels: NDArray[np.uint8], seed: int) -> np.random.Generator:
    key = hashlib.sha256(f"tvm\0{seed}\0".encode() + pixels.tobytes()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))


def solve(images: Tensor, kept: Tensor, weight: float, iterations: int) -> Tensor:
    """Minimise ½‖kept · (u − images)‖² + weight · TV(u) over u; return u, float [N, 3, H, W].

    ``images`` is float [N, 3, H, W], ``kept`` bool of that shape; TV is isotropic, of each channel alone
    (:func:`objective`). Primal-dual (Chambolle and Pock 2011, Algorithm 1 with θ = 1) in the dtype of ``images``.
    """
    pull = _PRIMAL / weight * kept.to(images.dtype)
    target, shrink = pull * images, 1 / (1 + pull)
    # Dropped pixels start at the mean of the kept ones, so that they do not have to come all the way from 0.
    count = kept.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (images * kept).sum((2, 3), keepdim=True, dtype=torch.float64) / count
    u = torch.where(kept, images, mean.to(images.dtype))
    ahead = u.clone()
    # The dual variable in units of the dual step, which is 1/8 of the inverse of the primal one; its last row and
    # column are always 0. Products that are added are by powers of 2, and so exact: whether they are fused with the
    # sum depends on an element's place in memory, and an image must come out the same in any batch.
    down, right = torch.zeros_like(u), torch.zeros_like(u)
    for _ in range(iterations):
        down[:, :, :-1].add_(ahead[:, :, 1:]).sub_(ahead[:, :, :-1])
        right[..., :-1].add_(ahead[..., 1:]).sub_(ahead[..., :-1])
        outside = (down * down).add_(right * right).sqrt_().div_(8 * _PRIMAL).clamp_(min=1)
        down.div_(outside)
        right.div_(outside)
        torch.neg(u, out=ahead)
        u.add_(_divergence(down, right), alpha=1 / 8).add_(target).mul_(shrink)
        ahead.add_(u, alpha=2)
    return u


def objective(u: Tensor, images: Tensor, kept: Tensor, weight: float) -> Tensor:
    """Return what :func:`solve` minimises, float [N], of float [N, 3, H, W].

    TV is the sum over pixels and channels of the Euclidean norm of the forward differences, those beyond the last row
    and column being 0.
    """
    down, right = torch.zeros_like(u), torch.zeros_like(u)
    down[:, :, :-1] = u[:, :, 1:] - u[:, :, :-1]
    right[..., :-1] = u[..., 1:] - u[..., :-1]
    misfit = (kept * (u - images)).square().sum((1, 2, 3)) / 2
    return misfit + weight * torch.hypot(down, right).sum((1, 2, 3))


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """Return minus the adjoint of the forward differences, [N, 3, H, W]."""
    result = down + right
    result[:, :, 1:] -= down[:, :, :-1]
    result[..., 1:] -= right[..., :-1]
    return result
