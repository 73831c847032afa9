r"""The generative ConvNet of a single category: its score is all that its last layer responds.

.. math:: f(x) = \frac{1}{n} \sum_k \sum_a F_k^{(L)}(x)_a, \qquad
    F_k^{(l)} = \max\Big(0, \sum_j w_{kj}^{(l)} * F_j^{(l-1)} + b_k^{(l)}\Big)

summed over channels k and places a (Xie et al., 2016, https://arxiv.org/abs/1602.03264). The n is
how many there are in an image of the size that it learns from, so that scores are of the order of
a logit. It is fully convolutional: a texture learned at one size is drawn at any other one, with
the same n and the same gain, since the sum grows with the image as :math:`|u|^2 / 2` does.
Convolutions do not pad, so that no layer sees a border that the texture does not have.
"""

__all__ = ["GenerativeConvNet", "enlarged"]

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .energy import ClassifierEnergy
from .frame import FrameConvNet
from .modes import sharing
from .one_class import one_class_config
from .reference import WhiteNoise
from .space import PixelSpace
from .start import ReferenceStart
from .stationary import StationaryGaussian

LARGEST = 2**14


class GenerativeConvNet(nn.Module):
    """Creates a network with one class, whose logit is the sum of its last feature maps.

    Arguments:
        in_chans: Channels of an image, 1 or 3.
        channels: Filters of each layer.
        kernels: Height and width of the filters of each layer, in pixels of the layer below.
        strides: Distance of their places, in pixels of the layer below.
        size: Height and width of the images that it learns from.
        depth: How many layers are in use, from below, `None` for all. It may be set later: the
            paper learns one layer after the other.

    Raises:
        ValueError: If there is no layer, the lists differ in length, a number is not positive,
            there are fewer layers than are in use, or images of that size are smaller than what a
            filter of them sees.
    """

    num_classes = 1

    def __init__(
        self,
        in_chans: int = 1,
        channels: Sequence[int] = (48, 96, 128, 128),
        kernels: Sequence[int] = (7, 5, 5, 5),
        strides: Sequence[int] = (2, 2, 2, 1),
        size: int = 128,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        if not len(channels) == len(kernels) == len(strides) > 0:
            raise ValueError(
                "GenerativeConvNet: `channels`, `kernels` and `strides` have one number for each "
                f"layer, got {len(channels)}, {len(kernels)} and {len(strides)} of them."
            )
        depth = len(channels) if depth is None else depth
        if min(in_chans, *channels, *kernels, *strides) < 1:
            raise ValueError(
                "GenerativeConvNet: `in_chans`, `channels`, `kernels` and `strides` are 1 or more."
            )
        if not 1 <= depth <= len(channels):
            raise ValueError(
                f"GenerativeConvNet: `depth` is 1 to {len(channels)} layers, got {depth}."
            )
        self.in_chans, self.size, self.depth = in_chans, size, depth
        self.channels, self.kernels, self.strides = list(channels), list(kernels), list(strides)
        below = [in_chans, *channels]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below[i], channels[i], kernels[i], strides[i]), nn.ReLU())
            for i in range(len(channels))
        )
        self.num_features, half = channels[-1], (0.5,) * in_chans
        if size < self.field:
            raise ValueError(
                f"GenerativeConvNet: a filter of the last layer sees {self.field} pixels, images "
                f"have {size}. Take larger images, or smaller `kernels` or `strides`."
            )
        self.pretrained_cfg = one_class_config("generative_convnet", in_chans, size, half, half)

    @property
    def arguments(self) -> dict[str, Any]:
        """What creates such a network again, by the names of its arguments."""
        names = ("in_chans", "channels", "kernels", "strides", "size", "depth")
        return {name: getattr(self, name) for name in names}

    @property
    def field(self) -> int:
        """How far a filter of the last layer in use sees, in pixels."""
        seen, distance = 1, 1
        for kernel, stride in self._in_use():
            seen += (kernel - 1) * distance
            distance *= stride
        return seen

    @property
    def responses(self) -> int:
        """The n of the score: responses of the last layer in use to an image of its own size."""
        side = self.size
        for kernel, stride in self._in_use():
            side = (side - kernel) // stride + 1
        return self.channels[self.depth - 1] * side**2

    def _in_use(self) -> list[tuple[int, int]]:
        """Returns kernel and stride of each layer in use."""
        return list(zip(self.kernels, self.strides, strict=True))[: self.depth]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the score of images, with shape (B, 1).

        Arguments:
            x: Images from -1 to 1, with shape (B, C, H, W).
        """
        for layer in self.layers[: self.depth]:
            x = layer(x)
        return x.flatten(1).sum(1, keepdim=True) / self.responses


def enlarged(energy: ClassifierEnergy, size: tuple[int, int]) -> ClassifierEnergy:
    """Returns the same model on images of another size; the network is shared.

    Chains start at its reference. Images of a :class:`FrameConvNet` are on a torus then: laid side
    by side they go on without a seam.

    Arguments:
        energy: The energy of a :class:`GenerativeConvNet` or a :class:`FrameConvNet`, with a
            stationary reference or white noise of one mean per channel.
        size: The height and width of images, in pixels.

    Raises:
        ValueError: If it is another energy, images are smaller than what a filter sees, places of
            filters do not fit a torus of that size, or a side is above 16384 pixels.
    """
    if max(size) > LARGEST:
        raise ValueError(f"enlarged: sides are at most {LARGEST} pixels, got {size}.")
    found = sharing(energy)
    found.classifier = _on(energy.classifier, size)
    reference, device = energy.reference, energy.reference.mean.device
    mean = reference.mean.mean((1, 2), keepdim=True)
    if not isinstance(reference, WhiteNoise | StationaryGaussian):
        raise ValueError(
            "enlarged: only WhiteNoise and a StationaryGaussian have another size, got "
            f"{type(reference).__name__}."
        )
    if not (reference.mean - mean).abs().max() < 1e-6:
        raise ValueError("enlarged: the mean of the reference must be the same at every place.")
    if isinstance(reference, StationaryGaussian):
        found.reference = reference.resized(size).to(device)
    else:
        plain = mean.expand(-1, *size).clone()
        found.reference = WhiteNoise(plain, float(reference.scale)).to(device)
    center, spread = (t.flatten().tolist() for t in (energy.space.mean, energy.space.std))
    found.space = PixelSpace(center, spread, size).to(device)
    found.start = ReferenceStart(found.reference)
    return found


def _on(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Returns a network of one category for images of another size, which shares its parts."""
    if isinstance(network, GenerativeConvNet):
        if min(size) < network.field:
            raise ValueError(
                f"enlarged: a filter of the last layer sees {network.field} pixels, got {size}. "
                "Take larger images."
            )
        return network
    if not isinstance(network, FrameConvNet):
        raise ValueError(
            "enlarged: only a GenerativeConvNet or a FrameConvNet has another size, got "
            f"{type(network).__name__}. Leave out the size, or convert its classifier at that one."
        )
    if any(side % network.distance or side < network.border for side in size):
        raise ValueError(
            f"enlarged: sides must be multiples of {network.distance} pixels, the distance of the "
            f"places of the last layer, and at least {network.border}, got {size}."
        )
    return network.on_torus()
