r"""The smoothed score: what a classifier says of an image on average over small changes of it.

.. math:: \tilde f_c(x) = E_t [ f_c(t(x)) ], \qquad
    t(x) = c \, ([x]_0^1 \circ g - 1/2) + 1/2 + b + \sigma z

with the image as it is shown, clipped to black and white, g a random shift, zoom and rotation,
c and b a random contrast and brightness, and z white noise. A pretrained classifier answers to
patterns of single pixels that no photograph has; few of them survive a shift. The distribution
of t is part of the model: :math:`p_c \propto e^{\gamma \tilde f_c} q`.

A step of a chain uses few draws of t. The gradient is unbiased, and its variance v per coordinate
of B heats the chain: at step e it runs at about :math:`T + e^2 v / 4`, without momentum.
"""

__all__ = ["Coarse", "Smoothing", "View"]

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .noise import Randomness, normal, uniform

VIEWS = 8


class View(NamedTuple):
    """One realisation t for each image of a batch; call it as `view(x)`.

    Arguments:
        where: The affine maps from places in t(x) to places in x, with shape (B, 2, 3).
        light: The contrast c and the brightness b, with shape (B, 2).
        noise: What is added, in pixels, with shape (B, C, H, W). `None` for nothing.
        size: The height and width that the result is brought to. `None` for those of x.
    """

    where: Tensor
    light: Tensor
    noise: Tensor | None
    size: tuple[int, int] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Returns t(x), with shape (B, C, *size); beyond its border x is mirrored."""
        # Full precision: rounded places would not be whole pixels.
        with torch.autocast(x.device.type, enabled=False):
            places = functional.affine_grid(self.where.to(x), list(x.shape), align_corners=False)
            x = functional.grid_sample(
                x.clamp(0, 1),
                places,
                mode="bilinear",
                padding_mode="reflection",
                align_corners=False,
            )
            contrast, brightness = self.light.to(x).view(-1, 2, 1, 1, 1).unbind(1)
            x = contrast * (x - 0.5) + 0.5 + brightness
            if self.noise is not None:
                x = x + self.noise.to(x)
            if self.size is None:
                return x
            return functional.interpolate(x, self.size, mode="bilinear", antialias=True)

    def repeat(self, n: int) -> "View":
        """Returns the change of one image for n of them."""
        noise = None if self.noise is None else self.noise.expand(n, -1, -1, -1)
        return View(self.where.expand(n, -1, -1), self.light.expand(n, -1), noise, self.size)


class Coarse(NamedTuple):
    """A first stage of a chain, in which the classifier looks at a smaller image.

    Steps cost less, and large things come before small ones.

    Arguments:
        size: The size at which it looks; see :class:`Smoothing`.
        n_steps: The number of steps.
    """

    size: float = 0.7
    n_steps: int = 90


@dataclass(frozen=True)
class Smoothing:
    """Settings of the distribution of changes t.

    Arguments:
        shift: Largest shift along each axis, as a fraction of the size; shifts are whole pixels,
            all alike.
        zoom: Least and largest magnification, uniform between them.
        rotation: Largest rotation to either side, in degrees, uniform.
        contrast: Largest change of the contrast to either side, a fraction of it, uniform.
        brightness: Largest change of the brightness to either side, in pixels, uniform.
        noise: Standard deviation of the noise, in pixels.
        draws: Changes averaged in each step of a chain.
        size: The size at which the classifier looks, as a fraction of its own, at least 32 pixels
            and a multiple of them.

    Raises:
        ValueError: If a number is out of range.
    """

    shift: float = 0.07
    zoom: tuple[float, float] = (0.8, 1.1)
    rotation: float = 0.0
    contrast: float = 0.9
    brightness: float = 0.35
    noise: float = 0.05
    draws: int = 1
    size: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.zoom
        if not (0 <= self.shift <= 0.5 and 0.1 <= low <= high <= 10):
            raise ValueError(
                "Smoothing: `shift` is 0 to 0.5 and `zoom` a pair between 0.1 and 10, "
                f"got {self.shift} and {self.zoom}."
            )
        if not 0 < self.size <= 1:
            raise ValueError(f"Smoothing: `size` is above 0 and at most 1, got {self.size}.")
        if not (0 <= self.contrast < 1 and 0 <= self.brightness <= 1):
            raise ValueError(
                "Smoothing: `contrast` is 0 to below 1 and `brightness` 0 to 1, "
                f"got {self.contrast} and {self.brightness}."
            )
        if not (0 <= self.rotation <= 180 and 0 <= self.noise < math.inf and self.draws >= 1):
            raise ValueError(
                "Smoothing: `rotation` is 0 to 180 degrees, `noise` 0 or more, `draws` 1 or more, "
                f"got {self.rotation}, {self.noise} and {self.draws}."
            )

    def view(self, x: Tensor, generator: Randomness) -> View:
        """Draws one change for each image.

        Arguments:
            x: Images, with shape (B, C, H, W), for shape and device only.
            generator: One generator, or one per image.
        """
        n, _, height, width = x.shape
        r = uniform(x.new_empty(n, 6), generator).double()
        low, high = self.zoom
        zoom = low + (high - low) * r[:, 0]
        angle = math.radians(self.rotation) * (2 * r[:, 1] - 1)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # Places run from -1 to 1 along each axis; an oblong image keeps its angles.
        aspect = height / width
        where = torch.stack(
            [
                torch.stack([cos, -sin * aspect, self._offset(r[:, 2], width)], 1),
                torch.stack([sin / aspect, cos, self._offset(r[:, 3], height)], 1),
            ],
            1,
        )
        light = (2 * r[:, 4:] - 1) * r.new_tensor([self.contrast, self.brightness])
        light = light + light.new_tensor([1.0, 0.0])
        noise = self.noise * normal(x, generator) if self.noise else None
        size = None
        if self.size < 1:
            height, width = (max(1, round(self.size * side / 32)) * 32 for side in (height, width))
            size = (height, width)
        return View(where.to(x.dtype), light.to(x.dtype), noise, size)

    def fixed(self, x: Tensor) -> list[View]:
        """Returns `VIEWS` changes, the same ones for all images and at every call.

        Arguments:
            x: Images, with shape (B, C, H, W), for shape and device only.
        """
        generator = torch.Generator().manual_seed(0)
        return [self.view(x[:1], generator).repeat(len(x)) for _ in range(VIEWS)]

    def _offset(self, r: Tensor, size: int) -> Tensor:
        """Returns whole pixels, uniform within the largest shift, on the scale of places."""
        largest = round(self.shift * size)
        pixels = (r * (2 * largest + 1)).floor() - largest
        return 2 * pixels / size
