r"""The law of the prototype, as a check: what is a closed form against quadrature.

.. math:: \prod_k Z_k = \sum_\delta e^{\langle \beta, \delta \rangle + |B_\delta|^2 / 2} \,
    P(\mathcal{N}(B_\delta, 1) \in \delta)

It knows nothing of the network at hand: it is what the others stand on.
"""

__all__ = ["one_layer"]

import torch

from ..energy import ClassifierEnergy
from ..prototype import PieceLaw, Prototype, PrototypeLaw
from ..reference import WhiteNoise
from ..space import PixelSpace
from .scene import EXACT, Check, relative_error


def one_layer() -> Check:
    """Compares log Z and the probabilities of three orthogonal units, found in two ways."""
    mean = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    tilts = torch.tensor([[2.0, 2, 0, 0], [1, -1, 0, 0], [0, 0, 1.5, 0]], dtype=torch.float64)
    bias = torch.tensor([-1.5, 0.5, 0.3], dtype=torch.float64)
    energy = ClassifierEnergy(
        Prototype(tilts.view(3, 1, 2, 2), bias),
        WhiteNoise(mean, 0.4),
        PixelSpace([0.5], [0.25], (2, 2)).double(),
        gain=1.5,
    )
    exact, pieces = PrototypeLaw(energy), PieceLaw(energy)
    found, wanted = (torch.cat([law.log_z.view(1), law.on]) for law in (exact, pieces))
    return Check(
        "one layer: log Z and slopes are closed forms",
        "PrototypeLaw, quadrature over the pieces",
        "exact",
        relative_error(found, wanted, wanted),
        "the same for every network",
        EXACT,
    )
