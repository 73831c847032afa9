r"""The pieces of a prototype with any filters, by quadrature over their arrangement.

.. math:: Z = \sum_\delta e^{\langle \beta, \delta \rangle + |B_\delta|^2 / 2} \,
    P(\mathcal{N}(B_\delta, 1) \in \delta), \qquad B_\delta = \sum_k \delta_k \omega_k

The hyperplanes :math:`\langle u, \omega_k \rangle + \beta_k = 0` cut the space that the filters
span, of dimension R, into at most :math:`\sum_{i \le R} \binom{K}{i}` pieces. Along the last
coordinate every mass is a difference of two normal integrals. Across the others it is analytic
between the vertices of the arrangement, so that Gauss-Legendre quadrature from vertex to vertex
has no kink to meet: its error is rounding, some :math:`10^{-12}` of Z. The work grows with the
power R - 1 of some hundred points.
"""

__all__ = ["PieceLaw"]

import math

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..noise import normal
from .network import read_filters

LARGEST_RANK = 3
MOST_FILTERS = 62
MOST_NUMBERS = 3e8  # some 5 GB and a minute
NODES = 16
PANEL = 2.5
REACH = 8.5  # standard deviations; beyond it lies a mass of 1e-17
ROUNDING = 1e-9
FAR = 1e6


class PieceLaw:
    r"""Creates the probabilities of the pieces of a prototype, and its constant.

    Units, arguments, and `omega`, `beta` and `log_z` are those of :class:`PrototypeLaw`, whatever
    the angles of the filters.

    Attributes:
        patterns: Which units are on in each piece, boolean, with shape (P, K).
        probability: The probability of each piece, with shape (P), none of them 0.

    Raises:
        TypeError: If the classifier is no prototype.
        ValueError: If the energy is another one, the filters span more than 3 dimensions, or
            they are too many or too long for the quadrature.
    """

    def __init__(self, energy: ClassifierEnergy, temperature: float = 1.0) -> None:
        self.omega, self.beta = read_filters(energy, temperature)
        self._root, self._dtype = math.sqrt(temperature), energy.reference.mean.dtype
        slopes = _coordinates(self.omega.flatten(1))
        if slopes.shape[1] > LARGEST_RANK:
            raise ValueError(
                f"PieceLaw: the filters may span {LARGEST_RANK} dimensions, they span "
                f"{slopes.shape[1]}. If they are orthogonal, use PrototypeLaw."
            )
        if len(self.beta) > MOST_FILTERS:
            raise ValueError(
                f"PieceLaw: at most {MOST_FILTERS} filters can be told apart, got "
                f"{len(self.beta)}."
            )
        if not (numbers := _numbers(slopes)) <= MOST_NUMBERS:
            raise ValueError(
                f"PieceLaw: {len(self.beta)} filters of such lengths in {slopes.shape[1]} "
                f"dimensions need quadrature over {numbers:.0e} numbers, at most "
                f"{MOST_NUMBERS:.0e} are possible. Take fewer or shorter filters."
            )
        log_mass, patterns = _masses(slopes, self.beta)
        # Binary numbers, so that what belongs to one piece is found by sorting integers.
        digits = 2 ** torch.arange(len(self.beta), device=patterns.device)
        codes, index = (patterns * digits).sum(-1).unique(return_inverse=True)
        top = log_mass.max()
        each = (log_mass - top).exp().flatten()
        mass = top.new_zeros(len(codes)).index_add_(0, index.flatten(), each)
        there = mass > 0
        self.patterns = (codes[there, None] & digits) > 0
        self.probability = mass[there] / mass.sum()
        self.log_z = top + mass.sum().log()

    @property
    def on(self) -> Tensor:
        r"""The probability :math:`\pi_k` that a unit is on, with shape (K)."""
        return self.probability @ self.patterns.to(self.probability)

    @property
    def reconstruction(self) -> Tensor:
        r""":math:`E |B|^2 = \sum_\delta p_\delta |B_\delta|^2`, a scalar."""
        tilts = self.patterns.to(self.omega) @ self.omega.flatten(1)
        return self.probability @ tilts.square().sum(1)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        r"""Draws from the model itself, as :meth:`PrototypeLaw.sample` does, from one generator.

        A pattern is proposed with the weight :math:`e^{\langle \beta, \delta \rangle +
        |B_\delta|^2 / 2}` and u from :math:`\mathcal{N}(B_\delta, 1)`; it is taken if u has that
        pattern. Of P pieces at least one proposal in P is, since no weight is above Z.
        """
        omega = self.omega.flatten(1)
        every = self.patterns.to(omega)
        tilts = every @ omega
        weight = (every @ self.beta + tilts.square().sum(1) / 2).softmax(0).to(generator.device)
        found, missing = [omega[:0]], n
        while missing > 0:
            proposed = torch.multinomial(weight, 2 * n, replacement=True, generator=generator)
            proposed = proposed.to(omega.device)
            u = tilts[proposed]
            u = u + normal(u, generator)
            own = ((u @ omega.T + self.beta > 0) == self.patterns[proposed]).all(1)
            found.append(u[own])
            missing -= int(own.sum())
        u = torch.cat(found)[:n].view(n, *self.omega.shape[1:])
        return (self._root * u).to(self._dtype)


