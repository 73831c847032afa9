"""Settings of the chains of a fine-tuning run: where they begin, and how they are remembered."""

__all__ = ["ChainSettings", "StartSettings"]

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils.data import Dataset

from .chains import ChainStore, Storage
from .data import gather
from .energy import ClassifierEnergy
from .errors import UsageError
from .folders import mappable
from .lead import Lead
from .machine import free_memory
from .mixture import ClassMixture
from .reference import Reference
from .restart import Rates, rates
from .start import ClassGaussian, DataStart, ReferenceStart, Start, UniformStart

StartKind = Literal["gaussian", "reference", "uniform", "data"]
COPIES = 4  # the store, two copies to go back to, and the next one while it is made


@dataclass(frozen=True)
class StartSettings:
    """Settings of where chains begin.

    Arguments:
        kind: `gaussian` per class, `reference`, `uniform` noise, or `data`.
        rank: Principal components of each class that the Gaussian keeps; 0 for mean and
            standard deviation alone.
        residual: Whether the Gaussian adds the remaining variance as pixel noise.
        modes: Gaussians of each class, at most; see :class:`ClassMixture`.
        per_class: At most so many images of a class are used for the fit.
        size: Longest side, in pixels, at which data are read and the Gaussians kept; starts are
            enlarged to the full size when drawn. Full size throughout if absent. Numbers held
            are classes x (rank + 2) x pixels of that size, and to fit, classes x per_class x
            pixels.
    """

    kind: StartKind = "gaussian"
    rank: int = 32
    residual: bool = False
    modes: int = 1
    per_class: int = 1000
    size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(StartKind):
            raise ValueError(f"StartSettings: `kind` is {get_args(StartKind)}, got {self.kind!r}.")
        if self.rank < 0 or self.per_class < 1 or self.modes < 1:
            raise ValueError(
                "StartSettings: `rank` must be 0 or more, `modes` and `per_class` 1 or more."
            )
        if self.size is not None and self.size < 1:
            raise ValueError(f"StartSettings: `size` must be 1 or more, got {self.size}.")

    def build(self, energy: ClassifierEnergy, dataset: Dataset, n_classes: int) -> Start:
        """Creates the start, fitted to a data set where it needs one."""
        if self.kind == "reference":
            return ReferenceStart(energy.reference)
        if self.kind == "uniform":
            return UniformStart(energy.reference.shape)
        _, height, width = energy.reference.shape
        size, longest = (height, width), max(height, width)
        shrink = min(1.0, (self.size or longest) / longest)
        low = (max(round(height * shrink), 1), max(round(width * shrink), 1))
        x, y = gather(dataset, self.per_class, low)
        if self.kind == "data":
            return DataStart(x, y, n_classes, size=size)
        fewest = int(torch.bincount(y, minlength=n_classes).min())
        rank = min(self.rank, fewest - 1, x[0].numel())
        options: dict[str, Any] = {"rank": max(rank, 0), "residual": self.residual, "size": size}
        if self.modes > 1:
            return ClassMixture.fit(x, y, n_classes, modes=self.modes, **options)
        return ClassGaussian.fit(x, y, n_classes, **options)


@dataclass(frozen=True)
class ChainSettings:
    """Settings of the persistent chains.

    With a `restart_rate` of 1 no chain goes on, and each makes `burn_in` and then the sampler's
    `n_steps` steps from its start: short-run learning (Nijkamp et al., 2019,
    https://arxiv.org/abs/1904.09770). If it also starts at `data` and `burn_in` is 0, that is
    contrastive divergence with k = `n_steps` (Hinton, 2002), from other images of the class than
    those observed in the update.

    Arguments:
        per_class: Number of chains of a class.
        restart_rate: Probability that a drawn chain is begun anew; of two, those of the first
            and the last slot of a class.
        burn_in: Langevin steps that a new chain makes before it counts; more of them in a class
            whose steps are less than half as long as those of most.
        storage: How chains are kept: `float32`, `float16`, or `uint8` on the box only.
        mapped: Whether chains lie in a file of the run's folder instead of in memory, for many
            classes of large images. A run that goes back or is resumed begins those chains anew
            that were written since.
        max_lead: How far the score of an image may be ahead of its chain's, in times the largest
            lead of a chain over its image, of late; beyond it the chain goes on from the image.
            `null` for chains that never do.
    """

    per_class: int = 100
    restart_rate: Rates = 0.05
    burn_in: int = 10
    storage: Storage = "float32"
    mapped: bool = False
    max_lead: float | None = 1.5

    def __post_init__(self) -> None:
        if self.per_class < 1 or self.burn_in < 0:
            raise ValueError(
                "ChainSettings: `per_class` must be 1 or more, `burn_in` 0 or more, got "
                f"{self.per_class} and {self.burn_in}."
            )
        rates(self.restart_rate, 1)
        Lead(self.max_lead)  # checks it

    def build(
        self, reference: Reference, start: Start, n_classes: int, file: Path | None
    ) -> ChainStore:
        """Creates the store of a run, in memory or in a file.

        Arguments:
            reference: The reference whose whitened coordinates the chains live in.
            start: Where a chain begins.
            n_classes: The number of classes.
            file: Where mapped chains lie; `None` for a nameless temporary file.

        Raises:
            UsageError: If mapped chains do not fit the disk, or others the memory.
        """
        options: dict[str, Any] = asdict(self)
        options.pop("max_lead")  # of the loss: it has the scores
        if not options.pop("mapped"):
            self.check_memory(n_classes, reference.shape, reference.mean.device)
            return ChainStore(reference, start, n_classes, **options)
        with self.room(n_classes, reference.shape, file) as place:
            return ChainStore(reference, start, n_classes, **options, file=place)

    def room(
        self, n_classes: int, shape: torch.Size, file: Path | None
    ) -> AbstractContextManager[str]:
        """Gives the file of mapped chains, if the disk has room for it.

        Arguments:
            n_classes: The number of classes.
            shape: The shape (C, H, W) of an image.
            file: The file; `None` for a nameless temporary one.

        Raises:
            UsageError: If it has not.
        """
        return mappable(file, self._bytes(n_classes, shape))

    def check_memory(self, n_classes: int, shape: torch.Size, device: torch.device) -> None:
        """Checks that half of the free memory holds chains that are not mapped, and their copies.

        The other half is for the network and its work.

        Arguments:
            n_classes: The number of classes.
            shape: The shape (C, H, W) of an image.
            device: Where they are kept.

        Raises:
            UsageError: If there is not.
        """
        needed, room = COPIES * self._bytes(n_classes, shape), free_memory(device) / 2
        if self.mapped or needed <= room:
            return
        fit = int(self.per_class * room / needed)
        raise UsageError(
            f"chains: {n_classes} x {self.per_class} of them, with the copies that a run goes "
            f"back to, take {needed / 1e9:.1f} GB of memory, half of what is free is "
            f"{room / 1e9:.1f}. Keep at most {fit} of a class (finetune.chains.per_class), or all "
            "of them in a file (finetune.chains.mapped: true)."
        )

    def _bytes(self, n_classes: int, shape: torch.Size) -> int:
        value = getattr(torch, self.storage).itemsize
        return n_classes * self.per_class * (8 + shape.numel() * value)
