r"""The worst image near an image, for cross-entropy that holds in a ball.

.. math::
    \max_{|x' - x|_2 \le r} CE(f(x'), y), \qquad
    CE = \log(1 + e^{m}), \quad m(x') = \log \sum_{c \ne y} e^{f_c(x')} - f_y(x')

by n steps of a fixed length up the gradient, each brought back into the ball and into the range
of pixels:

.. math:: x' \leftarrow \Pi_{[0, 1]} \, \Pi_{|x' - x| \le r} (x' + s \nabla m / |\nabla m|)

The cross-entropy rises with the margin m, and its gradient is that of m times :math:`1 - p_y`.
Steps of a fixed length need the direction alone, and that of m is still there where the
classifier is so sure that :math:`1 - p_y` is rounded to 0. A classifier trained on such images
has gradients that look like its classes, which is what chains follow.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018),
    | https://arxiv.org/abs/1706.06083
    | Joint Discriminative-Generative Modeling via Dual Adversarial Training (DAT; Yin et al.,
    | 2025), https://arxiv.org/abs/2510.13872
"""

__all__ = ["Adversarial"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .modes import frozen

LARGEST = 1e6


@dataclass(frozen=True)
class Adversarial:
    """Settings of the worst image near an image.

    The search starts at the image itself, as in DAT, and draws nothing: the gradient of a
    cross-entropy does not vanish there, and a random start in so many dimensions is nearly at
    right angles to it, so that some of the few steps would be spent on the way back.

    Arguments:
        radius: Radius of the ball around an image, the root of the summed squares of all pixels
            in [0, 1]; 0 for the image itself.
        n_steps: Number of steps.
        step: Length of a step, in the unit of the radius; 2.5 radii over all steps if absent.
    """

    radius: float = 0.0
    n_steps: int = 3
    step: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= LARGEST:
            raise ValueError(f"Adversarial: `radius` is 0 to {LARGEST:.0e}, got {self.radius}.")
        if self.step is not None and not self.radius:
            raise ValueError("Adversarial: a `step` needs a `radius`, the size of the ball.")
        if self.n_steps < 1:
            raise ValueError(f"Adversarial: `n_steps` must be 1 or more, got {self.n_steps}.")
        if self.step is not None and not 0 < self.step <= LARGEST:
            raise ValueError(f"Adversarial: `step` is above 0, to {LARGEST:.0e}, got {self.step}.")

    @property
    def length(self) -> float:
        """The length of a step, in the unit of the radius."""
        return 2.5 * self.radius / self.n_steps if self.step is None else self.step

    def __call__(self, energy: ClassifierEnergy, x: Tensor, y: Tensor) -> Tensor:
        """Returns images near x that the classifier of an energy takes least for class y.

        Its parameters get no gradient and its parts are in evaluation mode meanwhile. Works under
        `no_grad`, `inference_mode` and autocast.

        Arguments:
            energy: The energy, of which the logits alone matter.
            x: Images, pixels in [0, 1], with shape (B, C, H, W).
            y: Their class indices, with shape (B).

        Raises:
            ValueError: If there is one class only, whose cross-entropy is 0 everywhere.
        """
        if not self.radius:
            return x
        # Tensors made in inference mode cannot be differentiated, even with gradients enabled.
        with torch.inference_mode(False), torch.no_grad(), frozen(energy):
            x, y = x.detach().clone(), y.clone()
            # Wide enough for x: an image outside the range is not moved beyond the radius by it.
            low, high = x.clamp(max=0), x.clamp(min=1)
            worst = x
            for _ in range(self.n_steps):
                away = worst - x + self.length * _unit(_ascent(energy, worst, y))
                norm = away.flatten(1).norm(dim=1).clamp_min(self.radius)
                away = away * (self.radius / norm).view(-1, 1, 1, 1)
                # The range holds x, so that what it cuts off only brings an image nearer.
                worst = torch.minimum(torch.maximum(x + away, low), high)
        return worst


def _ascent(energy: ClassifierEnergy, x: Tensor, y: Tensor) -> Tensor:
    """Returns the gradient of the margin m of each image, with the shape of x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = energy.classify(x)
        if logits.shape[1] < 2:
            raise ValueError(
                "Adversarial: 2 classes or more are needed, the classifier has 1. Set `radius` to "
                "0."
            )
        index = y[:, None]
        others = logits.scatter(1, index, -math.inf).logsumexp(1)
        margin = others - logits.gather(1, index)[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), x)
    return gradient


def _unit(gradient: Tensor) -> Tensor:
    """Rescales the gradient of each image to norm 1; one that is 0 stays 0."""
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient / norm.view(-1, 1, 1, 1)
