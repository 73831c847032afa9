r"""What is asked for: a class, or several with weights.

Weights w give the density proportional to :math:`q \prod_c e^{w_c F_c}`; see
:meth:`ClassifierEnergy.forward`.
"""

__all__ = ["LARGEST_SEED", "STRIDE", "Blend", "check", "targets", "weights"]

from collections.abc import Mapping, Sequence
from operator import index

import torch
from torch import Tensor

from .energy import ClassifierEnergy
from .errors import UsageError

# A class index, or weights of several: {340: 0.5, 281: 0.5} is half zebra, half tabby.
Blend = int | Mapping[int, float]

# The generator of (class, seed) is seeded with seed * STRIDE + class.
STRIDE = 1_000_003
LARGEST_SEED = 2**63 // STRIDE - 2
LARGEST_WEIGHT = 1e6


def check(energy: ClassifierEnergy, classes: Sequence[Blend], n: int, seed: int) -> None:
    """Checks a request for samples.

    Arguments:
        energy: The energy.
        classes: The class indices, or weights of several of them.
        n: The number of images of each.
        seed: The seed of the first image.

    Raises:
        UsageError: If a class or seed does not exist, n is not positive, or a weight is not a
            number of at most `LARGEST_WEIGHT`.
    """
    try:
        every = [c for blend in classes for c in weights(blend)]
        sizes = [abs(w) for blend in classes for w in weights(blend).values()]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"sample: classes are indices or weights of them, got {list(classes)[:8]}."
        ) from error
    if not all(size <= LARGEST_WEIGHT for size in sizes):
        raise UsageError(f"sample: a weight is a number up to {LARGEST_WEIGHT:g}, got {classes}.")
    last = (energy.n_classes or max(every, default=0) + 1) - 1
    empty = not classes or not all(weights(blend) for blend in classes)
    if n < 1 or empty or not all(0 <= c <= last for c in every):
        raise UsageError(
            f"sample: classes are 0 to {last} and n is 1 or more, "
            f"got classes {list(classes)[:8]} and n {n}."
        )
    if energy.n_classes is None and any(isinstance(blend, Mapping) for blend in classes):
        raise UsageError("sample: to blend classes, the classifier must state `num_classes`.")
    if not 0 <= seed <= LARGEST_SEED - n:
        raise UsageError(f"sample: a seed is 0 to {LARGEST_SEED - n}, got {seed}.")


def weights(blend: Blend) -> dict[int, float]:
    """Returns the weight of each class of a blend.

    Arguments:
        blend: A class index, or weights.
    """
    if isinstance(blend, Mapping):
        return {index(c): float(w) for c, w in blend.items()}
    return {index(blend): 1.0}


def targets(energy: ClassifierEnergy, blends: Sequence[Blend]) -> tuple[Tensor, Tensor]:
    """Returns what each image is to be, as an index or as weights, and its leading class.

    Arguments:
        energy: The energy.
        blends: The class indices, or weights of several of them.
    """
    leading = torch.tensor([max(w, key=w.__getitem__) for w in map(weights, blends)])
    if not any(isinstance(blend, Mapping) for blend in blends):
        return leading, leading
    found = torch.zeros(len(blends), energy.n_classes or 1)
    for row, blend in zip(found, blends, strict=True):
        for c, weight in weights(blend).items():
            row[c] = weight
    return found, leading
