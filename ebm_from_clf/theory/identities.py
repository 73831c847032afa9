r"""Propositions of the paper that hold for every differentiable classifier, each as a check.

.. math::
    \partial_\theta \log p(u) = \partial_\theta F(u) - E_p [ \partial_\theta F ], \qquad
    -\nabla U = B - u, \qquad p(c \mid u) = \mathrm{softmax}_c (F_c + g)

and two changes of coordinates: a Langevin step in u is one in x that is preconditioned by
:math:`A A^\top`, and a temperature T is the scale :math:`\sqrt{T}` of A and the gain 1 / T.
"""

__all__ = ["IDENTITIES", "WITHOUT_B"]

import copy
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from ..gauge import Gauge
from ..langevin import Langevin
from ..modes import frozen, sharing
from ..noise import generators, normal
from ..objective import likelihood
from .scene import CROSSED, Check, Scene, dot, flat, norm, relative_error


def _drift(s: Scene) -> Check:
    """Half along B, where F changes most, half along noise, which no part of B is normal to."""
    u, _ = Langevin(1, 1.0, temperature=0.0)(s.energy, s.u, s.y, generator=generators([0, 1]))
    b = 2 * (u - s.u) + s.u
    v = s.b / norm(s.b).view(-1, 1, 1, 1) + s.aside / norm(s.aside).view(-1, 1, 1, 1)
    # A hundredth of what is near: few kinks lie within, and rounding is not seen.
    step = s.near / 100
    ahead, behind = (s.tilt_and_b(s.u + h * v)[0] for h in (step, -step))
    error = relative_error((ahead - behind) / (2 * step), dot(b, v), norm(s.b))
    hidden = max(s.hidden(s.tilt, step * norm(s.b)), s.hidden(norm(s.u), norm(s.b)))
    return Check(
        "the drift of the chain is B - u",
        "a step of Langevin without noise, differences of F",
        "exact",
        error,
        s.rounded,
        max(CROSSED, hidden),
    )


def _likelihood(s: Scene) -> Check:
    """The loss that learns, on finitely many images, of which log Z and its gradient are sums."""
    statement = "likelihood gradient: observed - synthesized"
    compared = "on 4 images, against that of log p"
    if s.unlearned:
        return Check(statement, compared, "not here", None, s.unlearned)
    u, y = _four(s)
    tilts = s.energy.tilt(u, y)
    scores = tilts / s.energy.gain
    # Their mean is the expectation under the model.
    synthesized = len(u) * tilts.detach().softmax(0) * scores
    learned = -s.energy.gain * _gradient(s, likelihood(scores[:1], synthesized))
    wanted = _gradient(s, tilts[0] - tilts.logsumexp(0))
    error = relative_error(learned, wanted, _gradient(s, tilts[0]))
    return Check(statement, compared, "exact", error, s.of, s.exact)


def _weights(s: Scene) -> Check:
    """Half along the gradient, where log p changes most, half along noise."""
    statement = "log p changes with the weights by its gradient"
    compared = "on 4 images, against differences"
    if s.unlearned:
        return Check(statement, compared, "not here", None, s.unlearned)
    u, y = _four(s)
    tilts = s.energy.tilt(u, y)
    g, w = _gradient(s, tilts[0] - tilts.logsumexp(0)), flat(s.weights, s.weights).detach()
    aside = normal(w[None], generators([13]))[0]
    v = g / g.norm().clamp_min(1e-300) + aside / aside.norm()
    # So short that few kinks lie within, though one weight moves what many units are given.
    step = 1e-8 * w.norm() / v.norm()
    ahead, behind = (_log_p(s, u, y, h * v) for h in (step, -step))
    return Check(
        statement,
        compared,
        "exact",
        relative_error((ahead - behind) / (2 * step), g @ v, g.norm() * v.norm()),
        s.of,
        max(CROSSED, s.hidden(tilts, step * g.norm())),
    )


def _four(s: Scene) -> tuple[Tensor, Tensor]:
    """Returns four images, and the class of the first for each."""
    return torch.cat([s.u, s.other]), s.y[:1].expand(4)


def _gradient(s: Scene, value: Tensor) -> Tensor:
    """Returns the gradient of a value in the weights that are looked at."""
    found = torch.autograd.grad(value.sum(), s.weights, retain_graph=True, allow_unused=True)
    return flat(found, s.weights)


def _log_p(s: Scene, u: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """Returns log p of the first of some images, among them, with other weights."""
    own = [w.detach().clone() for w in s.weights]
    parts = change.split([w.numel() for w in own])
    with torch.no_grad():
        for w, part in zip(s.weights, parts, strict=True):
            w.add_(part.view_as(w))
        tilts = s.energy.tilt(u, y)
        for w, before in zip(s.weights, own, strict=True):
            w.copy_(before)
    return tilts[0] - tilts.logsumexp(0)


def _bayes(s: Scene) -> Check:
    wanted = (s.energy.gain * s.structure.graph.logits).softmax(1)
    errors = []
    for gauge in get_args(Gauge):
        other = copy.copy(s.energy)
        other.gauge = gauge
        with torch.no_grad():
            errors.append(
                relative_error(other.all_tilts(s.u).softmax(1), wanted, wanted.new_ones(1))
            )
    return Check(
        "Bayes: no gauge changes the posterior",
        "softmax of F in 3 gauges, of the logits",
        "exact",
        max(errors),
        tolerance=s.exact,
    )


def _preconditioned(s: Scene) -> Check:
    sampler, reference = Langevin(1, 0.3, 0.5), s.energy.reference
    seeds = [11, 12]
    with frozen(s.energy):
        u, _ = sampler(s.energy, s.u, s.y, generator=generators(seeds))
        x = reference.decode(s.u).detach().requires_grad_()
        tilts = s.energy.tilts(s.energy.classify(x)).gather(1, s.y[:, None])
        (g,) = torch.autograd.grad(tilts.sum(), x)
    noise = normal(s.u, generators(seeds))
    drift = reference.factor(reference.adjoint(g)) - (x - reference.mean)
    expected = x + 0.3**2 / 2 * drift + 0.3 * 0.5**0.5 * reference.factor(noise)
    return Check(
        "a step in u is a preconditioned one in x",
        "decoded u', x' by A A^T and the same noise",
        "exact",
        relative_error(reference.decode(u), expected, expected),
        tolerance=s.exact,
    )


def _temperature(s: Scene) -> Check:
    heat, seeds = 0.5, [11, 12]
    cold = sharing(s.energy)  # the weights may be many
    cold.reference = copy.deepcopy(s.energy.reference)
    cold.reference.scale *= heat**0.5
    cold.gain = s.energy.gain / heat
    u, _ = Langevin(2, 0.3, heat)(s.energy, s.u, s.y, generator=generators(seeds))
    v, _ = Langevin(2, 0.3)(cold, s.u / heat**0.5, s.y, generator=generators(seeds))
    wanted = s.energy.reference.decode(u)
    return Check(
        "a temperature is a scale of A and a gain",
        "T = 1/2, and A / sqrt 2 with twice the gain",
        "exact",
        relative_error(cold.reference.decode(v), wanted, wanted),
        tolerance=s.exact,
    )


IDENTITIES: tuple[Callable[[Scene], Check], ...] = (
    _likelihood,
    _weights,
    _drift,
    _bayes,
    _preconditioned,
    _temperature,
)
# Those that do not speak of how a score changes with the image.
WITHOUT_B = (_likelihood, _weights, _bayes)
