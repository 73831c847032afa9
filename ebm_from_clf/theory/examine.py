"""The propositions of the paper, checked on a network of the user's own.

Each check computes the two sides of one equation on their own ways, in double precision, at draws
of the reference, and reports the largest difference relative to what is compared. Which equations
can hold is what the census says: exact; local, to first order near an image; or not here, with
what stands against it. One that can hold and is off by more than computing loses fails: that is
an error of this package, or a network that does not do what its operations say.

References:
    | A Theory of Generative ConvNet (Xie et al., 2016)
    | https://arxiv.org/abs/1602.03264
"""

__all__ = ["Theory", "examine_theory"]

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..energy import ClassifierEnergy
from .census import Census
from .identities import IDENTITIES, WITHOUT_B
from .memory import minimum
from .one_layer import generative, one_layer
from .piecewise import ON_PIECES
from .scene import HARDLY, Check, Scene


@dataclass(frozen=True)
class Theory:
    """What the paper's theory says of a classifier.

    Arguments:
        classifier: Its name.
        shape: The shape (C, H, W) of an image.
        gain: The gain on its logits.
        reference: The type of the reference.
        census: What it is made of.
        checks: The propositions.
        note: What stands against most of them; empty if nothing does.
    """

    classifier: str
    shape: tuple[int, ...]
    gain: float
    reference: str
    census: Census
    checks: tuple[Check, ...]
    note: str = ""

    def __str__(self) -> str:
        """What it is made of, what bends it, and a line for each proposition."""
        made, shape = self.census, "x".join(map(str, self.shape))
        counts = ", ".join(f"{made.count(kind)} {kind}" for kind in made.kinds)
        lines = [
            f"{self.classifier}: {made.form}, images {shape}; operations: {counts}; "
            f"gain {self.gain:.3g}, reference {self.reference}"
        ]
        lines += [f"  {self.note}"] if self.note else []
        lines += [f"  bent by {entry}" for entry in made.spoilers]
        return "\n".join(lines + [f"  {check}" for check in self.checks])

    @property
    def failed(self) -> tuple[Check, ...]:
        """The propositions that should hold and do not."""
        return tuple(check for check in self.checks if check.verdict == "FAILS")

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, with the form of the network and verdicts."""
        checks = [
            asdict(check) | {"verdict": check.verdict, "note": check.remarks}
            for check in self.checks
        ]
        return {**asdict(self), "checks": checks, "form": self.census.form}


def examine_theory(energy: ClassifierEnergy, *, name: str = "classifier", seed: int = 0) -> Theory:
    """Checks the propositions of the paper on an energy: raw logits, no smoothing, no box.

    Arguments:
        energy: The energy. It is not changed; a copy in double precision is.
        name: What to call its classifier.
        seed: The seed of the images, which are draws of the reference.

    Raises:
        ValueError: If the classifier does not compute in double precision, its logits are not
            finite, or do not depend on the image.
    """
    # Attention is differentiated twice in one of the checks, which only its plain form can be.
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        scene = Scene(energy, seed)
        checks = [_looked_at(scene, check) for check in (*ON_PIECES, *IDENTITIES, minimum)]
        checks += [one_layer(), generative()]
    found = tuple(check for check in checks if check is not None)
    reference = type(energy.reference).__name__
    shape = tuple(energy.space.shape)
    return Theory(name, shape, energy.gain, reference, scene.census, found, scene.unmoved)


def _looked_at(scene: Scene, look: Callable[[Scene], Check | None]) -> Check | None:
    """Returns a check; of one that speaks of a B that rounding hides only that it fails."""
    check = look(scene)
    if check is None or not scene.unmoved or look in WITHOUT_B:
        return check
    if check.verdict == "FAILS" and not math.isnan(check.error or 0.0):
        return check
    return replace(check, status="not here", error=None, note=HARDLY, tolerance=None)
