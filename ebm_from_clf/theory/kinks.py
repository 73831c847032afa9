r"""The kinks of a rectifier network, and minima of the energy that lie on them.

.. math:: u = B_\theta(u), \qquad \theta_k \in [0, 1] \text{ where } r_k(u) = 0, \qquad
    \theta_k = [r_k(u) > 0] \text{ elsewhere}

With the slope :math:`\theta_k` of every rectifier given, a network of rectifiers and linear maps
is linear, and :math:`B_\theta = \gamma A^\top \nabla f` of that linear map. A minimum of the
energy inside a piece is its own reconstruction. One on a kink is so with fractional slopes: 0 lies
in the generalised gradient (Clarke, 1983). The slopes are those for which
:math:`r_k(B_\theta) = 0`, as many equations as unknowns. Which units are at their kink is found by
an active set: a unit whose slope leaves [0, 1] is let go to that side, one that would change on
the way to :math:`B_\theta` stops it there; it is kept if the energy rises beyond, and crossed if
not. Kinks of max-pooling are not looked at, nor rectifiers with two of them.
"""

__all__ = ["Rest", "come_to_rest", "is_readable"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..graph import Node, Pattern, sides
from .structure import Structure

NEWTON = 4
ROUNDING = 1e3  # in units of the rounding of one number


class Rest(NamedTuple):
    """Where an image came to rest.

    Arguments:
        u: Whitened coordinates, with shape (1, C, H, W).
        residual: The distance of u from its reconstruction with slopes in [0, 1], in u.
        kinks: The number of units at their kink.
        found: Whether it is a minimum, up to rounding.
    """

    u: Tensor
    residual: float
    kinks: int
    found: bool


def is_readable(energy: ClassifierEnergy, u: Tensor) -> bool:
    """Tells whether all that bends a score are rectifiers with one kink, at 0.

    Arguments:
        energy: The energy.
        u: Whitened coordinates, with shape (B, C, H, W).
    """
    if energy.smoothing is not None or energy.gauge == "log_softmax":
        return False
    graph = Structure.at(energy, u[:1]).graph
    bent = [node for node in graph.nodes if node.kind != "linear"]
    return graph.result is not None and bool(bent) and all(map(_has_one_kink, bent))


def _has_one_kink(node: Node) -> bool:
    finite = [kink for kink in node.kinks if math.isfinite(kink)]
    return node.kind == "rectifier" and finite == [0.0]


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


class _Slopes:
    """The slopes of all rectifiers for one image, of which those of units at their kink move."""

    def __init__(self, energy: ClassifierEnergy, u: Tensor, y: Tensor) -> None:
        self.structure, self.y = Structure.at(energy, u), y
        graph = self.structure.graph
        units = {node.unit: node.operation for node in graph.nodes if node.unit is not None}
        both = [sides(units[k], r) for k, r in enumerate(graph.before)]
        self.low = _flat([low for low, _ in both])
        self.jump = _flat([high for _, high in both]) - self.low
        self.slope = self.own(self.structure)
        self.kink = torch.zeros_like(self.slope, dtype=torch.bool)

    @staticmethod
    def own(structure: Structure) -> Tensor:
        """Returns which units are on, 1 or 0, with shape (M)."""
        return (_flat(list(structure.graph.before)) > 0).to(structure.u)

    def pattern(self, slope: Tensor) -> Pattern:
        """Returns slopes as a pattern of the network."""
        before = self.structure.graph.before
        flat = (self.low + self.jump * slope).split([r.numel() for r in before])
        return [
            delta._replace(slopes=part.view(r.shape), offset=None)
            for delta, part, r in zip(self.structure.pattern, flat, before, strict=True)
        ]

    def tilt(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Returns B, and how the tilt changes with the slopes in units of what goes in."""
        plane = self.structure.plane(self.y, self.pattern(slope))
        above = [
            torch.zeros_like(r) if b is None else b
            for b, r in zip(plane.above, self.structure.graph.before, strict=True)
        ]
        return plane.slope, _flat(above) * self.jump

    def responses(self, u: Tensor, slope: Tensor) -> Tensor:
        """Returns what the rectifiers are given, with shape (M)."""
        return _flat(self.structure.responses(u, self.pattern(slope)))

    def solve(self) -> None:
        """Finds the slopes at the kinks for which B lies on all of them, by Newton's method."""
        where = self.kink.nonzero().flatten()

        def off(theta: Tensor) -> Tensor:
            slope = self.slope.index_put((where,), theta)
            return self.responses(self.tilt(slope)[0], slope)[where]

        for _ in range(NEWTON if len(where) else 0):
            theta = self.slope[where].clamp(0, 1)
            left = off(theta)
            self.slope[where] = theta
            if left.abs().max() <= ROUNDING * torch.finfo(left.dtype).eps:
                break
            # What B gives is quadratic in each slope, so that a central difference is a rate.
            half = torch.eye(len(theta)).to(theta) / 2
            rates = torch.stack([off(theta + h) - off(theta - h) for h in half], 1)
            self.slope[where] = theta - torch.linalg.pinv(rates) @ left

    def stop(self, u: Tensor, end: Tensor, blocked: Tensor, outgoing: Tensor) -> Tensor:
        """Goes towards B until the first unit changes; that one is kept at its kink or crossed."""
        begin, target = self.responses(u, self.slope), self.responses(end, self.slope)
        share = torch.where(blocked, (begin / (begin - target)).clamp(0, 1), 2)
        k = int(share.argmin())
        # A score that rises with the unit's output has a ridge of the energy there, no valley.
        self.kink[k] = outgoing[k] < 0
        if not self.kink[k]:
            self.slope[k] = 1 - self.slope[k]
        return u + share[k] * (end - u)

    def let_go(self, excess: Tensor) -> None:
        """Lets the unit go whose slope is furthest outside of [0, 1]."""
        k = int(excess.argmax())
        self.kink[k] = False
        self.slope[k] = float(self.slope[k] > 0.5)


def come_to_rest(energy: ClassifierEnergy, u: Tensor, y: Tensor, most: int) -> Rest:
    """Descends the energy of a readable network from piece to piece to a minimum.

    Arguments:
        energy: The energy, with its parameters held.
        u: Whitened coordinates of one image, with shape (1, C, H, W).
        y: Its class index, with shape (1).
        most: How many borders of pieces it may meet.
    """
    state = _Slopes(energy, u, y)
    rounding, found = ROUNDING * torch.finfo(u.dtype).eps, False
    for _ in range(most):
        state.solve()
        b, outgoing = state.tilt(state.slope)
        r = state.responses(b, state.slope)
        near = rounding * (1 + r.abs().max())
        on = state.slope > 0.5
        blocked = ~state.kink & torch.where(on, r < -near, r > near)
        if blocked.any():
            u = state.stop(u, b, blocked, outgoing)
            continue
        u, theta = b, state.slope
        excess = torch.where(outgoing > 0, 1.0, torch.maximum(-theta, theta - 1))
        excess = torch.where(state.kink, excess, -1)
        if excess.max() <= rounding:
            found = bool((r[state.kink].abs() <= near).all())
            break
        state.let_go(excess)
    return Rest(u, _residual(state, u), int(state.kink.sum()), found)


def _residual(state: _Slopes, u: Tensor) -> float:
    """Returns |u - B| with the units' own slopes, but at the kinks those found, in [0, 1]."""
    own = state.own(Structure.at(state.structure.energy, u))
    slope = torch.where(state.kink, state.slope.clamp(0, 1), own)
    return float((u - state.tilt(slope)[0]).norm())