def _coordinates(omega: Tensor) -> Tensor:
    """Returns the filters in coordinates of what they span, in general position; shape (K, R)."""
    u, s, _ = torch.linalg.svd(omega, full_matrices=False)
    keep = s > ROUNDING * s.max().clamp_min(ROUNDING)
    slopes = (u * s)[:, keep] if keep.any() else (u * s)[:, :1]
    # Turned, so that no hyperplane is parallel to an axis.
    generator = torch.Generator().manual_seed(0)
    turn = torch.randn(slopes.shape[1], slopes.shape[1], generator=generator, dtype=slopes.dtype)
    return slopes @ torch.linalg.qr(turn)[0].to(slopes.device)


def _numbers(slopes: Tensor) -> float:
    """Returns how many numbers a quadrature holds: at each point all units in all pieces."""
    k, rank = slopes.shape
    points = 1.0
    for axis in range(rank - 1):
        panels = (float(slopes[:, axis].abs().sum()) + 2 * REACH) / PANEL
        points *= NODES * (panels + math.comb(k, rank - axis))
    return points * k * (k + 1)


def _masses(slopes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logarithms of masses and the patterns that they belong to.

    slopes: (K, R); offsets: the responses where the R coordinates are 0, with shape (*, K). The
    masses have shape (*, ...), the patterns (*, ..., K).
    """
    if slopes.shape[1] == 1:
        return _last(slopes[:, 0], offsets)
    edges = _edges(slopes, offsets)
    nodes, weights = _legendre(edges)
    further = offsets[..., None, :] + nodes[..., None] * slopes[:, 0]
    log_mass, patterns = _masses(slopes[:, 1:], further)
    log_weight = weights.log() - nodes.square() / 2 - math.log(2 * math.pi) / 2
    n = nodes.ndim
    return log_mass.flatten(n) + log_weight[..., None], patterns.flatten(n, -2)


def _last(slopes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the masses between the kinks of a line, in closed form."""
    kinks = torch.where(slopes == 0, FAR, -offsets / slopes).clamp(-FAR, FAR).sort(-1).values
    border = torch.full_like(kinks[..., :1], 2 * FAR)
    low, high = torch.cat([-border, kinks], -1), torch.cat([kinks, border], -1)
    middle = ((low + high) / 2)[..., None]
    on = middle * slopes + offsets[..., None, :] > 0
    tilt, value = on.to(slopes) @ slopes, (on * offsets[..., None, :]).sum(-1)
    a, b = low - tilt, high - tilt
    # In the upper tail the other way round, where the integral is small instead of near 1.
    a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)
    inside = torch.special.ndtr(b) - torch.special.ndtr(a)
    return value + tilt.square() / 2 + inside.clamp_min(0).log(), on


def _edges(slopes: Tensor, offsets: Tensor) -> Tensor:
    """Returns where panels of the first coordinate end, in order, with shape (*, N).

    Between them no more than a standard deviation or two, and no vertex of the arrangement.
    """
    low = float(slopes[:, 0].clamp_max(0).sum()) - REACH
    high = float(slopes[:, 0].clamp_min(0).sum()) + REACH
    n = math.ceil((high - low) / PANEL) + 1
    found = [torch.linspace(low, high, n).to(slopes).expand(*offsets.shape[:-1], n)]
    for chosen in torch.combinations(torch.arange(len(slopes)), slopes.shape[1]):
        corner = slopes[chosen]
        if torch.linalg.cond(corner) < 1 / ROUNDING:
            across = torch.linalg.inv(corner)[0]
            found.append(-(offsets[..., chosen] @ across)[..., None])
    return torch.cat(found, -1).clamp(low, high).sort(-1).values


def _legendre(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the nodes and weights of Gauss-Legendre quadrature on each panel; (*, N)."""
    # The nodes are the eigenvalues of the Jacobi matrix of the polynomials (Golub, Welsch, 1969).
    k = torch.arange(1, NODES, dtype=edges.dtype, device=edges.device)
    beside = k / (4 * k.square() - 1).sqrt()
    x, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    half = edges.diff(dim=-1)[..., None] / 2
    nodes = (edges[..., :-1, None] + half) + half * x
    return nodes.flatten(-2), (half * 2 * vectors[0].square()).flatten(-2)
