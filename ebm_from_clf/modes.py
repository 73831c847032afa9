"""Modes and flags of a network, borrowed and put back.

Sampling holds the parameters and the statistics of normalisation still. Every part that is
touched is put back as it was, also after an error.
"""

__all__ = ["evaluation_mode", "frozen", "held", "sharing"]

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def sharing(module: Module) -> Module:
    """Returns a copy of a module that shares its parts; other parts can be put in their place.

    Arguments:
        module: The module.
    """
    found = copy.copy(module)
    # The dictionary of parts would be shared too, and a change of the copy seen in both.
    found._modules = module._modules.copy()
    return found


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
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Stops gradients to parameters, and undoes it on exit.

    Arguments:
        parameters: The parameters.
    """
    live = [p for p in parameters if p.requires_grad]
    try:
        for p in live:
            p.requires_grad_(False)
        yield
    finally:
        for p in live:
            p.requires_grad_(True)


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Stops gradients to the parameters of a module in evaluation mode, and undoes it on exit.

    Arguments:
        module: The module.
    """
    with evaluation_mode(module), held(module.parameters()):
        yield module
