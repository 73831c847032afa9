"""A recipe: a YAML file whose keys are the fields of the objects themselves.

It says all that a run needs: classifier, data, reference, energy, and the settings of the
fine-tuning. Unknown keys and wrong types are refused by name. Every run writes the recipe it
resolved to beside its weights.
"""

__all__ = ["Recipe", "find_recipe"]

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from .batches import loader
from .convert import convert, create_classifier
from .data import AT_ONCE, load_data
from .energy import ClassifierEnergy
from .errors import UsageError
from .fitted import FittedGaussian
from .frame import FrameConvNet
from .gauge import Gauge
from .reference import Reference, WhiteNoise
from .settings import Settings
from .space import PixelSpace
from .spectral import NATURAL_EXPONENT, SpectralNoise
from .stationary import StationaryGaussian
from .support import Support

ReferenceKind = Literal["white", "spectral", "fitted", "fitted_spectral", "stationary"]


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of the classifier.

    Arguments:
        name: Any name of timm, passed through untouched.
        pretrained: Whether its weights are loaded.
        size: Height and width of an image, in pixels; its own size if absent.
        epochs: Passes over the data to train it first; 0 if it is trained already.
        generative: Weight of the generative loss beside the cross-entropy in them, which tells
            images apart within a batch as classes are told apart within an image.
        kwargs: Handed to `timm.create_model`, for example `num_classes`.
    """

    name: str
    pretrained: bool = True
    size: int | None = None
    epochs: int = 0
    generative: float = 0.0
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 0 or (self.size is not None and self.size < 1):
            raise ValueError(
                "ClassifierSettings: `epochs` must be 0 or more and `size` positive, "
                f"got {self.epochs} and {self.size}."
            )
        if not 0 <= self.generative < math.inf:
            raise ValueError(
                f"ClassifierSettings: `generative` must be 0 or more, got {self.generative}."
            )
        twice = {"name", "pretrained"} & set(self.kwargs)
        if twice:
            raise ValueError(
                f"ClassifierSettings: {sorted(twice)[0]!r} stands beside `kwargs`, not in it."
            )


@dataclass(frozen=True)
class DataSettings:
    """Settings of the data.

    Arguments:
        name: `mnist5k`, `digits8x8`, `patches`, `folder`, or a data set of timm such as
            `torch/cifar10`.
        root: Folder of the data, where it needs one.
        download: Whether timm may download it.
    """

    name: str
    root: str | None = None
    download: bool = False


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


@dataclass(frozen=True)
class EnergySettings:
    """Settings of the energy.

    Arguments:
        gauge: Common shift of the logits, `raw`, `log_softmax` or `centered`.
        gain: Gain on the logits.
        support: `unbounded`, or the box [0, 1] with `reflect` or `clamp` at its border.
    """

    gauge: Gauge = "raw"
    gain: float = 1.0
    support: Support = "unbounded"

    def __post_init__(self) -> None:
        if self.gain <= 0:
            raise ValueError(f"EnergySettings: `gain` must be positive, got {self.gain}.")


@dataclass(frozen=True)
class Recipe:
    """All that a run needs.

    Arguments:
        classifier: The classifier.
        data: The data.
        reference: The reference q.
        energy: The energy.
        finetune: The fine-tuning.
    """

    classifier: ClassifierSettings
    data: DataSettings
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    energy: EnergySettings = field(default_factory=EnergySettings)
    finetune: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        # What would otherwise be found only after the classifier was trained.
        settings, flat = self.finetune, self.energy.gauge == "log_softmax"
        if settings.chains.storage == "uint8" and self.energy.support == "unbounded":
            raise ValueError(
                "Recipe: `uint8` chains are clipped to [0, 1], the energy is unbounded. Use "
                "float16, or a support on the box."
            )
        if self.energy.support != "unbounded" and self.reference.kind not in ("white", "fitted"):
            raise ValueError(
                f"Recipe: support {self.energy.support!r} needs a reference that acts on each "
                f"pixel alone, got {self.reference.kind!r}. Use white or fitted, or unbounded."
            )
        if flat and (settings.objective.scores == "joint" or settings.learn_gain):
            raise ValueError(
                "Recipe: in the gauge log_softmax joint scores are 0, and the gain has no slope "
                "to learn by. Use the gauge raw."
            )

    def create(self) -> nn.Module:
        """Creates the classifier.

        Raises:
            UsageError: If timm does not know it or cannot load its weights.
        """
        settings = self.classifier
        return create_classifier(settings.name, pretrained=settings.pretrained, **settings.kwargs)

    def load(self, split: str, space: PixelSpace) -> Dataset:
        """Loads the data for a classifier's input space.

        Arguments:
            split: The part, `train` or `test`.
            space: The input space.

        Raises:
            UsageError: If the data are missing or cannot be read.
        """
        return load_data(
            self.data.name,
            split,
            size=space.size,
            channels=space.shape[0],
            root=self.data.root,
            download=self.data.download,
        )

    def convert(
        self, classifier: nn.Module, space: PixelSpace, dataset: Dataset
    ) -> ClassifierEnergy:
        """Converts the classifier with the reference and energy of this recipe.

        Arguments:
            classifier: The classifier.
            space: Its input space.
            dataset: The data that a fitted reference is fitted to.
        """
        if isinstance(classifier, FrameConvNet):
            classifier.fit(space(x.to(space.mean.device)) for x, _ in loader(dataset, AT_ONCE))
        energy = convert(
            classifier,
            reference=self.reference.build(space, dataset),
            space=space,
            gauge=self.energy.gauge,
            gain=self.energy.gain,
            support=self.energy.support,
        )
        energy.class_names = getattr(dataset, "class_names", None)
        return energy


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe: a path, or the bare name of one that is shipped.

    Arguments:
        name: A path, or a name such as `mnist5k`.

    Raises:
        UsageError: If there is no such file.
    """
    here = Path(__file__).parent
    shipped = [here / "recipes", here.parent / "recipes"]
    for path in (Path(name), *(folder / f"{name}.yaml" for folder in shipped)):
        if path.is_file():
            return path
    files = ((p, folder) for folder in shipped for p in folder.glob("**/*.yaml"))
    known = sorted({p.relative_to(folder).with_suffix("").as_posix() for p, folder in files})
    raise UsageError(f"{name}: no such recipe. Give a file, or one of {', '.join(known)}.")
