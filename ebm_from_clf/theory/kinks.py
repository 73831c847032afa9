r"""The kinks of a rectifier network, and minima of the energy that lie on them.

.. math:: u = B_\theta(u), \qquad \theta_k \in [0, 1] \text{ where } r_k(u) = 0, \qquad
    \theta_k = [r_k(u) > 0] \text{ elsewhere}

With the slope :math:`\theta_k` of every rectifier given, a network of rectifiers and linear maps
is linear, and :math:`B_\theta = \gamma A^\top \nabla f` of that linear map. A minimum of the
energy inside a piece is its own reconstruction. One on a kink is so with fractional slopes: 0 lies
in the generalised gradient (Clarke, 1983).

On the kinks :math:`r_k = 0` of some units the network does not know their slopes, so its energy
is that of a Gaussian on a flat: its least point is B, with any slopes, projected on the flat,

.. math:: u = B - \sum_k \lambda_k g_k, \qquad g_k = \nabla r_k, \qquad
    \lambda_k = (\delta_k - \theta_k) \, \partial F / \partial h_k

and of the :math:`\lambda_k` the slopes follow from the top down. Which units are at their kink is
found by an active set: a unit whose slope leaves [0, 1] is let go to that side, one that would
change on the way stops it there; it is kept if the energy rises beyond, and crossed if not. Each
border costs a few passes of the network, for :math:`g_k` too: it changes by what the unit that
turns over lets through. Kinks of max-pooling are not looked at, nor rectifiers with two of them.
"""

