r"""Memory: which images a class remembers, and which of them others are taken for.

.. math:: u_0 \to u^* = B(u^*)

The energy is a memory as Hopfield's is (1982): from wherever a chain without noise begins, it ends
in one of its minima, see :mod:`ebm_from_clf.theory.minima`. Minima that lie together are one mode.
"""

__all__ = ["Modes", "Recall", "count_modes", "recall"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..space import check_images
from .minima import Minima, descend


class Modes(NamedTuple):
    """Distinct minima.

    Arguments:
        u: The lowest minimum of each mode, the lowest mode first, with shape (M, C, H, W).
        energy: Their energies, in nats, with shape (M).
        number: How many fell into each, with shape (M).
        mode: Which mode each fell into, with shape (B), -1 for what is no minimum.
    """

    u: Tensor
    energy: Tensor
    number: Tensor
    mode: Tensor


class Recall(NamedTuple):
    """What corrupted images were taken for.

    Arguments:
        images: The modes that they fell into, in pixels, with shape (B, C, H, W).
        expected: Those of the clean images, with the same shape.
        right: Whether the two are the same mode, with shape (B).
        found: Whether both are minima, up to rounding, with shape (B). If not, chains ended on
            their way to a mode, and nothing is known to be right.
    """

    images: Tensor
    expected: Tensor
    right: Tensor
    found: Tensor


def count_modes(minima: Minima, distance: float = 1e-3) -> Modes:
    """Counts distinct minima of a class: those within a distance are one, and so on along them.

    Arguments:
        minima: Minima of one class; what was not found is left out.
        distance: The largest distance, in u.

    Raises:
        TypeError: If they are no minima.
        ValueError: If there is no minimum, one is not finite, or the distance is none.
    """
    if not isinstance(minima, Minima):
        raise TypeError(f"count_modes: minima are needed, got {type(minima).__name__}.")
    check_images("count_modes", minima.u)
    _check_distance("count_modes", distance)
    if not minima.found.any():
        advice = "descend with more `n_steps` or a larger `n_polish`"
        if minima.obstacle:
            advice = f"the kinks of {minima.obstacle} cannot be read"
        raise ValueError(f"count_modes: none of the {len(minima.u)} is a minimum; {advice}.")
    found = minima.found
    u, value = minima.u[found], minima.energy[found]
    flat = u.flatten(1)
    near = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") <= distance
    order = value.argsort()
    rank = order.argsort()
    while True:
        # Each takes the lowest of the minima near it, until none changes.
        lowest = torch.where(near, rank, len(rank)).amin(1)
        if torch.equal(lowest, rank):
            break
        rank = lowest
    first, mode, number = rank.unique(return_inverse=True, return_counts=True)
    each = torch.full_like(minima.kinks, -1)
    each[found] = mode
    return Modes(u[order[first]], value[order[first]], number, each)


def recall(
    energy: ClassifierEnergy,
    clean: Tensor,
    corrupted: Tensor,
    y: Tensor,
    *,
    distance: float = 1e-3,
    n_steps: int = 100,
    step_size: float = 0.3,
    n_polish: int = 300,
) -> Recall:
    """Lets corrupted images fall into modes, and tells whether it is those of the clean ones.

    Arguments:
        energy: The energy.
        clean: Images, pixels in [0, 1], with shape (B, C, H, W).
        corrupted: What has become of them, with the same shape.
        y: Their class indices, with shape (B).
        distance: The largest distance in u of two minima that are one mode.
        n_steps: The steps of the chains; see :func:`descend`.
        step_size: Their step e, at first.
        n_polish: The borders of pieces, or the steps, of the polish.

    Raises:
        TypeError: If the energy is none, or the images are not of its dtype.
        ValueError: If a shape or the distance is wrong, or as for :func:`descend`.
        Diverged: If chains leave the finite numbers.
    """
    _check_distance("recall", distance)
    ends = []
    for x in (clean, corrupted):
        check_images("recall", x, energy)
        u = energy.reference.encode(x)
        ends.append(descend(energy, u, y, n_steps=n_steps, step_size=step_size, n_polish=n_polish))
    expected, images = (energy.reference.decode(end.u) for end in ends)
    found = ends[0].found & ends[1].found
    near = (ends[0].u - ends[1].u).flatten(1).norm(dim=1) <= distance
    return Recall(images, expected, near & found, found)


def _check_distance(who: str, distance: float) -> None:
    if not (distance >= 0 and math.isfinite(distance)):
        raise ValueError(f"{who}: `distance` must be 0 or more, and finite, got {distance}.")
