r"""The energy of images whatever their class, as in JEM.

.. math:: U(u) = |u|^2 / 2 - \gamma \log \sum_c e^{f_c(\mu + A u)}

At gain 1 this is the sum of the densities of all classes, :math:`p \propto \sum_c Z_c \, p_c`. A
chain may go from one class to another.

References:
    | Your classifier is secretly an energy based model (Grathwohl et al., 2020),
    | https://arxiv.org/abs/1912.03263
"""

__all__ = ["Marginal", "joint"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .energy import ClassifierEnergy
from .noise import Randomness
from .smooth import View


def joint(tilts: Tensor, gain: float) -> Tensor:
    r"""Returns the score :math:`\log \sum_c e^{f_c}` from tilts, with shape (B).

    Arguments:
        tilts: The tilts of all classes, with shape (B, K).
        gain: The gain in them.
    """
    return (tilts / gain).logsumexp(1)


class Marginal(nn.Module):
    """Creates the energy of all classes together, for a sampler.

    Arguments:
        energy: The energy of single classes.
    """

    def __init__(self, energy: ClassifierEnergy) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        """Returns the energy U(u) in nats, with shape (B).

        Arguments:
            u: Whitened coordinates, with shape (B, C, H, W).
            y: Not looked at.
        """
        return self._value(u, None)

    def realise(self, u: Tensor, generator: Randomness) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns an energy whose smoothed score is estimated by changes drawn now.

        Arguments:
            u: Where it will be asked, with shape (B, C, H, W).
            generator: One generator, or one per image.
        """
        views = self.energy.views(u, generator)
        if views is None:
            return self
        return lambda u, y: self._value(u, views)

    def confine(self, u: Tensor) -> Tensor:
        """Returns u with its pixels brought back into the support."""
        return self.energy.confine(u)

    def _value(self, u: Tensor, views: list[View] | None) -> Tensor:
        gain = self.energy.gain
        # The mean of the scores of the changes, not the score of a mean: it is what learning sees.
        scores = [joint(tilts, gain) for tilts in self.energy.each_tilts(u, views)]
        return u.flatten(1).square().sum(1) / 2 - gain * torch.stack(scores).mean(0)
