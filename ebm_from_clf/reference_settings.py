"""Settings of the reference q of a run, and how they make one of its data.

A reference is chosen by its kind: :class:`WhiteNoise`, :class:`SpectralNoise`,
:class:`FittedGaussian` with the variances of pixels or frequencies, :class:`StationaryGaussian`.
"""

__all__ = ["ReferenceSettings"]

from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import Dataset, Subset

from .batches import loader
from .data import AT_ONCE
from .fitted import FittedGaussian
from .reference import Reference, WhiteNoise
from .space import PixelSpace
from .spectral import NATURAL_EXPONENT, SpectralNoise
from .stationary import StationaryGaussian

ReferenceKind = Literal["white", "spectral", "fitted", "fitted_spectral", "stationary"]


@dataclass(frozen=True)
class ReferenceSettings:
    """Settings of the reference q.

    Arguments:
        kind: `white`, `spectral` (1/f), or `fitted` to the mean and variance of every pixel, or
            `fitted_spectral` to the mean, the spectrum and the colours, or `stationary` to those
            of a texture, which then has any size.
        scale: Standard deviation of a pixel, for white and spectral.
        alpha: Exponent of the power spectrum, for spectral.
        floor: Least standard deviation of a pixel or frequency, for fitted ones.
        ceiling: Largest standard deviation of a frequency, as a fraction of that of a pixel, for
            stationary.
        n_images: At most so many images are read for a fitted one, evenly spaced over the data.
    """

    kind: ReferenceKind = "fitted"
    scale: float = 0.25
    alpha: float = NATURAL_EXPONENT
    floor: float = 0.05
    ceiling: float = 1.0
    n_images: int = 50_000

    def __post_init__(self) -> None:
        if self.n_images < 2:
            raise ValueError(
                f"ReferenceSettings: `n_images` must be 2 or more, got {self.n_images}."
            )
        if not min(self.scale, self.floor, self.ceiling) > 0:
            raise ValueError(
                "ReferenceSettings: `scale`, `floor` and `ceiling` must be positive, "
                f"got {self.scale}, {self.floor} and {self.ceiling}."
            )

    def build(self, space: PixelSpace, dataset: Dataset) -> Reference:
        """Creates the reference for images of a space, fitted to data where it needs them."""
        if self.kind in ("white", "spectral"):
            mean = torch.full(space.shape, 0.5)
            if self.kind == "white":
                return WhiteNoise(mean, self.scale)
            return SpectralNoise(mean, self.scale, self.alpha)
        n = len(dataset)  # type: ignore[arg-type]
        some = Subset(dataset, range(0, n, -(-n // self.n_images)))
        images = (x for x, _ in loader(some, AT_ONCE))
        if self.kind == "stationary":
            return StationaryGaussian.fit(images, self.floor, self.ceiling)
        covariance: Literal["pixel", "spectral"] = "pixel" if self.kind == "fitted" else "spectral"
        return FittedGaussian.fit(images, covariance, self.floor)
