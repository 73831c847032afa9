r"""The minima of the energy: the images that a class remembers.

.. math:: u = B(u) = \gamma A^\top \nabla f(\mu + A u)

A minimum is its own top-down reconstruction (Xie et al., 2016): the energy is a memory, and a
chain without noise recalls from it, as in a Hopfield network. Smooth networks have this to
rounding. A network of rectifiers has it inside of a piece; where units lie on their kink, only
with fractional slopes of these, see :mod:`ebm_from_clf.theory.kinks`. On a box, B is brought back
into it.
"""

__all__ = ["Minima", "descend"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..drift import energy_and_score
from ..energy import ClassifierEnergy
from ..errors import Diverged
from ..gauge import check_classes
from ..langevin import Langevin
from ..modes import frozen
from ..space import check_images
from ..support import confine
from .kinks import come_to_rest
from .readable import is_readable, unreadable

SHORTER = (1.0, 0.3, 0.1)  # about a kink a chain goes to and fro, as far as its step


class Minima(NamedTuple):
    """Where the energy was descended to.

    Arguments:
        u: Whitened coordinates, with shape (B, C, H, W).
        energy: The energies, in nats, with shape (B).
        residual: The distances of u from its reconstruction, in u, with shape (B).
        kinks: The number of units at their kink, with shape (B); 0 inside of a piece and on a box,
            where it is not looked for them, -1 where the kinks of a network cannot be read.
        found: Whether it is a minimum, up to rounding, with shape (B).
        slopes: Of each image the slopes of these units, 0 to 1, with which it is its own
            reconstruction, with shape (kinks).
        obstacle: The operation whose kinks cannot be read, on which minima are hardly ever found;
            empty if there is none.
    """

    u: Tensor
    energy: Tensor
    residual: Tensor
    kinks: Tensor
    found: Tensor
    slopes: tuple[Tensor, ...] = ()
    obstacle: str = ""


def descend(
    energy: ClassifierEnergy,
    u: Tensor,
    y: Tensor,
    *,
    n_steps: int = 100,
    step_size: float = 0.3,
    n_polish: int = 300,
) -> Minima:
    """Descends the energy to its minima: chains without noise, then a polish to rounding.

    The polish goes image by image: from piece to piece if the network is linear but for
    rectifiers of one kink, at 0, by L-BFGS if not. On a box there is none.

    Arguments:
        energy: The energy.
        u: Whitened coordinates to begin at, with shape (B, C, H, W).
        y: The class indices, with shape (B).
        n_steps: The steps of the chains, then of shorter ones, and of shorter ones yet.
        step_size: Their step e, at first.
        n_polish: The borders of pieces that the polish may meet, or its steps of L-BFGS.

    Raises:
        TypeError: If the energy is none, or the images are not of its dtype.
        ValueError: If there is no image, a shape is wrong, one is not finite, a class does not
            exist, pixels of the energy are kept, or a number of steps is wrong.
        Diverged: If chains leave the finite numbers.
    """
    check_images("descend", u, energy)
    check_classes(y, len(u), energy.n_classes)
    if not isinstance(n_polish, int) or n_polish < 0:
        raise ValueError(f"descend: `n_polish` must be 0 or more, and whole, got {n_polish}.")
    if energy.kept is not None:
        raise ValueError("descend: the energy keeps pixels. Descend the one it was made of.")
    for shorter in SHORTER:
        chain = Langevin(n_steps, step_size * shorter, temperature=0.0)
        u, _ = chain(energy, u, y, generator=torch.Generator())
    if not u.isfinite().all():
        raise Diverged("descend: chains left the finite numbers. Take a smaller `step_size`.")
    kinks = torch.zeros(len(u), dtype=torch.int64, device=u.device)
    slopes: tuple[Tensor, ...] = ()
    with torch.inference_mode(False), torch.enable_grad(), frozen(energy):
        unbounded, each = energy.support == "unbounded", zip(u.split(1), y.split(1), strict=True)
        readable = unbounded and is_readable(energy, u)
        obstacle = "" if readable else unreadable(energy, u)
        if readable:
            rests = [come_to_rest(energy, v, c, n_polish) for v, c in each]
            u = torch.cat([rest.u for rest in rests])
            residual = u.new_tensor([rest.residual for rest in rests])
            kinks = kinks.new_tensor([rest.kinks for rest in rests])
            found = kinks.new_tensor([rest.found for rest in rests], dtype=torch.bool)
            slopes = tuple(rest.slopes for rest in rests)
        else:
            if unbounded:
                u = torch.cat([_polish(energy, v, c, n_polish) for v, c in each])
            residual = _residual(energy, u, y)
            found = residual <= torch.finfo(u.dtype).eps ** 0.5 * (1 + u.flatten(1).norm(dim=1))
        value = energy(u, y).detach()
    return Minima(u, value, residual, kinks - int(bool(obstacle)), found, slopes, obstacle)


def _polish(energy: ClassifierEnergy, u: Tensor, y: Tensor, most: int) -> Tensor:
    """Descends a smooth energy to rounding."""
    # A line search compares energies, whose rounding hides the last digits of u; then without.
    for search in ("strong_wolfe", None):
        v = _lbfgs(energy, u, y, most, search)
        if _residual(energy, v, y) < _residual(energy, u, y):
            u = v
    return u


def _lbfgs(
    energy: ClassifierEnergy, u: Tensor, y: Tensor, most: int, search: str | None
) -> Tensor:
    v = u.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v],
        max_iter=most,
        tolerance_grad=torch.finfo(u.dtype).eps,
        tolerance_change=0.0,
        line_search_fn=search,
    )

    def closure() -> float:
        value, score = energy_and_score(energy, v, y)
        v.grad = -score
        return float(value)

    optimizer.step(closure)
    return v.detach()


def _residual(energy: ClassifierEnergy, u: Tensor, y: Tensor) -> Tensor:
    """Returns |u - B|, or on a box the distance from B brought back into it, with shape (B)."""
    _, score = energy_and_score(energy, u, y)
    b = u + score
    if energy.support != "unbounded":
        b = confine(b, energy.reference, "clamp")
    return (u - b).flatten(1).norm(dim=1)
