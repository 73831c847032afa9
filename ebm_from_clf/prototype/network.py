r"""The prototype: the one-layer network of the paper, and its filters as chains feel them.

.. math::
    f(I) = \sum_k h(\langle I, w_k \rangle + b_k), \qquad h(r) = \max(0, r)

In whitened coordinates the response of a unit, times the gain, is :math:`\langle u, \omega_k
\rangle + \beta_k` with :math:`\omega_k = \gamma A^\top w_k` and :math:`\beta_k = \gamma (b_k +
\langle \mu, w_k \rangle)`; the normalisation of the classifier's input belongs to A and
:math:`\mu` here.
"""

__all__ = ["Filters", "Prototype", "read_filters"]

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..energy import ClassifierEnergy

MOST_NATS = 1e6  # beyond, rounding of exponents is seen in probabilities


class Prototype(nn.Module):
    r"""Creates the classifier :math:`f(I) = \sum_k h(\langle I, w_k \rangle + b_k)` of one class.

    References:
        | A Theory of Generative ConvNet (Xie et al., 2016)
        | https://arxiv.org/abs/1602.03264

    Arguments:
        weight: The filters :math:`w_k`, of the size of an image, with shape (K, C, H, W).
        bias: The biases :math:`b_k`, with shape (K).

    Raises:
        TypeError: If they are not floating point.
        ValueError: If the shapes are not these.
    """

    num_classes = 1

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        if weight.ndim != 4 or bias.shape != weight.shape[:1] or not len(bias):
            raise ValueError(
                "Prototype: `weight` must have shape (K, C, H, W) and `bias` shape (K), "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}."
            )
        if not (weight.is_floating_point() and bias.is_floating_point()):
            raise TypeError(
                "Prototype: `weight` and `bias` must be floating point, got "
                f"{weight.dtype} and {bias.dtype}. Give `weight.float()`."
            )
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.rectifier = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the score of images with shape (B, C, H, W), with shape (B, 1)."""
        return self.rectifier(self.responses(x)).sum(1, keepdim=True)

    def responses(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\langle I, w_k \rangle + b_k`, with shape (B, K)."""
        return x.flatten(1) @ self.weight.flatten(1).T + self.bias


class Filters(NamedTuple):
    r"""The filters of a prototype as chains feel them, float64.

    Arguments:
        omega: The tilts :math:`\omega_k` of the units, in u, with shape (K, C, H, W).
        beta: The responses :math:`\beta_k` at the mean of the reference, with shape (K).
    """

    omega: Tensor
    beta: Tensor


def read_filters(energy: ClassifierEnergy, temperature: float = 1.0) -> Filters:
    r"""Reads the filters of a prototype in the whitened coordinates of its energy.

    A chain at the temperature T samples the model of :math:`\omega / \sqrt T` and
    :math:`\beta / T`, in :math:`u / \sqrt T`.

    Arguments:
        energy: The energy of a :class:`Prototype`, in the gauge `raw`, on all images.
        temperature: The temperature T.

    Raises:
        TypeError: If the classifier is no prototype.
        ValueError: If the energy is another one, the temperature not positive, or a filter or
            bias not finite or too large.
    """
    network = energy.classifier
    if not isinstance(network, Prototype):
        raise TypeError(
            "law of a prototype: the classifier must be a Prototype, got "
            f"{type(network).__name__}."
        )
    plain = energy.gauge == "raw" and energy.support == "unbounded" and energy.kept is None
    if not plain or energy.smoothing is not None:
        raise ValueError(
            "law of a prototype: the energy must be in the gauge `raw`, unbounded, without "
            "smoothing and without a region that is kept."
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"law of a prototype: `temperature` must be positive, got {temperature}.")
    network = copy.deepcopy(network).double()
    space = copy.deepcopy(energy.space).double()
    reference = copy.deepcopy(energy.reference).double()
    with torch.inference_mode(False), torch.enable_grad():
        # A row of zeros for each unit: its gradient is the tilt of that unit alone.
        u = torch.zeros_like(network.weight, requires_grad=True)
        responses = energy.gain * network.responses(space(reference.decode(u))).diagonal()
        (omega,) = torch.autograd.grad(responses.sum(), u)
    found = Filters(omega / math.sqrt(temperature), responses.detach() / temperature)
    largest = torch.maximum(found.omega.flatten(1).square().sum(1) / 2, found.beta.abs())
    if not largest.max() <= MOST_NATS:
        raise ValueError(
            "law of a prototype: filters and biases must be finite and at most "
            f"{MOST_NATS:.0e} nats, as half the square of a filter in u and as a response at the "
            f"mean, got {float(largest.max()):.2g}. Take a smaller gain, weight or bias."
        )
    return found
