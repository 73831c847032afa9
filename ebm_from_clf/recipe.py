"""A recipe: a YAML file whose keys are the fields of the objects themselves.

It says all that a run needs: classifier, data, reference, energy, and the settings of the
fine-tuning. Unknown keys and wrong types are refused by name. Every run writes the recipe it
resolved to beside its weights.
"""

__all__ = ["Recipe", "find_recipe"]

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from .batches import loader
from .convert import convert, create_classifier
from .data import AT_ONCE, load_data
from .energy import ClassifierEnergy
from .errors import UsageError
from .frame import FrameConvNet
from .gauge import Gauge
from .reference_settings import ReferenceSettings
from .settings import Settings
from .space import PixelSpace
from .support import Support


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
