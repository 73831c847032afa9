r"""The law of the prototype, as checks: what is a closed form against quadrature.

.. math:: \prod_k Z_k = \sum_\delta e^{\langle \beta, \delta \rangle + |B_\delta|^2 / 2} \,
    P(\mathcal{N}(B_\delta, 1) \in \delta), \qquad
    p(c \mid u) = \frac{\rho_c \, p_c(u)}{\sum_k \rho_k \, p_k(u)}
    = \mathrm{softmax}_c (F_c(u) + \log \rho_c - \log Z_c)

The second, the first proposition of the paper, makes of a class of densities over one reference a
classifier; of other networks log Z is not known. They know nothing of the network at hand: they
are what the others stand on.
"""

__all__ = ["generative", "one_layer"]

import torch

from ..energy import ClassifierEnergy
from ..noise import normal
from ..prototype import PieceLaw, Prototype, PrototypeLaw
from ..reference import WhiteNoise
from ..space import PixelSpace
from .scene import EXACT, Check, relative_error

FILTERS: list[list[float]] = [[2.0, 2, 0, 0], [1, -1, 0, 0], [0, 0, 1.5, 0]]
CLASSES: tuple[tuple[list[list[float]], list[float]], ...] = (
    (FILTERS, [-1.5, 0.5, 0.3]),
    (FILTERS[:2], [0.8, -0.4]),
    (FILTERS[1:], [1.0, -2.0]),
)
PRIOR = [0.5, 0.3, 0.2]


def one_layer() -> Check:
    """Compares log Z and the probabilities of three orthogonal units, found in two ways."""
    energy = _prototype(FILTERS, [-1.5, 0.5, 0.3])
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


def generative() -> Check:
    """Compares Bayes' rule on the densities of three classes with a softmax of their tilts."""
    energies = [_prototype(filters, bias) for filters, bias in CLASSES]
    like = energies[0].reference.mean.expand(8, 1, 2, 2)
    u = normal(like, torch.Generator().manual_seed(0))
    y, prior = torch.zeros(len(u), dtype=torch.int64), torch.tensor(PRIOR).double()
    tilts = torch.stack([energy.tilt(u, y).detach() for energy in energies], 1)
    exact, pieces = (
        torch.stack([law(energy).log_z for energy in energies]) for law in (PrototypeLaw, PieceLaw)
    )
    white = -u.square().flatten(1).sum(1, keepdim=True) / 2
    joint = prior * (tilts + white - exact).exp()
    wanted = joint / joint.sum(1, keepdim=True)
    found = (tilts + prior.log() - pieces).softmax(1)
    return Check(
        "generative = discriminative: p(c | u)",
        "densities of 3 classes of one layer, softmax of F + log rho - log Z",
        "exact",
        relative_error(found, wanted, wanted),
        "the same for every network",
        EXACT,
    )


def _prototype(filters: list[list[float]], bias: list[float]) -> ClassifierEnergy:
    mean = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    tilts = torch.tensor(filters, dtype=torch.float64).view(-1, 1, 2, 2)
    return ClassifierEnergy(
        Prototype(tilts, torch.tensor(bias, dtype=torch.float64)),
        WhiteNoise(mean, 0.4),
        PixelSpace([0.5], [0.25], (2, 2)).double(),
        gain=1.5,
    )
