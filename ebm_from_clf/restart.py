r"""When persistent chains are begun anew.

.. math:: r_s = r_0 \, (r_1 / r_0)^{s / (n - 1)}, \qquad s = 0, \dots, n - 1

Slot s of n is begun anew with its own probability :math:`r_s` when it is drawn: the first slots
hold short chains, the last ones chains as long as the run, and every age between is met.
"""

__all__ = ["Rates", "rates", "restarts"]

import math

import torch
from torch import Tensor

Rates = float | tuple[float, float]


def rates(rate: Rates, n: int) -> Tensor:
    """Returns the restart rate of each slot, float64, with shape (n).

    Arguments:
        rate: One rate, or those of the first and the last slot.
        n: The number of slots.

    Raises:
        ValueError: If a rate is none.
    """
    first, last = rate if isinstance(rate, tuple | list) else (rate, rate)
    if not (0 <= first <= 1 and 0 <= last <= 1 and (first == last or first * last > 0)):
        raise ValueError(
            f"ChainStore: `restart_rate` is 0 to 1, or two such rates that are not 0, got {rate}."
        )
    if first == last:
        return torch.full((n,), float(first), dtype=torch.float64)
    return torch.logspace(math.log10(first), math.log10(last), n, dtype=torch.float64)


def restarts(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Chooses which chains are begun anew, by systematic sampling; a bool tensor of shape (B).

    The rates lie end to end in random order, and a comb of one tooth a unit falls on them. Each
    chain is chosen with its own probability, and nearly the same number of them every time, since
    a batch of one shape is fast.

    Arguments:
        rate: The probability of each chain, float64, with shape (B).
        generator: The generator of order and comb.
    """
    r = torch.rand(len(rate) + 1, generator=generator, device=generator.device)
    order = r[:-1].argsort().to(rate.device)
    edge = torch.cat([r[-1:].to(rate), rate[order]]).cumsum(0).floor()
    anew = torch.zeros_like(rate, dtype=torch.bool)
    anew[order] = edge.diff() > 0
    return anew