__all__ = ["Rest", "come_to_rest"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..graph import Delta, sides, unit_down, unit_up
from .structure import Structure

ROUNDING = 1e3  # in units of the rounding of one number
FAR = 1e3  # a slope that is far outside of [0, 1]


class Rest(NamedTuple):
    """Where an image came to rest.

    Arguments:
        u: Whitened coordinates, with shape (1, C, H, W).
        residual: The distance of u from its reconstruction with slopes in [0, 1], in u.
        kinks: The number of units at their kink.
        found: Whether it is a minimum, up to rounding.
        slopes: The slopes of these units there, 0 to 1, with shape (kinks).
    """

    u: Tensor
    residual: float
    kinks: int
    found: bool
    slopes: Tensor


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


class _Walk:
    """An image on its way down, and which units it is kept at the kinks of.

    `on` holds the slopes of all units, 0 or 1, of those at their kink that of the side that they
    were met from; `rates` the gradients of what goes into these, with shape (n, D).
    """

    def __init__(self, energy: ClassifierEnergy, u: Tensor, y: Tensor) -> None:
        self.structure, self.u, self.y = Structure.at(energy, u), u, y
        self.graph = self.structure.graph
        units = {node.unit: node.operation for node in self.graph.nodes if node.unit is not None}
        self.slopes = [sides(units[k], r) for k, r in enumerate(self.graph.before)]
        self.ends = torch.tensor([r.numel() for r in self.graph.before]).cumsum(0)
        self.r = _flat(self.graph.before)
        self.on = (self.r > 0).to(u)
        self.kept: list[int] = []
        self.rates = u.new_zeros(0, u.numel(), dtype=torch.float64)

    def delta(self, unit: int, slope: Tensor) -> Delta:
        """Returns what an activation does whose units have some slopes between 0 and 1."""
        low, high = self.slopes[unit]
        slopes = low + (high - low) * slope.view_as(low)
        return self.structure.pattern[unit]._replace(slopes=slopes, offset=None)

    def pattern(self, slope: Tensor | None = None) -> list[Delta]:
        """Returns the pattern of some slopes, `None` for those of the units as they are on."""
        parts = self.parts(self.on if slope is None else slope)
        return [self.delta(k, part) for k, part in enumerate(parts)]

    def parts(self, value: Tensor) -> list[Tensor]:
        """Cuts a value of every unit, with shape (M), into those of each activation."""
        return list(value.split([r.numel() for r in self.graph.before]))

    def single(self, k: int) -> tuple[int, Tensor]:
        """Returns the activation of a unit, and 1 at its place among 0."""
        unit = int((self.ends <= k).sum())
        found = torch.zeros_like(self.graph.before[unit])
        found.view(-1)[k - int(self.ends[unit]) + found.numel()] = 1
        return unit, found

    def rate(self, k: int) -> Tensor:
        """Returns the gradient in u of what goes into a unit, with shape (D)."""
        slope = unit_down(self.graph, *self.single(k), self.pattern())
        energy = self.structure.energy
        return energy.reference.adjoint(slope / energy.space.std).flatten().double()

    def target(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the least point on the kinks that are kept, and the slopes that make it B.

        And how the tilt changes with what each unit returns, from below its kink to above.
        """
        multiplier = self.rates.new_zeros(len(self.kept))
        b, slope, outgoing = self.settle(multiplier)
        step = (b - self.u).flatten().double()
        if self.kept:
            inverse = torch.linalg.pinv(self.rates @ self.rates.T, hermitian=True)
            off = self.r[self.kept].double()
            for _ in range(2):  # the second time for what rounding left
                left = self.rates @ (step - multiplier @ self.rates) + off
                multiplier = multiplier + inverse @ left
            step = step - multiplier @ self.rates
            _, slope, outgoing = self.settle(multiplier)
        return self.u + step.to(self.u).view_as(self.u), slope, outgoing

    def settle(self, multiplier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns B, slopes, and changes of the tilt, from the multipliers of the kinks."""
        slope, outgoing, all_of = self.on.clone(), *torch.zeros(2, len(self.on)).to(self.on)
        all_of[self.kept] = multiplier.to(all_of)
        # Parts are views: what is written to them is written to the whole.
        each = list(zip(*map(self.parts, (slope, outgoing, all_of)), strict=True))

        def choose(unit: int, message: Tensor) -> Delta:
            low, high = self.slopes[unit]
            theta, out, own = each[unit]
            out.copy_((message * (high - low)).flatten())
            # A unit that the score does not depend on has no slope that could hold it.
            theta.sub_((own / out).nan_to_num(0, FAR, -FAR))
            return self.delta(unit, theta)

        return self.structure.plane(self.y, choose).slope, slope, outgoing

    def responses(self, u: Tensor) -> Tensor:
        """Returns what the rectifiers are given at another image, with shape (M)."""
        return _flat(self.structure.responses(u, self.pattern()))

    def stop(self, fraction: Tensor, end: Tensor, r: Tensor, outgoing: Tensor) -> None:
        """Goes as far as the first unit changes; that one is kept at its kink or crossed."""
        k = int(fraction.argmin())
        self.u = self.u + fraction[k] * (end - self.u)
        self.r = self.r + fraction[k] * (r - self.r)
        # A score that rises with the unit's output has a ridge of the energy there, no valley.
        if outgoing[k] < 0:
            self.rates = torch.cat([self.rates, self.rate(k)[None]])
            self.kept.append(k)
        else:
            self.turn(k)

    def turn(self, k: int, rate: Tensor | None = None) -> None:
        """Turns a unit over; what it lets through changes the rates of those above it."""
        if self.kept:
            rate = self.rate(k) if rate is None else rate
            change = (1 - 2 * self.on[k]) * self.through(k)
            self.rates = self.rates + change[self.kept].double()[:, None] * rate
        self.on[k] = 1 - self.on[k]

    def through(self, k: int) -> Tensor:
        """Returns what goes into all units of what a unit is given, if on and not off."""
        unit, one = self.single(k)
        low, high = self.slopes[unit]
        up = unit_up(self.graph, unit, (high - low) * one, self.pattern())
        both = zip(up, self.graph.before, strict=True)
        return _flat([torch.zeros_like(r) if v is None else v for v, r in both])

    def overlooked(self, idle: Tensor) -> int | None:
        """Returns one of some units that is given something as soon as a unit that is kept is on.

        On all the kinks that are kept it is given nothing, and meets no border.
        """
        for k in self.kept if idle.any() else ():
            given = (idle & (self.through(k) > 0)).nonzero()
            if len(given):
                return int(given[0])
        return None

    def let_go(self, excess: Tensor, slope: Tensor, outgoing: Tensor) -> None:
        """Lets the unit go whose slope is furthest outside of [0, 1], to where it falls."""
        i = int(excess[self.kept].argmax())
        k, rate = self.kept.pop(i), self.rates[i]
        self.rates = torch.cat([self.rates[:i], self.rates[i + 1 :]])
        if ((slope[k] - 0.5) * outgoing[k] < 0) != (self.on[k] > 0.5):
            self.turn(k, rate)


def come_to_rest(energy: ClassifierEnergy, u: Tensor, y: Tensor, most: int) -> Rest:
    """Descends the energy of a readable network from piece to piece to a minimum.

    Arguments:
        energy: The energy, with its parameters held.
        u: Whitened coordinates of one image, with shape (1, C, H, W).
        y: Its class index, with shape (1).
        most: How many borders of pieces it may meet.
    """
    walk = _Walk(energy, u, y)
    found, slope = False, walk.on
    for _ in range(most):
        end, slope, outgoing = walk.target()
        r = walk.responses(end)
        near = _near(r)
        blocked = torch.where(walk.on > 0.5, r < -near, r > near)
        blocked[walk.kept] = False
        if blocked.any():
            fraction = (walk.r / (walk.r - r)).clamp(0, 1)
            walk.stop(torch.where(blocked, fraction, 2), end, r, outgoing)
            continue
        walk.u, walk.r = end, r
        idle = (r.abs() <= near) & (walk.on < 0.5) & (outgoing > 0)
        idle[walk.kept] = False
        if (k := walk.overlooked(idle)) is not None:
            walk.turn(k)
            continue
        excess = torch.where(outgoing > 0, 1.0, torch.maximum(-slope, slope - 1))
        if not walk.kept or excess[walk.kept].max() <= ROUNDING * torch.finfo(u.dtype).eps:
            found = bool((r[walk.kept].abs() <= near).all())
            break
        walk.let_go(excess, slope, outgoing)
    return Rest(walk.u, _residual(walk), len(walk.kept), found, slope[walk.kept].clamp(0, 1))


def _residual(walk: _Walk) -> float:
    """Returns |u - B| with the units' own slopes, but at the kinks those found, in [0, 1]."""
    # At its kink is also a unit that is given what another one there returns, and not kept.
    r = _flat(Structure.at(walk.structure.energy, walk.u).graph.before)
    slope = torch.where(r.abs() <= _near(r), walk.on, (r > 0).to(r))
    slope[walk.kept] = walk.target()[1][walk.kept].clamp(0, 1)
    return float((walk.u - walk.structure.plane(walk.y, walk.pattern(slope)).slope).norm())


def _near(r: Tensor) -> Tensor:
    """Returns how far from a kink rounding takes what is on it."""
    return ROUNDING * torch.finfo(r.dtype).eps * (1 + r.abs().max())
