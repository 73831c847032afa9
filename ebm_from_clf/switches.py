r"""The top-down pass from a score to an image, with the switches of three methods.

A rectifier :math:`h = \max(0, a)` of the bottom-up pass hands a signal g from above down as

.. math::
    \text{gradient: } 1(a > 0) \, g, \qquad
    \text{deconvnet: } 1(g > 0) \, g, \qquad
    \text{guided: } 1(a > 0) \, 1(g > 0) \, g

and everything else as its derivative does. The first is :math:`\nabla f_c`, of which
:math:`B = \gamma A^\top \nabla f_c` is made: the image that the model is Gaussian around (Xie et
al., 2016). The other two are no gradient of anything. They show what is in the image more than
what the class has to do with it: their signals are nearly the same for all classes (Nie et al.,
2018, https://arxiv.org/abs/1805.07039), and where no maximum is pooled the deconvnet knows
nothing of the image either (Springenberg et al., 2015).
"""

__all__ = ["Switches", "topdown"]

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .energy import ClassifierEnergy
from .errors import UsageError
from .gauge import check_classes
from .graph import read
from .modes import frozen
from .space import check_images

Switches = Literal["gradient", "deconvnet", "guided"]

# Where a rectifier stops to rise; a hard tanh is one if it begins at 0.
CEILINGS = {
    functional.relu: math.inf,
    functional.relu6: 6.0,
    functional.hardtanh: 1.0,
    torch.relu: math.inf,
    torch.relu_: math.inf,
    Tensor.relu: math.inf,
    Tensor.relu_: math.inf,
}
KNOWN = ("relu", "hardtanh")  # what they are in the graph of a network
IN_PLACE = (torch.relu_, Tensor.relu_)


def topdown(
    energy: ClassifierEnergy, x: Tensor, y: Tensor, switches: Switches = "gradient"
) -> Tensor:
    """Returns the signal that comes down from a score to each image, with the shape of x.

    For units of inner layers, `topdown(units(energy, ["layer3.1.conv2:17"]), x, y)`. Rectifiers
    are ReLU and ReLU6, as modules or as functions of torch; of others, as LeakyReLU, only the
    gradient is defined.

    References:
        | Visualizing and Understanding Convolutional Networks (Zeiler and Fergus, 2014)
        | https://arxiv.org/abs/1311.2901
        | Striving for Simplicity: The All Convolutional Net (Springenberg et al., 2015)
        | https://arxiv.org/abs/1412.6806

    Arguments:
        energy: The energy. Its gain, gauge and smoothing have no part in it.
        x: Pixels in [0, 1], with shape (B, C, H, W).
        y: The class indices, with shape (B), or weights of all classes, with shape (B, K).
        switches: Which rule, `gradient`, `deconvnet` or `guided`.

    Returns:
        The signal, in logits per pixel value. With `gradient` it is the gradient of the logit.

    Raises:
        TypeError: If the images are not of the dtype of the energy.
        ValueError: If a shape is wrong, an image is not finite, there is none, or a class or rule
            does not exist.
        UsageError: If other switches than those of the gradient are asked for, and the network
            has no rectifier, or one that is not known.
    """
    if switches not in get_args(Switches):
        raise ValueError(f"topdown: `switches` is {get_args(Switches)}, got {switches!r}.")
    check_images("topdown", x, energy)
    check_classes(y, len(x), energy.n_classes)
    with torch.inference_mode(False), torch.enable_grad(), frozen(energy):
        x = x.detach().clone().requires_grad_()
        with _Rectifiers(switches) as met:
            logits = energy.classify(x)
        above = y if y.is_floating_point() else functional.one_hot(y.long(), logits.shape[1])
        (signal,) = torch.autograd.grad(logits, x, above.to(logits))
    if switches != "gradient":
        _check_rectifiers(energy, x.detach(), switches, met.count)
    return signal


def _check_rectifiers(energy: ClassifierEnergy, x: Tensor, switches: Switches, met: int) -> None:
    """Checks that there are rectifiers, and that all were given their switches."""
    nodes = read(energy.classifier, energy.space(x[:1])).nodes
    # With a kink at 0 and none below: neither a hard tanh nor the gates of hardsigmoid.
    every = [node for node in nodes if node.kind == "rectifier" and node.kinks[0] == 0]
    others = [node for node in every if node.operation.name not in KNOWN]
    if others or met < len(every):
        node = (others or every)[0]
        raise UsageError(
            f"topdown: {switches!r} is not defined for {node.operation.name} in "
            f"{node.module or 'the network'} ({node.layer}). Use 'gradient', or torch's ReLU or "
            "ReLU6 in its place."
        )
    if not met:
        raise UsageError(
            f"topdown: no ReLU was met, so {switches!r} is not defined. Use 'gradient', or a "
            "classifier with ReLU or ReLU6."
        )


class _Rectifiers(TorchFunctionMode):
    """Gives rectifiers other switches while it is entered, and counts them."""

    def __init__(self, switches: Switches) -> None:
        super().__init__()
        self.switches: Switches = switches
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if func not in CEILINGS or kwargs.get("min_val", 0.0) != 0:
            return func(*args, **kwargs)
        self.count += 1
        a: Tensor = args[0] if args else kwargs["input"]
        ceiling = kwargs.get("max_val", CEILINGS[func])
        h = _Rectify.apply(a, ceiling, self.switches)
        # Who changes it in place may go on with a.
        return a.copy_(h) if func in IN_PLACE or kwargs.get("inplace") else h


class _Rectify(torch.autograd.Function):
    """The rectifier min(max(0, a), ceiling) with given switches."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, ceiling: float, switches: Switches) -> Tensor:  # noqa: ANN401
        ctx.switches = switches
        ctx.save_for_backward((a > 0) & (a < ceiling))
        return a.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # noqa: ANN401
        (is_open,) = ctx.saved_tensors
        if ctx.switches != "deconvnet":
            g = torch.where(is_open, g, 0)
        return g if ctx.switches == "gradient" else g.clamp_min(0), None, None
