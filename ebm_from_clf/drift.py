r"""What drives a chain: the score of its energy, and what it leaves behind on the way.

.. math:: -\nabla U(u, y), \qquad
    \kappa = - \frac{\langle d(u') - d(u), \, u' - u \rangle}{|u' - u|^2}

with the drift d, which is the score or its rescaled form, at the ends u and u' of a step. The
energy U curves by :math:`\kappa` along the step.
"""

__all__ = [
    "Energy",
    "Trace",
    "confined",
    "curvature",
    "energy_and_score",
    "rescale",
    "sampling",
]

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .modes import frozen

Energy = Callable[[Tensor, Tensor], Tensor]


class Trace(NamedTuple):
    """What a step leaves behind, at the state before it; of a chain, one row per step.

    Arguments:
        energy: The energies U, in nats, with shape (B) or (n_steps, B).
        score_norm: The norms of the score, the gradient of -U, with the same shape.
        curvature: How much U curves along the step that came before, the fall of the drift along
            it over its length, with the same shape; NaN where none came before. Drifts that are
            random or of a fixed norm fall for other reasons.
    """

    energy: Tensor
    score_norm: Tensor
    curvature: Tensor


def energy_and_score(energy: Energy, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the energies U(u, y), with shape (B), and the scores -dU/du, with the shape of u.

    Arguments:
        energy: The energy.
        u: The state, with shape (B, *).
        y: The class indices, with shape (B).
    """
    played = getattr(energy, "energy_and_score", None)
    if played is not None:
        return played(u, y)
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = energy(u, y)
        # The sum, not the mean: each chain has its own gradient, whatever the batch.
        (gradient,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), -gradient


def curvature(last: tuple[Tensor, Tensor] | None, now: tuple[Tensor, Tensor]) -> Tensor:
    """Returns how fast the drift falls from one state to the next, with shape (B).

    Arguments:
        last: The state before and its drift.
        now: The state and its drift.
    """
    if last is None:
        return torch.full_like(now[0].flatten(1)[:, 0], math.nan)
    moved, change = ((b - a).flatten(1) for a, b in zip(last, now, strict=True))
    return -(moved * change).sum(1) / moved.square().sum(1)


def confined(energy: Energy, u: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a state brought back into the support, if there is one, and the way on from there.

    A wall stops or turns the way on as it does the state: by its derivative, applied forwards, as
    what is linear in a vector that it is applied to backwards.

    Arguments:
        energy: The energy; its `confine` brings a state back.
        u: The state, with shape (B, *).
        way: Where it goes on to, with the same shape.
    """
    confine = getattr(energy, "confine", None)
    if confine is None:
        return u, way
    with torch.enable_grad():
        before = u.detach().requires_grad_()
        moved = confine(before)
        any_way = torch.zeros_like(moved, requires_grad=True)
        (back,) = torch.autograd.grad(moved, before, any_way, create_graph=True)
        (way,) = torch.autograd.grad(back, any_way, way)
    return moved.detach(), way


@contextmanager
def sampling(energy: Energy) -> Iterator[None]:
    """Lets chains run: no gradient of parameters, evaluation mode, under any mode of torch.

    Arguments:
        energy: The energy, put back as it was afterwards.
    """
    # Tensors made in inference mode cannot be differentiated, even with gradients enabled.
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(energy, nn.Module):
            with frozen(energy):
                yield
        else:
            yield


def rescale(b: Tensor, norm: float) -> Tensor:
    """Rescales each image of b to a norm per square root of a dimension.

    Arguments:
        b: The images, with shape (B, *).
        norm: The norm.
    """
    flat = b.flatten(1)
    size = norm * math.sqrt(flat.shape[1]) / flat.norm(dim=1).clamp_min(1e-30)
    return b * size.view(-1, *[1] * (b.ndim - 1))
