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
from .contrastive import Objective
from .data import Augment, gather
from .denoise import WarmStart
from .energy import ClassifierEnergy
from .guard import GuardSettings
from .langevin import Langevin
from .mixture import ClassMixture
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
    """

    kind: StartKind = "gaussian"
    rank: int = 32
    residual: bool = False
    modes: int = 1
    per_class: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in get_args(StartKind):
            raise ValueError(f"StartSettings: `kind` is {get_args(StartKind)}, got {self.kind!r}.")
        if self.rank < 0 or self.per_class < 1 or self.modes < 1:
            raise ValueError(
                "StartSettings: `rank` must be 0 or more, `modes` and `per_class` 1 or more."
            )

    def build(self, energy: ClassifierEnergy, dataset: Dataset, n_classes: int) -> Start:
        """Creates the start, fitted to a data set where it needs one."""
        if self.kind == "reference":
            return ReferenceStart(energy.reference)
        if self.kind == "uniform":
            return UniformStart(energy.reference.shape)
        x, y = gather(dataset, self.per_class)
        if self.kind == "data":
            return DataStart(x, y, n_classes)
        rank = min(self.rank, int(torch.bincount(y, minlength=n_classes).min()) - 1)
        options: dict[str, Any] = {"rank": max(rank, 0), "residual": self.residual}
        if self.modes > 1:
            return ClassMixture.fit(x, y, n_classes, modes=self.modes, **options)
        return ClassGaussian.fit(x, y, n_classes, **options)


@dataclass(frozen=True)
class ChainSettings:
    """Settings of the persistent chains.

    Arguments:
        per_class: Number of chains of a class.
        restart_rate: Probability that a drawn chain is begun anew; of two, those of the first
            and the last slot of a class.
        burn_in: Langevin steps that a new chain makes before it counts.
        storage: How chains are kept: `float32`, `float16`, or `uint8` on the box only.
    """

    per_class: int = 100
    restart_rate: Rates = 0.05
    burn_in: int = 10
    storage: Storage = "float32"


@dataclass(frozen=True)
class Settings:
    """Settings of a fine-tuning run.

    Arguments:
        updates: Number of updates, those of the warm start among them.
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
        sampler: How chains move in one update.
        start: Where chains begin.
        chains: How chains are remembered.
        objective: What is minimised.
        warm_start: A first stage, in which noisy images are denoised.
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
    sampler: Langevin = field(default_factory=lambda: Langevin(n_steps=5, step_size=0.1))
    start: StartSettings = field(default_factory=StartSettings)
    chains: ChainSettings = field(default_factory=ChainSettings)
    objective: Objective = field(default_factory=Objective)
    warm_start: WarmStart = field(default_factory=WarmStart)
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
        if self.batch_size > self.chains.per_class:
            raise ValueError(
                f"Settings: a batch may hold {self.batch_size} images of one class, but `chains` "
                f"keeps {self.chains.per_class} of each. Raise `per_class`."
            )
        self._check_warm_start()

    def _check_warm_start(self) -> None:
        if self.warm_start.updates >= self.updates:
            raise ValueError(
                f"Settings: {self.warm_start.updates} of {self.updates} updates are of the "
                "`warm_start`, which leaves none to learn from chains. Raise `updates`."
            )
        density = self.sampler.density
        if self.warm_start.updates and density.startswith("none"):
            raise ValueError(
                f"Settings: the `warm_start` learns the score of what chains sample ({density}). "
                "Give `sampler` a temperature above 0 and no `tilt_norm`, or set `updates` of "
                "`warm_start` to 0."
            )
