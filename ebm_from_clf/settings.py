"""Settings of a fine-tuning run; a recipe's `finetune` section has exactly these fields."""

__all__ = ["ChainSettings", "Settings", "StartSettings"]

import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch.utils.data import Dataset

from .chains import Rates, Storage
from .curriculum import Curriculum
from .data import Augment, gather
from .energy import ClassifierEnergy
from .guard import GuardSettings
from .langevin import Langevin
from .mixture import ClassMixture
from .objective import Objective
from .start import ClassGaussian, DataStart, ReferenceStart, Start, UniformStart

StartKind = Literal["gaussian", "reference", "uniform", "data"]
Schedule = Literal["cosine", "tanh", "constant"]


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
        rank = min(self.rank, int(torch.bincount(y, minlength=n_classes).min()) - 1)
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
        burn_in: Langevin steps that a new chain makes before it counts.
        storage: How chains are kept: `float32`, `float16`, or `uint8` on the box only.
        mapped: Whether chains lie in a file of the run's folder instead of in memory, for many
            classes of large images. A run that goes back or is resumed begins those chains anew
            that were written since.
    """

    per_class: int = 100
    restart_rate: Rates = 0.05
    burn_in: int = 10
    storage: Storage = "float32"
    mapped: bool = False

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(
                f"ChainSettings: `per_class` must be 1 or more, got {self.per_class}."
            )


@dataclass(frozen=True)
class Settings:
    """Settings of a fine-tuning run.

    Arguments:
        updates: Number of updates.
        batch_size: Observed images of an update, and as many synthesized ones.
        clean_batch_size: Augmented images for the cross-entropy of an update.
        optimizer: Name of an optimiser of timm.
        learning_rate: Learning rate at its highest.
        betas: Momentum of the gradient and of its square.
        weight_decay: Weight decay.
        schedule: What the learning rate does after the warm-up, by timm.
        warmup: Updates over which the learning rate rises.
        clip_grad: Largest norm of the gradient, none if absent.
        ema: Decay of the moving average of the weights that are kept.
        learn_gain: How fast the gain is learned: the change of its logarithm for a gap of one
            logit, at each line of the log; 0 for a gain that stays.
        freeze: Parts of the classifier whose weights do not learn, by names or patterns such as
            `conv1`, `layer[12]` or `*.bias`; `body` is all but the last layer.
        sampler: How chains move in one update.
        curriculum: How the number of their steps follows what they reach.
        start: Where chains begin.
        chains: How chains are remembered.
        objective: What is minimised.
        augment: How images for the cross-entropy are augmented.
        channels_last: Whether the network runs in the channels-last memory format meanwhile.
        guard: When a run goes back to a state that was good.
        log_every: Updates between two lines of the log.
        grid_every: Updates between two pictures of the chains, 0 for none.
        checkpoint_every: Updates between two states on disk to resume from, 0 for none; written
            with the next line of the log.
        seed: Seed of every random choice.
    """

    updates: int = 500
    batch_size: int = 64
    clean_batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    warmup: int = 20
    clip_grad: float | None = None
    ema: float = 0.995
    learn_gain: float = 0.0
    freeze: tuple[str, ...] | str = ()
    sampler: Langevin = field(default_factory=lambda: Langevin(n_steps=5, step_size=0.1))
    curriculum: Curriculum = field(default_factory=Curriculum)
    start: StartSettings = field(default_factory=StartSettings)
    chains: ChainSettings = field(default_factory=ChainSettings)
    objective: Objective = field(default_factory=Objective)
    augment: Augment = field(default_factory=Augment)
    channels_last: bool = False
    guard: GuardSettings = field(default_factory=GuardSettings)
    log_every: int = 10
    grid_every: int = 100
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Settings: `{name}` must be 1 or more.")
        for name in (
            "seed",
            "clean_batch_size",
            "warmup",
            "grid_every",
            "checkpoint_every",
            "weight_decay",
            "learn_gain",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"Settings: `{name}` must be 0 or more.")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError("Settings: `clip_grad` must be positive.")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.ema < 1:
            raise ValueError("Settings: `learning_rate` must be positive and `ema` below 1.")
        # A wrong name would otherwise be found only after the classifier was trained.
        try:
            create_optimizer_v2(
                [torch.zeros(1, requires_grad=True)],
                opt=self.optimizer,
                lr=self.learning_rate,
                weight_decay=self.weight_decay,
                betas=self.betas,
            )
        except Exception as error:  # whatever an optimiser of timm raises
            known = [str(name) for name in list_optimizers()]
            near = ", ".join(get_close_matches(self.optimizer, known, 3))
            raise ValueError(
                f"Settings: timm cannot make the optimizer {self.optimizer!r} "
                f"({str(error)[:80]}). {f'Near it: {near}.' if near else 'Try adamw.'}"
            ) from error
        if self.schedule not in get_args(Schedule):
            raise ValueError(
                f"Settings: `schedule` is {get_args(Schedule)}, got {self.schedule!r}."
            )
        if self.sampler.n_steps < 1:
            raise ValueError("Settings: `sampler` must make 1 step or more in an update.")
