r"""Denoising score matching: a warm start of the energy without any chain.

A chain at temperature T follows the score :math:`(B(u) - u) / T` of :math:`\exp(-U / T)`. The
score of data blurred by noise of standard deviation s is the mean of :math:`(u - v) / s^2` over
the images u that may have become v, so the two agree where

.. math:: L = \tfrac{1}{2 D} E | B(v) - v - \tfrac{T}{s^2} (u - v) |^2, \qquad v = u + s z

in D dimensions is least (Vincent, 2011). At :math:`s^2 = T` this is :math:`|B(v) - u|^2`: what is
drawn top-down from the noisy image is the image. As s goes to 0, D times L becomes score matching,
:math:`|B - u|^2 / 2 + T \, \mathrm{div} B`, which is also what one Langevin step from the data
learns (CD-1) as the step goes to 0; its first term alone, the reconstruction, is not.

On a box noise is brought back as chains are, by a map with the derivative J, and both sides are
multiplied by J: -1 for a pixel that was reflected, and 0 for one that was clamped, across whose
border there is no score. Images whose pixels lie on the border, as black ones do, would else
teach the score of images that no chain can reach.

In a run with the gain :math:`\gamma` L is weighted by :math:`t D / \gamma`, where t is the time of
an update's chain, :math:`K e^2 / 2` for K steps e without momentum. In the limits above its
gradient is then that of the contrastive loss after such a chain from the data, so that both stages
weigh alike against the cross-entropy. Unweighted, a classifier whose gradient is steep would
forget its classes. The gradient of L differentiates the network twice, which some operations
cannot do. Between rectifiers a score is constant, so that L as autograd differentiates it moves no
kink, and teaches no bias before a rectifier; chains do.
"""

__all__ = ["WarmStart", "check_twice", "denoising", "warm_loss", "weight_of"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .drift import Energy, confined
from .energy import ClassifierEnergy
from .errors import UsageError
from .langevin import Langevin
from .marginal import Marginal
from .noise import Randomness, normal
from .reference import WhiteNoise
from .space import PixelSpace

REMEDIES = {
    "scaled_dot_product": (
        "fused attention",
        "Call timm.layers.set_fused_attn(False), or set TIMM_FUSED_ATTN=0, before the classifier "
        "is created, or run inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH).",
    ),
    "hardsigmoid": (
        "the hard sigmoid",
        "There is no switch for it: set `updates` of `warm_start` to 0, or take a classifier "
        "without it.",
    ),
    "donated buffers": ("a compiled network", "Pass the classifier before torch.compile."),
    "torch.compile": ("a compiled network", "Pass the classifier before torch.compile."),
}


@dataclass(frozen=True)
class WarmStart:
    """Settings of the warm start by denoising, before the chains are begun.

    Arguments:
        updates: How many of the updates, the first ones, are of the warm start; 0 for none.
        noise: Standard deviation of the noise, in those of the reference; if absent, the square
            root of the temperature, with which the clean image is reconstructed.
    """

    updates: int = 0
    noise: float | None = None

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ValueError(f"WarmStart: `updates` must be 0 or more, got {self.updates}.")
        if self.noise is not None and not 1e-4 <= self.noise < math.inf:
            raise ValueError(f"WarmStart: `noise` must be 0.0001 or more, got {self.noise}.")

    def noise_at(self, temperature: float) -> float:
        """Returns the standard deviation of the noise for chains of a temperature."""
        return math.sqrt(temperature) if self.noise is None else self.noise


def denoising(
    energy: Energy,
    u: Tensor,
    y: Tensor,
    *,
    noise: float,
    temperature: float,
    generator: Randomness,
) -> Tensor:
    r"""Returns the denoising loss L, a scalar, to be differentiated in the parameters.

    It is half the mean square over images and dimensions, about .5 where B = 0 and the images are
    those of the reference.

    References:
        | A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
        | https://doi.org/10.1162/NECO_a_00142

    Arguments:
        energy: The energy U(u, y), in nats, with shape (B); its `confine` brings noise back.
        u: Observed images, whitened, with shape (B, *).
        y: Their class indices, with shape (B).
        noise: The standard deviation s of the noise, in those of the reference.
        temperature: The temperature T of the chains.
        generator: One generator, or one per image.

    Raises:
        RuntimeError: If an operation of the energy cannot be differentiated twice.
    """
    away = u.detach() + noise * normal(u, generator)
    v, side = confined(energy, away, torch.ones_like(away))
    v.requires_grad_()
    (score,) = torch.autograd.grad(-energy(v, y).sum(), v, create_graph=True)
    wanted = side * (temperature / noise**2 * (u - away))
    return (side * (score - wanted)).square().mean() / 2


def weight_of(sampler: Langevin, dim: int, gain: float) -> float:
    """Returns the weight with which the loss teaches what chains begun at the data would teach.

    Arguments:
        sampler: The sampler of one update.
        dim: The number of dimensions D.
        gain: The gain on the logits, which scores are divided by.
    """
    return sampler.time * dim / gain


def warm_loss(
    energy: ClassifierEnergy,
    x: Tensor,
    y: Tensor,
    settings: WarmStart,
    sampler: Langevin,
    *,
    joint: bool,
    generator: Randomness,
) -> tuple[Tensor, float]:
    """Returns the denoising loss of an update of the warm start, and its weight.

    Arguments:
        energy: The energy.
        x: Observed images, pixels in [0, 1], with shape (B, C, H, W).
        y: Their class indices, with shape (B).
        settings: The settings.
        sampler: The sampler of the updates that follow.
        joint: Whether the scores are those of all classes together.
        generator: The generator of the noise.
    """
    u = energy.reference.encode(x)
    loss = denoising(
        Marginal(energy) if joint else energy,
        u,
        y,
        noise=settings.noise_at(sampler.temperature),
        temperature=sampler.temperature,
        generator=generator,
    )
    return loss, weight_of(sampler, u[0].numel(), energy.gain)


def check_twice(classifier: nn.Module, space: PixelSpace) -> None:
    """Checks on two images that a classifier can be differentiated twice, as denoising needs it.

    Arguments:
        classifier: The classifier.
        space: The map from pixels to its input.

    Raises:
        UsageError: If an operation of the classifier cannot be differentiated twice.
    """
    generator = torch.Generator().manual_seed(0)
    mean = torch.full(space.shape, 0.5, device=space.mean.device)
    energy = ClassifierEnergy(classifier, WhiteNoise(mean, 0.25), space)
    u = normal(mean.expand(2, *space.shape), generator)
    y = torch.zeros(2, dtype=torch.int64, device=u.device)
    weights = [p for p in classifier.parameters() if p.requires_grad]
    try:
        loss = denoising(energy, u, y, noise=1.0, temperature=1.0, generator=generator)
        torch.autograd.grad(loss, weights, allow_unused=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        known = ("derivative for", "double backward", "donated buffers")
        if not any(sign in reason for sign in known):
            raise
        cause, remedy = next(
            (found for sign, found in REMEDIES.items() if sign in reason),
            ("an operation", "Set `updates` of `warm_start` to 0, or take another classifier."),
        )
        raise UsageError(
            f"the warm start must differentiate the classifier twice, and {cause} in it cannot "
            f"be ({reason[:120]}). {remedy}"
        ) from error
