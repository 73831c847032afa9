r"""The energy of images whatever their class.

.. math::
    U(u) = |u|^2 / 2 - \log \sum_c e^{F_c(u)}, \qquad
    p \propto q \sum_c e^{F_c} = \sum_c Z_c \, p_c

That of JEM (Grathwohl et al., 2020, https://arxiv.org/abs/1912.03263). Classes come with the
weights :math:`Z_c`, and a chain may go from one to another.
"""

__all__ = ["Marginal"]

from collections.abc import Callable

from torch import Tensor, nn

from .energy import ClassifierEnergy
from .noise import Randomness


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
        return u.flatten(1).square().sum(1) / 2 - self.energy.all_tilts(u).logsumexp(1)

    def realise(self, u: Tensor, generator: Randomness) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns an energy whose smoothed score is estimated by changes drawn now.

        Arguments:
            u: Where it will be asked, with shape (B, C, H, W).
            generator: One generator, or one per image.
        """
        views = self.energy.views(u, generator)
        if views is None:
            return self
        return lambda u, y: (
            u.flatten(1).square().sum(1) / 2 - self.energy.all_tilts(u, views).logsumexp(1)
        )

    def confine(self, u: Tensor) -> Tensor:
        """Returns u with its pixels brought back into the support."""
        return self.energy.confine(u)
