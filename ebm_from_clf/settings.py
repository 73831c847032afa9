"""Settings of a fine-tuning run; a recipe's `finetune` section has exactly these fields."""

__all__ = ["Settings"]

import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, get_args

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn

from .chain_settings import ChainSettings, StartSettings
from .curriculum import Curriculum
from .data import Augment
from .denoise import WarmStart
from .fault import GuardSettings
from .langevin import Langevin
from .muon import Muon
from .objective import Objective
from .precision import Precision

Schedule = Literal["cosine", "tanh", "constant"]


@dataclass(frozen=True)
class Settings:
    """Settings of a fine-tuning run.

    Arguments:
        updates: Number of updates, those of the warm start among them.
        batch_size: Observed images of an update, and as many synthesized ones.
        clean_batch_size: Augmented images for the cross-entropy of an update.
        optimizer: Name of an optimiser of timm; `muon` is that of :mod:`ebm_from_clf.muon`, which
            computes in float32.
        learning_rate: Learning rate at its highest.
        betas: Momentum of the gradient and of its square; with `muon`, of what is no matrix.
        weight_decay: Weight decay.
        schedule: What the learning rate does after the warm-up, by timm.
        warmup: Updates over which the learning rate rises.
        clip_grad: Largest norm of the gradient, none if absent.
        ema: Largest decay of the moving average of the weights that are kept; it rises as t /
            (3 + t) at update t, so that below it about a third of the run is averaged.
        learn_gain: How fast the gain is learned: the change of its logarithm for a gap of one
            logit, at each line of the log, at most .1; 0 for a gain that stays.
        freeze: Parts of the classifier whose weights do not learn, by names or patterns with
            commas between, such as `conv1,layer[12]`; `body` is all but the last layer.
        sampler: How chains move in one update; its step is the longest that they take.
        curriculum: How the number and the length of their steps follow what they reach.
        start: Where chains begin.
        chains: How chains are remembered.
        objective: What is minimised.
        warm_start: A first stage, in which noisy images are denoised.
        augment: How images for the cross-entropy are augmented.
        channels_last: Whether the network runs in the channels-last memory format meanwhile.
        precision: In which precision it runs: `float32`, `bfloat16`, or `auto`, bfloat16 where
            that is faster by a fifth; see :mod:`ebm_from_clf.precision`.
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
    ema: float = 0.999
    learn_gain: float = 0.0
    freeze: tuple[str, ...] | str = ()
    sampler: Langevin = field(default_factory=lambda: Langevin(n_steps=5, step_size=0.1))
    curriculum: Curriculum = field(default_factory=Curriculum)
    start: StartSettings = field(default_factory=StartSettings)
    chains: ChainSettings = field(default_factory=ChainSettings)
    objective: Objective = field(default_factory=Objective)
    warm_start: WarmStart = field(default_factory=WarmStart)
    augment: Augment = field(default_factory=Augment)
    channels_last: bool = False
    precision: Precision = "float32"
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
            if not getattr(self, name) >= 0:
                raise ValueError(f"Settings: `{name}` must be 0 or more.")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError("Settings: `clip_grad` must be positive.")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.ema < 1:
            raise ValueError("Settings: `learning_rate` must be positive and `ema` below 1.")
        for name, words in (("schedule", get_args(Schedule)), ("precision", get_args(Precision))):
            if getattr(self, name) not in words:
                raise ValueError(f"Settings: `{name}` is {words}, got {getattr(self, name)!r}.")
        self._check_optimizer()
        self._check_steps()
        self._check_warm_start()

    def create_optimizer(self, classifier: nn.Module) -> torch.optim.Optimizer:
        """Creates the optimiser; what timm and the classifier say does not decay, does not.

        Arguments:
            classifier: The classifier.
        """
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer.lower() == "muon":
            held = getattr(classifier, "no_weight_decay", set[str])()
            groups = param_groups_weight_decay(classifier, decay, no_weight_decay_list=held)
            return Muon(groups, rate, betas=self.betas, weight_decay=decay)
        return create_optimizer_v2(
            classifier, opt=self.optimizer, lr=rate, weight_decay=decay, betas=self.betas
        )

    def _check_optimizer(self) -> None:
        # A wrong name would otherwise be found only after the classifier was trained.
        try:
            self.create_optimizer(nn.LayerNorm(1))  # made without drawing
        except Exception as error:  # whatever an optimiser of timm raises
            known = [str(name) for name in list_optimizers()]
            near = ", ".join(get_close_matches(self.optimizer, known, 3))
            raise ValueError(
                f"Settings: timm cannot make the optimizer {self.optimizer!r} "
                f"({str(error)[:80]}). {f'Near it: {near}.' if near else 'Try adamw.'}"
            ) from error

    def _check_steps(self) -> None:
        if self.sampler.n_steps < 1:
            raise ValueError("Settings: `sampler` must make 1 step or more in an update.")
        if self.learn_gain and self.sampler.tilt_norm is not None:
            raise ValueError(
                "Settings: with a `tilt_norm` chains do not feel the gain, so there is none to "
                "learn. Set `learn_gain` to 0."
            )
        if self.batch_size == 1 and self.objective.kind == "generative":
            raise ValueError(
                "Settings: the objective `generative` finds an image among those of a batch, of "
                "which there must be 2 or more. Raise `batch_size`."
            )
        if self.learn_gain and self.objective.kind == "generative":
            raise ValueError(
                "Settings: the gain is learned from chains, of which the objective `generative` "
                "has none. Set `learn_gain` to 0."
            )
        curriculum = self.curriculum
        if curriculum.auc < 1 and not curriculum.fewest <= self.sampler.n_steps <= curriculum.most:
            raise ValueError(
                f"Settings: `sampler` begins with {self.sampler.n_steps} steps, the `curriculum` "
                f"goes from {curriculum.fewest} to {curriculum.most}."
            )

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
