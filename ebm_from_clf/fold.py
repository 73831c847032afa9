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
        try:
            # Judged on other weights: new norms do nothing and new heads are 0, which any fold
            # would pass, and weights may learn.
            trial = _shaken(network)
            names = _pairs(trial, x.clone())
            if not names or not _agree(trial, _copied(trial, names).network, x):
                return same
            found = _copied(network, names)
            return found if _agree(network, found.network, x) else same
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # It cannot be copied, or it looks into its norms.
            return same


def _agree(network: nn.Module, other: nn.Module, x: Tensor) -> bool:
    return _is_close(other(x.clone()), network(x.clone()))


def _shaken(network: nn.Module) -> nn.Module:
    """Copies a network with other norms, and with numbers in the place of zeros."""
    found = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(0)
    for norm in found.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.3, 0.3),
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.3, 2.0),
            ):
                if value is not None:
                    value.copy_(low + (high - low) * torch.rand(value.shape, generator=generator))
    for value in found.parameters():
        if not value.any():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return found


def _copied(network: nn.Module, names: list[tuple[str, str]]) -> Folded:
    """Copies a network and folds norms into convolutions by their names."""
    shared = (*network.parameters(), *network.buffers())
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in shared}).eval()
    pairs = []
    for first, second in names:
        convolution, norm = network.get_submodule(first), network.get_submodule(second)
        together = copied.get_submodule(first)
        pairs.append((convolution, norm, together))
        _replace(copied, together, copied.get_submodule(second))  # type: ignore[arg-type]
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


def _pairs(network: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names the convolutions and the norms that take their output as it is, both called once."""
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
    names = {module: name for name, module in network.named_modules()}
    return [(names[a], names[b]) for a, b in pairs if calls[a] == calls[b] == 1]


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
