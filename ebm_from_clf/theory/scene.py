"""An energy, images and classes on which the propositions of the paper are checked.

Everything is in double precision, so that an equation holds to its rounding or not at all: a wrong
factor anywhere is seen in the first digits. So a tolerance needs a reason, and no fine tuning.
"""

__all__ = ["HARDLY", "Check", "Scene", "Verdict", "dot", "flat", "half", "norm", "relative_error"]

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..energy import ClassifierEnergy
from ..graph.operation import Operation
from ..modes import frozen
from ..noise import generators, normal
from .census import Status
from .structure import Structure

# How far from an image is near, in units of u; and for a network that is less precise itself.
NEAR, ROUGH = 1e-3, 0.3
# What hundreds of operations lose, in units of the last digit, and of double precision.
LOST, EXACT = 100.0, 1e-10
# Differences over a step within a piece, about 1e-6 of the size of both; and over one that may
# cross kinks, 1e-5 long or, of a network that rounds, 3e-3.
STEPPED, CROSSED = 1e-6, 1e-2
# A wrong factor of 1 in 100 would pass: of what is looser nothing can be said.
LOOSE = 1e-2
# When torch differentiates hardsigmoid it takes the slope 1/6 in single precision.
SIXTH = 2.0**-25
# The equations hold for each weight; of larger networks those of their smallest tensors are seen.
WEIGHTS = 10_000_000

# Of B nothing is seen then, and an equation of it holds with any other.
HARDLY = "the score hardly depends on the image"

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
        if self.hidden:
            return "not here"
        return "holds" if self.status == "exact" else "local only"

    @property
    def hidden(self) -> bool:
        """Whether rounding hides so much of it that little is said by its not failing."""
        return self.tolerance is not None and self.tolerance > LOOSE

    @property
    def remarks(self) -> str:
        """Its note, and whether rounding hides it."""
        return "; ".join(filter(None, [self.note, "rounding hides it" if self.hidden else ""]))

    def __str__(self) -> str:
        error = "" if self.error is None else f"{self.error:.1e}"
        limit = "" if self.tolerance is None else f"< {self.tolerance:.0e}"
        note = f"; {self.remarks}" if self.remarks else ""
        return f"{self.verdict:10}  {error:7} {limit:7}  {self.statement}: {self.compared}{note}"


class Scene:
    """An energy in double precision at two images of the reference, with their classes."""

    def __init__(self, energy: ClassifierEnergy, seed: int) -> None:
        if any(isinstance(part, torch.jit.ScriptModule) for part in energy.classifier.modules()):
            raise ValueError(
                "examine_theory: the classifier is made of TorchScript, of which there is no copy "
                "in double precision. Take the network that it was traced from."
            )
        self.energy = copy.deepcopy(energy).double()
        self.energy.smoothing, self.energy.gauge = None, "raw"
        self.energy.support, self.energy.kept = "unbounded", None
        self.weights, self.of = _some(self.energy.classifier)
        like = self.energy.reference.mean.expand(2, *energy.reference.shape)
        self.u, self.other, self.aside = (
            normal(like, generators([s, s + 1])) for s in (seed, seed + 2, seed + 4)
        )
        self.y = _likeliest(self.energy, self.u)
        self.structure = Structure.at(self.energy, self.u)
        if not self.structure.graph.nodes:
            raise ValueError(
                "examine_theory: the logits do not depend on the image, so that there is nothing "
                "to examine."
            )
        self.census = self.structure.census
        self.status = self.census.statements()
        self._tolerate([node.operation for node in self.structure.graph.nodes])
        self.unlearned = "" if self.weights else "it has no weights"
        if self.weights and not self.energy.tilt(self.u, self.y).requires_grad:
            self.unlearned = "the score does not depend on the smallest of its weights"
        self.tilt, self.b = self.tilt_and_b(self.u)
        self.drift = self.b - self.u
        self.unmoved = _unmoved(self.tilt, self.b)
        spoilers = self.census.spoilers
        self.spoiler = f"{spoilers[0].operation} of {spoilers[0].layer}" if spoilers else ""
        self.reach = None if spoilers else self.structure.reach(self.drift)

    def _tolerate(self, operations: Sequence[Operation]) -> None:
        """Finds out what computing loses of values, of gradients, and of differences."""
        self.eps = max(map(_rounding, operations))
        rounds = self.eps > torch.finfo(torch.float64).eps
        self.rounded = "the network rounds to lower precision on its way" if rounds else ""
        self.near = ROUGH if rounds else NEAR
        sixth = LOST * SIXTH * any(o.name == "hardsigmoid" for o in operations)
        self.exact = max(EXACT, LOST * self.eps)
        self.graded = max(self.exact, sixth)
        self.stepped = max(STEPPED, LOST**2 * self.eps, sixth)

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


def _some(classifier: nn.Module) -> tuple[list[nn.Parameter], str]:
    """Lets the weights be learned that are looked at, and says how many of all they are."""
    every = [p for p in classifier.parameters() if p.is_floating_point()]
    classifier.requires_grad_(False)
    found: list[nn.Parameter] = []
    for p in sorted(every, key=torch.Tensor.numel):
        if not found or sum(map(torch.Tensor.numel, found)) + p.numel() <= WEIGHTS:
            p.requires_grad_()
            found.append(p)
    count, of = (sum(p.numel() for p in some) for some in (found, every))
    return found, f"{count / 1e6:.1f} M of {of / 1e6:.1f} M weights" if count < of else ""


def _likeliest(energy: ClassifierEnergy, u: Tensor) -> Tensor:
    """Returns the likeliest class of each image, of a network that does compute as asked."""
    try:
        with torch.no_grad():
            tilts = energy.all_tilts(u)
    except RuntimeError as reason:
        if "dtype" not in str(reason) and "scalar type" not in str(reason):
            raise
        text = str(reason).partition("\n")[0]
        raise ValueError(
            f"examine_theory: the classifier must compute in double precision, got: {text} "
            "Make its tensors parameters or buffers, so that `.double()` finds them."
        ) from reason
    if not tilts.isfinite().all():
        raise ValueError(
            "examine_theory: the classifier gives logits that are not finite for draws of the "
            "reference. `ebm-from-clf doctor` looks for the reason."
        )
    return tilts.argmax(1)


def _unmoved(tilt: Tensor, b: Tensor) -> str:
    """Says so if rounding hides all of what an image changes a score by."""
    size, lost = norm(b).max(), LOST * torch.finfo(b.dtype).eps * tilt.abs().max()
    if size > lost:
        return ""
    return f"{HARDLY}: |B| is {float(size):.1e}, rounding hides {float(lost):.0e} of F"


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
