r"""BatchNorm folded into the convolution before it, in a copy of a network.

.. math::
    \mathrm{BN}(w * x + b) = w' * x + b', \qquad
    w' = \frac{g}{\sqrt{v + \epsilon}} w, \qquad
    b' = \beta + \frac{g}{\sqrt{v + \epsilon}} (b - m)

In evaluation mode the two are one linear map, so a chain need not pay for both. Which of them
belong together is seen in a forward pass, and what comes out is compared with the network itself
on some images: one that does something else with a convolution is left as it is.
"""

__all__ = ["Folded", "fold"]

import copy
from collections import Counter
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from .modes import evaluation_mode

TOLERANCE = 1e-4


class Folded(NamedTuple):
    """A network and its folded copy; what is not folded is shared between them.

    Arguments:
        network: The copy, or the network itself if nothing could be folded.
        pairs: Convolutions and norms of the network, and the convolutions in their place.
    """

    network: nn.Module
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]

    def refresh(self) -> None:
        """Follows the network after its weights have changed."""
        with torch.no_grad():
            for convolution, norm, together in self.pairs:
                weight, bias = _together(convolution, norm)
                together.weight.copy_(weight)
                cast(Tensor, together.bias).copy_(bias)


def fold(network: nn.Module, x: Tensor) -> Folded:
    """Copies a network without its BatchNorms.

    Arguments:
        network: The network. It is not changed.
        x: Inputs on which the two are compared, as different as chains meet, with shape
            (B, C, H, W).

    Returns:
        A copy in evaluation mode with the same output up to rounding, or the network itself.
    """
    same = Folded(network, [])
    if not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return same
    with (
        # Tensors made in inference mode cannot be differentiated; reduced precision would hide
        # what differs.
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(x.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        evaluation_mode(network),
    ):
        x = x.clone()
        expected = network(x)
        try:
            found = _copied(network, x)
            close = _is_close(found.network(x), expected)
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # It cannot be copied, or it looks into its norms.
            return same
    return found if found.pairs and close else same


def _copied(network: nn.Module, x: Tensor) -> Folded:
    """Copies a network and folds what can be folded."""
    shared = (*network.parameters(), *network.buffers())
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in shared}).eval()
    names = {module: name for name, module in copied.named_modules()}
    pairs = []
    for convolution, norm in _pairs(copied, x):
        original = network.get_submodule(names[convolution]), network.get_submodule(names[norm])
        pairs.append((*original, convolution))
        _replace(copied, convolution, norm)
    return Folded(copied, pairs)  # type: ignore[arg-type]


def _together(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns the weight and the bias of the two as one convolution."""
    return fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _pairs(network: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Finds the norms that take the output of a convolution as it is, both called once."""
    made: dict[int, tuple[nn.Conv2d, Tensor, Tensor, int]] = {}
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        if inputs:
            made[id(output)] = (module, inputs[0], output, output._version)

    def before(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        found = made.get(id(inputs[0])) if inputs else None
        if found is None:
            return
        convolution, given, output, version = found
        # Not if it was changed in place meanwhile.
        if output._version == version and _are_linear(convolution, module, given, output):
            pairs.append((convolution, module))

    parts = list(network.modules())
    hooks = [m.register_forward_hook(after) for m in parts if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before) for m in parts if isinstance(m, nn.BatchNorm2d)]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls[m] == 1 for m in pair)]


def _are_linear(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, output: Tensor) -> bool:
    """Tells whether the two together are the convolution of folded weights."""
    known = type(norm) is nn.BatchNorm2d or (hasattr(norm, "act") and hasattr(norm, "drop"))
    if not known or is_parametrized(convolution) or norm.running_mean is None:
        return False
    expected = functional.batch_norm(
        output, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    together = copy.copy(convolution)
    together._parameters = dict(convolution._parameters)
    together.weight, together.bias = _parameters(convolution, norm)
    return _is_close(together(x), expected)


def _parameters(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    weight, bias = _together(convolution, norm)
    return nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)


def _replace(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Folds one norm; where it was, its activation stays."""
    convolution.weight, convolution.bias = _parameters(convolution, norm)
    # timm's norm has a drop and an activation in it.
    parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    rest = nn.Sequential(*(part for part in parts if not isinstance(part, nn.Identity)))
    for name, module in list(network.named_modules()):
        if module is norm:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, rest)
