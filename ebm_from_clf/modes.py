"""Modes and flags of a network, borrowed and put back.

Sampling holds the parameters and the statistics of normalisation still. Every part that is
touched is put back as it was, also after an error.
"""

__all__ = ["evaluation_mode", "frozen"]

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Puts every part of a module in evaluation mode, and back on exit.

    Arguments:
        module: The module.
    """
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield module
    finally:
        for part in training:
            part.training = True


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Stops gradients to the parameters of a module in evaluation mode, and undoes it on exit.

    Arguments:
        module: The module.
    """
    live = [p for p in module.parameters() if p.requires_grad]
    with evaluation_mode(module):
        try:
            for p in live:
                p.requires_grad_(False)
            yield module
        finally:
            for p in live:
                p.requires_grad_(True)
