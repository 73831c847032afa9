r"""BatchNorm folded into the convolution before it, in a copy of a network.

.. math::
    \mathrm{BN}(w * x + b) = w' * x + b', \qquad
    w' = \frac{g}{\sqrt{v + \epsilon}} w, \qquad
    b' = \beta + \frac{g}{\sqrt{v + \epsilon}} (b - m)

In evaluation mode the two are one linear map, so a chain need not pay for both. Which of them
belong together is seen in a forward pass, and what comes out is compared with the network itself:
one that computes something else with a convolution is left as it is.
"""

__all__ = ["folded"]

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from .modes import evaluation_mode

TOLERANCE = 1e-4


def folded(network: nn.Module, x: Tensor) -> nn.Module:
    """Returns a copy of a network without its BatchNorms, or the network itself.

    Arguments:
        network: The network. It is not changed.
        x: Some of its input, with shape (B, C, H, W).

    Returns:
        A network in evaluation mode with the same output up to rounding.
    """
    with torch.no_grad(), evaluation_mode(network):
        expected = network(x)
        try:
            found = copy.deepcopy(network).requires_grad_(False).eval()
            pairs = _pairs(found, x)
            for convolution, norm in pairs:
                _fold(found, convolution, norm)
            gap = (found(x) - expected).abs().max()
        except (AttributeError, RuntimeError, TypeError):
            # It cannot be copied, or it looks into its norms.
            return network
    return found if pairs and gap <= TOLERANCE * expected.abs().max() else network


def _pairs(network: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Finds the norms that take the output of a convolution, each called once."""
    made: dict[int, tuple[nn.Conv2d, Tensor, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(output)] = (module, inputs[0], output)

    def before(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        found = made.get(id(inputs[0]))
        if found is not None and _are_linear(found[0], module, *found[1:]):
            pairs.append((found[0], module))

    parts = list(network.modules())
    hooks = [m.register_forward_hook(after) for m in parts if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before) for m in parts if isinstance(m, nn.BatchNorm2d)]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    every = [m for pair in pairs for m in pair]
    return [pair for pair in pairs if all(every.count(m) == 1 for m in pair)]


def _are_linear(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, output: Tensor) -> bool:
    """Tells whether the two together are the convolution of folded weights."""
    known = type(norm) is nn.BatchNorm2d or (hasattr(norm, "act") and hasattr(norm, "drop"))
    if not known or is_parametrized(convolution) or norm.running_mean is None:
        return False
    expected = functional.batch_norm(
        output, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    together = fuse_conv_bn_eval(convolution, norm)
    return bool((together(x) - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _fold(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Folds one norm; where it was, its activation stays."""
    together = fuse_conv_bn_eval(convolution, norm)
    convolution.weight, convolution.bias = together.weight, together.bias
    # timm's norm has a drop and an activation in it.
    parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    rest = nn.Sequential(*(part for part in parts if not isinstance(part, nn.Identity)))
    for name, module in list(network.named_modules()):
        if module is norm:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, rest)
