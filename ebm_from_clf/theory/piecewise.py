r"""Propositions of the paper that speak of the linear pieces of a classifier, each as a check.

.. math::
    F = \alpha + \langle B, u \rangle, \qquad u \sim \mathcal{N}(B, 1) \text{ on the piece},
    \qquad u \to \delta \to B, \qquad \partial_\theta F(u) - \partial_\theta F(u') =
    -\tfrac{e^2}{2} \partial_\theta \tfrac{1}{2} | u - B |^2

the last for a noiseless step u' from u that stays on the piece. Where there are no pieces the
tangent at the image is all that is left of them.
"""

__all__ = ["ON_PIECES"]

from collections.abc import Callable

import torch

from ..langevin import Langevin
from ..noise import generators
from ..objective import likelihood
from .scene import Check, Scene, dot, flat, half, norm, relative_error
from .structure import Structure


def _topdown(s: Scene) -> Check:
    return _by_pattern(s, "top-down pass", "the top-down pass is the gradient",
                       "B by transposes, by differentiation", s.structure)  # fmt: skip


def _autoencoder(s: Scene) -> Check:
    """The graph is read at other images; only the pattern is that of ours."""
    other = Structure.at(s.energy, s.other)
    return _by_pattern(s, "auto-encoder by pattern", "image -> pattern -> B is an auto-encoder",
                       "B by the pattern alone, by differentiation", other)  # fmt: skip


def _by_pattern(s: Scene, key: str, statement: str, compared: str, other: Structure) -> Check:
    status = s.status[key]
    if status == "not here":
        return Check(statement, compared, status, None, s.spoiler)
    found = other.plane(s.y, s.structure.pattern).slope
    note = f"with real slopes: {s.spoiler}" if status == "local" else ""
    return Check(statement, compared, status, relative_error(found, s.b, s.b), note, s.graded)


def _plane(s: Scene) -> Check:
    statement = "f = alpha + <B, u>"
    if s.census.form == "piecewise linear":
        plane = s.structure.plane(s.y)
        found = plane.alpha + dot(plane.slope, s.u)
        size = plane.alpha.abs() + dot(plane.slope, s.u).abs()
        error = relative_error(found, s.tilt, size)
        compared = "F, and alpha from the biases"
        return Check(statement, compared, "exact", error, tolerance=s.exact)
    return Check(
        statement,
        f"F at a distance of {s.near:g}, and its tangent",
        "local",
        _tangent(s),
        s.spoiler,
    )


def _tangent(s: Scene) -> float:
    step = s.step()
    change = s.tilt_and_b(s.moved(step))[0] - s.tilt
    straight = step * dot(s.b, s.drift)
    return relative_error(change, straight, step * s.b.flatten(1).norm(dim=1) * norm(s.drift))


def _secant(s: Scene) -> Check | None:
    if s.census.form == "piecewise linear":
        return None
    statement, compared = "f = alpha + <G, u> with secants", "F, and alpha from the biases"
    if s.status["secant f = a + <G, u>"] == "not here":
        return Check(statement, compared, "not here", None, s.spoiler)
    plane = s.structure.secant(s.y)
    size = plane.alpha.abs() + dot(plane.slope, s.u).abs()
    found = plane.alpha + dot(plane.slope, s.u)
    apart = float(norm(plane.slope - s.b).max() / norm(s.b).max())
    return Check(
        statement,
        compared,
        "exact",
        relative_error(found, s.tilt, size),
        f"G is no gradient: {apart:.2g} of |B| from it",
        s.exact,
    )


def _gaussian(s: Scene) -> Check:
    statement = "the model is Gaussian on a piece"
    if s.reach is None:
        return Check(statement, "there are no pieces", "not here", None, s.spoiler)
    step = s.step()
    u = s.moved(step)
    value, b = s.tilt_and_b(u)
    change = half(u) - value - (half(s.u) - s.tilt)
    # |u' - B|^2 - |u - B|^2 without the difference of large numbers.
    wanted = dot(u - s.u, u + s.u - 2 * s.b) / 2
    first = relative_error(change, wanted, step * norm(s.drift) * norm(s.drift))
    far = norm(s.drift).max() / s.u[0].numel() ** 0.5
    low, high = float(s.reach.min()), float(s.reach.max())
    return Check(
        statement,
        "U and B half way to its border",
        "exact",
        max(first, relative_error(b, s.b, s.b)),
        f"along the drift, {far:.2g} a pixel long, pieces end at {low:.2g} to {high:.2g} of it",
        s.stepped,
    )


def _contrastive(s: Scene) -> Check:
    statement, compared = "CD-1 learns to reconstruct", "a short step without noise, |u - B|^2 / 2"
    weights = s.weights
    if s.unlearned:
        return Check(statement, compared, "not here", None, s.unlearned)
    step = s.step()
    # One step size for both images; the shorter one is on both pieces.
    time = float(step.min())
    chain = Langevin(1, (2 * time) ** 0.5, temperature=0.0)
    moved, _ = chain(s.energy, s.u, s.y, generator=generators([0, 1]))
    try:
        scores = (s.energy.tilt(u, s.y) / s.energy.gain for u in (s.u, moved))
        learned = torch.autograd.grad(likelihood(*scores), weights, allow_unused=True)
        u = s.u.clone().requires_grad_()
        (b,) = torch.autograd.grad(s.energy.tilt(u, s.y).sum(), u, create_graph=True)
        error = half(s.u - b).mean()
        reconstruction = torch.autograd.grad(error, weights, allow_unused=True)
    except RuntimeError as reason:
        if "derivative for" not in str(reason) and "double backward" not in str(reason):
            raise
        return Check(statement, compared, "not here", None, "cannot be differentiated twice")
    found = s.energy.gain * flat(learned, weights) / time
    wanted = flat(reconstruction, weights)
    size = torch.autograd.grad(s.energy.tilt(s.u, s.y).mean(), weights, allow_unused=True)
    status = s.status["CD-1 reconstructs"]
    note = f"for steps e up to {chain.step_size:.2g}; with noise it is score matching"
    return Check(
        statement,
        compared,
        status,
        relative_error(found, wanted, wanted),
        "; ".join(filter(None, [note, s.of])),
        max(s.stepped, s.hidden(flat(size, weights), time * wanted))
        if status == "exact"
        else None,
    )


ON_PIECES: tuple[Callable[[Scene], Check | None], ...] = (
    _topdown,
    _plane,
    _secant,
    _gaussian,
    _autoencoder,
    _contrastive,
)
