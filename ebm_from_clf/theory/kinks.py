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
not. Kinks of max-pooling are not looked at.
"""

__all__ = ["Rest", "come_to_rest", "is_readable", "pattern"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..energy import ClassifierEnergy

Rectifier = nn.ReLU | nn.LeakyReLU
ROUNDS = 200
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


class _Pass(NamedTuple):
    """One forward of images: tilts, and what went into the rectifiers and came out."""

    tilt: Tensor
    given: list[Tensor]
    made: list[Tensor]


@contextmanager
def _rectified(
    network: nn.Module, slopes: list[Tensor] | None
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Lists what goes into rectifiers and comes out; with slopes they are these linear maps.

    Hooks are taken away on exit. Rectifiers are counted by their calls: one may serve twice.
    """
    given: list[Tensor] = []
    made: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A copy, since a rectifier may work in place.
        given.append(inputs[0] * 1)

    def after(module: Rectifier, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if slopes is not None:
            low = _low(module)
            output = (low + (1 - low) * slopes[len(made)]) * given[len(made)]
        made.append(output * 1)
        return made[-1]

    parts = [part for part in network.modules() if isinstance(part, Rectifier)]
    hooks = [part.register_forward_pre_hook(before) for part in parts]
    hooks += [part.register_forward_hook(after) for part in parts]
    try:
        yield given, made
    finally:
        for hook in hooks:
            hook.remove()


def _low(module: Rectifier) -> float:
    return module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0


def _run(
    energy: ClassifierEnergy, u: Tensor, y: Tensor, slopes: list[Tensor] | None = None
) -> _Pass:
    with _rectified(energy.classifier, slopes) as (given, made):
        return _Pass(energy.tilt(u, y), given, made)


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)


def pattern(energy: ClassifierEnergy, u: Tensor, y: Tensor) -> Tensor:
    """Returns which units are on, boolean, with shape (B, M).

    Arguments:
        energy: The energy.
        u: Whitened coordinates, with shape (B, C, H, W).
        y: The class indices, with shape (B).
    """
    with torch.no_grad():
        given = _run(energy, u, y).given
        return _flat(given) > 0 if given else u.new_zeros(len(u), 0, dtype=torch.bool)


def is_readable(energy: ClassifierEnergy, u: Tensor, y: Tensor) -> bool:
    """Tells whether all that bends a score are rectifiers that are parts of the classifier.

    With their slopes held the tilt must then be linear.

    Arguments:
        energy: The energy.
        u: Whitened coordinates, with shape (B, C, H, W).
        y: The class indices, with shape (B).
    """
    if energy.smoothing is not None or energy.gauge == "log_softmax":
        return False
    with torch.no_grad():
        given = _run(energy, u, y).given
        slopes = [(r > 0).to(r) for r in given]
        # A rectifier that is fed with something else than images has no unit of an image.
        if not given or not all(len(r) == len(u) for r in given):
            return False
        tilts = torch.stack([_run(energy, s * u, y, slopes).tilt for s in (-1, 0, 1, 2)])
        # Second differences: at 0 alone, what is odd in u would pass for linear.
        bend = tilts.diff(n=2, dim=0).abs().amax(0)
        size = tilts.abs().amax(0) + 1
        return bool((bend < ROUNDING * torch.finfo(u.dtype).eps * size).all())


class _Slopes:
    """The slopes of all rectifiers for one image, of which those of units at their kink move."""

    def __init__(self, energy: ClassifierEnergy, u: Tensor, y: Tensor) -> None:
        self.energy, self.y = energy, y
        given = _run(energy, u, y).given
        self.sizes = [(r.shape, r[0].numel()) for r in given]
        self.slope = (_flat(given)[0] > 0).to(u)
        self.kink = torch.zeros_like(self.slope, dtype=torch.bool)

    def parts(self, slope: Tensor) -> list[Tensor]:
        """Returns slopes in the shapes of the rectifiers."""
        flat = slope.split([size for _, size in self.sizes])
        return [part.view(shape) for part, (shape, _) in zip(flat, self.sizes, strict=True)]

    def tilt(self, like: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Returns B and the gradients of the tilt in what the rectifiers make, with a graph."""
        zero = torch.zeros_like(like, requires_grad=True)
        found = _run(self.energy, zero, self.y, self.parts(slope))
        b, *outgoing = torch.autograd.grad(
            found.tilt.sum(), [zero, *found.made], create_graph=True, materialize_grads=True
        )
        return b, _flat(outgoing)[0]

    def responses(self, u: Tensor, slope: Tensor) -> Tensor:
        """Returns what the rectifiers are given, with shape (M)."""
        return _flat(_run(self.energy, u, self.y, self.parts(slope)).given)[0]

    def solve(self, like: Tensor) -> None:
        """Finds the slopes at the kinks for which B lies on all of them, by Newton's method."""
        where = self.kink.nonzero().flatten()

        def off(theta: Tensor) -> Tensor:
            slope = self.slope.index_put((where,), theta)
            return self.responses(self.tilt(like, slope)[0], slope)[where]

        for _ in range(NEWTON if len(where) else 0):
            theta = self.slope[where].clamp(0, 1)
            rates = torch.autograd.functional.jacobian(off, theta)
            self.slope[where] = theta - torch.linalg.pinv(rates) @ off(theta).detach()

    def stop(self, u: Tensor, end: Tensor, blocked: Tensor, outgoing: Tensor) -> Tensor:
        """Goes towards B until the first unit changes; that one is kept at its kink or crossed."""
        begin, target = self.responses(u, self.slope), self.responses(end, self.slope)
        share = torch.where(blocked, (begin / (begin - target)).clamp(0, 1), 2)
        k = int(share.argmin())
        # A score that rises with the unit's output has a ridge of the energy there, no valley.
        self.kink[k] = outgoing[k] < 0
        if not self.kink[k]:
            self.slope[k] = 1 - self.slope[k]
        return (u + share[k] * (end - u)).detach()

    def let_go(self, excess: Tensor) -> None:
        """Lets the unit go whose slope is furthest outside of [0, 1]."""
        k = int(excess.argmax())
        self.kink[k] = False
        self.slope[k] = float(self.slope[k] > 0.5)


def come_to_rest(energy: ClassifierEnergy, u: Tensor, y: Tensor) -> Rest:
    """Descends the energy of a readable network from piece to piece to a minimum.

    Arguments:
        energy: The energy, with its parameters held.
        u: Whitened coordinates of one image, with shape (1, C, H, W).
        y: Its class index, with shape (1).
    """
    state = _Slopes(energy, u, y)
    rounding, found = ROUNDING * torch.finfo(u.dtype).eps, False
    for _ in range(ROUNDS):
        state.solve(u)
        b, outgoing = (t.detach() for t in state.tilt(u, state.slope))
        r = state.responses(b, state.slope).detach()
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
    with torch.no_grad():
        own = (_flat(_run(state.energy, u, state.y).given)[0] > 0).to(u)
    slope = torch.where(state.kink, state.slope.clamp(0, 1), own)
    return float((u - state.tilt(u, slope)[0]).norm().detach())
