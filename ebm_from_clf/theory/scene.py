"""An energy, images and classes on which the propositions of the paper are checked.

Everything is in double precision, so that an equation holds to its rounding or not at all: a wrong
factor anywhere is seen in the first digits. So a tolerance needs a reason, and no fine tuning.
"""

__all__ = ["Check", "Scene", "Verdict", "dot", "flat", "half", "norm", "relative_error"]

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..graph.operation import Operation
from ..modes import frozen
from ..noise import generators, normal
from .census import Status
from .structure import Structure

# How far from an image is near, in units of u; and for a network that is less precise itself.
NEAR, ROUGH = 1e-3, 1.0
# What hundreds of operations lose, in units of the last digit, and of double precision.
LOST, EXACT = 100.0, 1e-10
# Differences over a step within a piece, about 1e-6 of the size of both; and over one that may
# cross kinks, 1e-5 long or, of a network that rounds, 1e-2.
STEPPED, CROSSED, ROUGHLY = 1e-6, 1e-2, 1e-1

Verdict = Literal["holds", "FAILS", "local only", "not here"]


@dataclass(frozen=True)
class Check:
    """One proposition and what was found of it.

    Arguments:
        statement: The proposition.
        compared: What was compared with what.
        status: Whether it holds: exact, local or not here.
        error: The largest relative difference. `None` if nothing could be compared.
        note: What it depends on, or what stands against it.
        tolerance: The largest error that is one of computing. `None` if how large it is depends
            on how curved the network is.
    """

    statement: str
    compared: str
    status: Status
    error: float | None
    note: str = ""
    tolerance: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it holds: a proposition that is compared fails beyond its tolerance."""
        limit = math.inf if self.tolerance is None else self.tolerance
        if self.error is None or 1 <= limit < math.inf:  # rounding hides all of it
            return "not here"
        if not self.error <= limit:
            return "FAILS"
        return "holds" if self.status == "exact" else "local only"

    def __str__(self) -> str:
        error = "" if self.error is None else f"{self.error:.1e}"
        limit = "" if self.tolerance is None else f"< {self.tolerance:.0e}"
        note = f"; {self.note}" if self.note else ""
        return f"{self.verdict:10}  {error:7} {limit:7}  {self.statement}: {self.compared}{note}"


class Scene:
    """An energy in double precision at two images of the reference, with their classes."""

    def __init__(self, energy: ClassifierEnergy, seed: int) -> None:
        self.energy = copy.deepcopy(energy).double()
        self.energy.smoothing, self.energy.gauge = None, "raw"
        self.energy.support, self.energy.kept = "unbounded", None
        self.energy.requires_grad_(True)
        like = self.energy.reference.mean.expand(2, *energy.reference.shape)
        self.u, self.other, self.aside = (
            normal(like, generators([s, s + 1])) for s in (seed, seed + 2, seed + 4)
        )
        with torch.no_grad():
            self.y = self.energy.all_tilts(self.u).argmax(1)
        self.structure = Structure.at(self.energy, self.u)
        self.census = self.structure.census
        self.status = self.census.statements()
        self.eps = max(_rounding(node.operation) for node in self.structure.graph.nodes)
        rounds = self.eps > torch.finfo(torch.float64).eps
        self.rounded = "the network rounds to lower precision on its way" if rounds else ""
        self.near = ROUGH if rounds else NEAR
        self.exact, self.stepped = max(EXACT, LOST * self.eps), max(STEPPED, LOST**2 * self.eps)
        self.crossed = ROUGHLY if rounds else CROSSED
        self.tilt, self.b = self.tilt_and_b(self.u)
        self.drift = self.b - self.u
        spoilers = self.census.spoilers
        self.spoiler = f"{spoilers[0].operation} of {spoilers[0].layer}" if spoilers else ""
        self.reach = None if spoilers else self.structure.reach(self.drift)

    def tilt_and_b(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns F and its gradient B by automatic differentiation."""
        with frozen(self.energy):
            u = u.detach().requires_grad_()
            tilt = self.energy.tilt(u, self.y)
            (b,) = torch.autograd.grad(tilt.sum(), u)
        return tilt.detach(), b

    def hidden(self, value: Tensor, size: Tensor) -> float:
        """Returns what rounding hides of a difference of values, relative to a size."""
        lost = LOST * self.eps * value.detach().abs().max()
        return float(lost / size.detach().abs().max().clamp_min(1e-300))

    def step(self) -> Tensor:
        """Returns a step along the drift that stays on the piece, or near the image."""
        near = self.near / norm(self.drift)
        return near if self.reach is None else torch.minimum(self.reach / 2, near)

    def moved(self, step: Tensor) -> Tensor:
        """Returns the images after a step along the drift."""
        return self.u + step.view(-1, 1, 1, 1) * self.drift


def _rounding(operation: Operation) -> float:
    """Returns the last digit of an operation, of double precision or of what it rounds to."""
    dtype = operation.given.get("dtype") if operation.name == "_to_copy" else None
    return torch.finfo(dtype if dtype and dtype.is_floating_point else torch.float64).eps


def relative_error(found: Tensor, wanted: Tensor, size: Tensor) -> float:
    """Returns the largest difference relative to the largest size."""
    return float(
        (found - wanted).detach().abs().max() / size.detach().abs().max().clamp_min(1e-300)
    )


def flat(parts: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    """Returns gradients as one vector, with 0 for weights that have none."""
    both = zip(parts, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in both])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner products of images, with shape (B)."""
    return (a * b).flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    """Returns the norms of images, with shape (B)."""
    return a.flatten(1).norm(dim=1)


def half(u: Tensor) -> Tensor:
    """Returns |u|^2 / 2 of images, with shape (B)."""
    return dot(u, u) / 2
