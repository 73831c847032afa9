r"""Pixels at the edge, the classifier's own input inside.

.. math:: I = (x - m) / s, \qquad x \in [0, 1]

The per-channel mean m and standard deviation s are those the classifier was trained with. They
belong to the classifier, not to the caller: everywhere else in this package an image is a float
tensor of pixels in [0, 1], with shape (B, C, H, W).
"""

__all__ = ["PixelSpace", "check_images", "check_pixels", "dequantize", "quantize", "resize"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .noise import Randomness, uniform


class PixelSpace(nn.Module):
    """Creates the map from pixels to the input of a classifier.

    Arguments:
        mean: The mean of each channel, in pixels.
        std: The standard deviation of each channel, in pixels.
        size: The height and width (H, W) of an image, in pixels.

    Raises:
        ValueError: If the lengths differ or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: tuple[int, int]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean) or min(std) <= 0:
            raise ValueError(
                "PixelSpace: one mean and one positive std per channel are needed, "
                f"got mean {tuple(mean)} and std {tuple(std)}."
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.size = (int(size[0]), int(size[1]))

    @property
    def shape(self) -> torch.Size:
        """The shape (C, H, W) of an image."""
        return torch.Size((len(self.mean), *self.size))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the classifier's input for pixels x, with shape (B, C, H, W)."""
        return (x - self.mean) / self.std

    def check(self, x: Tensor) -> None:
        """Checks a batch of images at the door.

        Arguments:
            x: Images, with shape (B, C, H, W).

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape is not that of this space.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"images must be floats in [0, 1], got {x.dtype}. Divide 8-bit images by 255."
            )
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, self.shape))}), "
                f"got {tuple(x.shape)}. Resize them, or convert the classifier with `size=`."
            )


def check_images(who: str, x: Tensor, energy: object = None) -> None:
    """Checks that there are images, that they are finite, and that they are those of an energy.

    Arguments:
        who: The caller, named in the error.
        x: The images, in pixels or whitened coordinates, with shape (B, C, H, W).
        energy: The energy, whose reference has their shape and dtype. `None` for any images.

    Raises:
        TypeError: If they are no tensor, the energy is none, or they are not of its dtype.
        ValueError: If their shape is not that of the energy, there is none, or a number of one is
            not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{who}: images must be a tensor, got {type(x).__name__}. Make it one.")
    if energy is not None:
        mean = getattr(getattr(energy, "reference", None), "mean", None)
        if not isinstance(mean, Tensor):
            raise TypeError(
                f"{who}: an energy is needed, got {type(energy).__name__}. `convert` makes one of "
                "a classifier."
            )
        _check_like(who, x, mean)
    if not len(x):
        raise ValueError(f"{who}: one image or more is needed, got shape {tuple(x.shape)}.")
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"{who}: images must be finite, image {bad} is not. Leave it out.")


def _check_like(who: str, x: Tensor, mean: Tensor) -> None:
    if x.ndim != 4 or x.shape[1:] != mean.shape:
        raise ValueError(
            f"{who}: images must have shape (B, {', '.join(map(str, mean.shape))}), as the energy "
            f"takes them, got {tuple(x.shape)}. Resize them, or convert the classifier with "
            "`size=`."
        )
    if x.dtype != mean.dtype:
        raise TypeError(
            f"{who}: images must be {mean.dtype}, as the energy is, got {x.dtype}. Give "
            f"`x.to({mean.dtype})`, of 8-bit images divided by 255."
        )


def check_pixels(who: str, x: Tensor) -> None:
    """Checks that images are on the scale [0, 1], black to white.

    Arguments:
        who: The caller, named in the error.
        x: Images, of any shape.

    Raises:
        ValueError: If they are whole numbers, not finite, or a tenth is far outside of [0, 1].
    """
    if not x.numel():
        return
    low, high = (float(v) for v in x.detach().aminmax())
    # Gaussian fields may reach beyond black and white, other scales are there most of the time.
    near = float(((x >= -0.5) & (x <= 1.5)).float().mean())
    if not (x.is_floating_point() and math.isfinite(high - low) and near >= 0.9):
        raise ValueError(
            f"{who}: images must be floats in [0, 1], got {x.dtype} from {low:g} to {high:g}. "
            "Divide 8-bit images by 255; undo a normalisation."
        )


def quantize(x: Tensor) -> Tensor:
    """Rounds pixels to 8 bits; pixels outside [0, 1] are clipped.

    Arguments:
        x: Pixels, of any shape.
    """
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def dequantize(v: Tensor, generator: Randomness | None = None) -> Tensor:
    """Returns 8-bit values as pixels in [0, 1].

    Arguments:
        v: 8-bit values, with shape (B, *).
        generator: With a generator, uniform noise of one grey level is added, so that the
            pixels have a density: (v + noise) / 256. Without, v / 255.
    """
    x = v.float()
    return x / 255 if generator is None else (x + uniform(x, generator)) / 256


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings images to another size: smaller by the mean over areas, larger bilinearly.

    Arguments:
        x: Images, with shape (B, C, h, w).
        size: The height and width (H, W).
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if size[0] <= x.shape[2] and size[1] <= x.shape[3]:
        return functional.interpolate(x, size, mode="area")
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)
