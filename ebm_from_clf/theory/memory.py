r"""The proposition of the paper on local minima, as a check: each is its own reconstruction.

.. math:: u = B_\theta(u), \qquad \theta_k \in [0, 1] \text{ where unit k is on its kink}

Inside of a piece B is compared as differentiation gives it. On kinks, where there is no gradient,
the slopes are those that were found; that the energy does rise around them, towards the B of one
side and elsewhere, asks for no slopes.
"""

__all__ = ["minimum"]

import torch
from torch import Tensor

from ..noise import generators, normal
from .minima import Minima, descend
from .readable import is_readable, unreadable
from .scene import Check, Scene, norm, relative_error

STEPS = 8  # each goes all the way to B, of the piece that it is on
BORDERS = 400  # what images of 32 pixels ask for at most, as far as was seen
WORK = 40_000_000  # units looked at in all, at each border every one: minutes at most
SMOOTH = 50
AROUND = 8
SHORT = 1e-5


def minimum(s: Scene) -> Check:
    """Descends from the first image of a scene, and compares where it ends with what is drawn.

    Arguments:
        s: The scene.
    """
    statement, compared = "a minimum is its own reconstruction", "u where chains end, B of it"
    kinked = s.census.count("rectifier", "pool") > 0
    if kinked and not is_readable(s.energy, s.u):
        which = unreadable(s.energy, s.u)
        note = f"not all its kinks are those of ReLUs{which and f': {which}'}"
        return Check(statement, compared, "not here", None, note)
    if kinked and s.rounded:
        return Check(statement, compared, "not here", None, s.rounded)
    units = sum(r[:1].numel() for r in s.structure.graph.before)
    borders = min(BORDERS, 1 + WORK // max(units, 1))
    found = descend(
        s.energy,
        s.u[:1],
        s.y[:1],
        n_steps=STEPS,
        step_size=2**0.5,
        n_polish=borders if kinked else SMOOTH,
    )
    if not found.found:
        away = float(found.residual / norm(found.u))
        met = f"not reached in {borders} borders of pieces, a smaller image has fewer"
        note = f"{met if kinked else 'chains did not come to one'}; |u - B| is {away:.2g} of |u|"
        return Check(statement, compared, "not here", None, note)
    kinks = int(found.kinks)
    error = _rise(s, found) if kinks else _apart(s, found.u)
    note = f"kinks with slopes between 0 and 1: {kinks}" if kinks else "inside of a piece"
    return Check(statement, compared, "exact", error, note if kinked else "", s.stepped)


def _apart(s: Scene, u: Tensor) -> float:
    """Returns |u - B| by differentiation, of |u|."""
    b = s.tilt_and_b(u.expand_as(s.u))[1][:1]
    return float(norm(u - b) / norm(u).clamp_min(1e-300))


def _rise(s: Scene, found: Minima) -> float:
    """Returns by how much the energy falls about a point, or B with its slopes is off, of |u|."""
    u, size = found.u, norm(found.u)
    b = s.tilt_and_b(u.expand_as(s.u))[1][:1]
    aside = normal(u.expand(AROUND, *u.shape[1:]), generators(range(AROUND)))
    ways = torch.cat([b - u, aside])
    ways = SHORT * size * ways / norm(ways).view(-1, 1, 1, 1)
    with torch.no_grad():
        here, there = s.energy(u, s.y[:1]), s.energy(u + ways, s.y[:1].expand(len(ways)))
    fall = (here - there) / (SHORT * size)
    return relative_error(torch.cat([fall.clamp_min(0), found.residual]), fall.new_zeros(()), size)
