r"""Fine-tuning: Algorithm 1 of the paper, with persistent chains and the classifier kept.

Each update draws a batch of observed images, moves one chain of each of their classes by a few
Langevin steps with the parameters held, and descends

.. math:: L_{contrast}(f(x), f(\tilde x)) + w \, CE(f(\mathrm{augment}(x')), y')

with one forward of all images together. The weights that are kept are the exponential moving
average of those that moved.
"""

__all__ = ["Finetuner", "finetune"]

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset

from .chains import ChainStore
from .contrastive import Contrastive, Terms
from .data import Batches, check_labels, loader
from .energy import ClassifierEnergy
from .errors import UsageError
from .guard import Guard
from .pictures import grid
from .settings import Settings


class Finetuner:
    """Creates the loop's state: energy, optimiser, moving average, chains and generators.

    Arguments:
        energy: The energy; its classifier is trained in place.
        dataset: Pairs of an image in [0, 1] and a class index.
        settings: The settings.

    Raises:
        UsageError: If the data do not fit the classifier.
    """

    def __init__(
        self, energy: ClassifierEnergy, dataset: Dataset, settings: Settings | None = None
    ) -> None:
        self.settings = settings = settings or Settings()
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise UsageError("fine-tuning in several processes is not supported yet; start one.")
        self.device = self.accelerator.device
        self.dataset = dataset
        n_classes = check_labels(dataset, energy.n_classes)
        try:
            energy.space.check(dataset[0][0][None])
        except (TypeError, ValueError) as error:
            raise UsageError(f"data: {error}") from error
        self.generator = torch.Generator().manual_seed(settings.seed * 1009)
        start = settings.start.build(energy, dataset, n_classes)
        self.energy = energy.to(self.device)
        self.chains = ChainStore(
            energy.reference,
            start,
            n_classes,
            per_class=settings.chains.per_class,
            restart_rate=settings.chains.restart_rate,
            storage=settings.chains.storage,
            generator=self.generator,
        )
        self.gen = Contrastive(
            energy, settings.sampler, self.chains, settings.objective, generator=self.generator
        )
        optimizer, self.schedule = _optimizer(energy.classifier, settings)
        # Chains run through the classifier itself, the loss through what Accelerate made of it.
        self.wrapped, self.optimizer = self.accelerator.prepare(energy.classifier, optimizer)
        # With these numbers the decay begins near 0 and rises as n / (10 + n).
        self.ema = ModelEmaV3(
            energy.classifier,
            decay=settings.ema,
            use_warmup=True,
            warmup_gamma=10.0,
            warmup_power=1.0,
        )
        self.guard = Guard(settings.guard)
        self.update = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on; data order follows from `update`."""
        return {
            "update": self.update,
            "seconds": self.seconds,
            "rollbacks": self.guard.rollbacks,
            "classifier": self.energy.classifier.state_dict(),
            "average": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "chains": self.chains.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`, bit for bit.

        Arguments:
            state: The state, from a run of the same settings and data.
        """
        self.update, self.seconds = state["update"], state["seconds"]
        self.guard.rollbacks = state["rollbacks"]
        self.generator.set_state(state["generator"])
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.energy.classifier.load_state_dict(state["classifier"])
        self.ema.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.chains.load_state_dict(state["chains"])

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yields observed images and labels, then clean ones, from where the run stands."""
        seed = self.settings.seed
        sizes = (self.settings.batch_size, max(self.settings.clean_batch_size, 1))
        n = len(self.dataset)  # type: ignore[arg-type]
        loaders = [
            loader(self.dataset, Batches(n, size, seed=seed + 31 * part, position=self.update))
            for part, size in enumerate(sizes)
        ]
        for (x, y), (clean, labels) in zip(*loaders, strict=True):
            clean = self.settings.augment(clean, self.generator)
            yield tuple(t.to(self.device) for t in (x, y, clean, labels))  # type: ignore[misc]

    def step(self, x: Tensor, y: Tensor, clean: Tensor, labels: Tensor) -> Terms:
        """Makes one update.

        Arguments:
            x: Observed images, with shape (B, C, H, W).
            y: Their class indices, with shape (B).
            clean: Augmented images for the cross-entropy, with shape (M, C, H, W).
            labels: Their class indices, with shape (M).
        """
        weight = self.settings.objective.cross_entropy
        pair = (clean, labels) if weight and self.settings.clean_batch_size else None
        synthesized = self.gen.synthesize(y)
        terms = self.gen.terms(x, y, synthesized, pair, classify=self.wrapped)
        self.schedule.step_update(self.update)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.guard.rate
        self.optimizer.zero_grad()
        self.accelerator.backward(terms.contrast + weight * terms.cross_entropy)
        if self.settings.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.update += 1
        self.ema.update(self.energy.classifier, self.update)
        return terms

    def run(
        self,
        output: Path | None = None,
        *,
        callback: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """Runs to the end; the classifier then holds the averaged weights.

        Arguments:
            output: A folder for `metrics.jsonl` and pictures of the chains in `chains/`. `None`
                for neither.
            callback: Called with each line of the log.

        Raises:
            Diverged: If chains fall behind the data more often than the guard allows.
        """
        if output is not None:
            (output / "chains").mkdir(parents=True, exist_ok=True)
        classifier = self.energy.classifier
        if self.settings.channels_last:
            classifier.to(memory_format=torch.channels_last)
        try:
            self._loop(output, callback)
        finally:
            if self.settings.channels_last:
                classifier.to(memory_format=torch.contiguous_format)
        classifier.load_state_dict(self.ema.module.state_dict())

    def _loop(
        self, output: Path | None, callback: Callable[[dict[str, float]], None] | None
    ) -> None:
        settings = self.settings
        pending: list[Terms] = []
        self.guard.keep(self.update, self.state_dict())
        for batch in self.batches():
            begin = time.perf_counter()
            pending.append(self.step(*batch))
            self.seconds += time.perf_counter() - begin
            last = self.update >= settings.updates
            if self.update % settings.log_every == 0 or last:
                line = self._log(pending)
                pending = []
                self._watch(line)
                if output is not None:
                    with (output / "metrics.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                if callback is not None:
                    callback(line)
            drawn = settings.grid_every and (self.update % settings.grid_every == 0 or last)
            if output is not None and drawn and self.energy.reference.shape[0] in (1, 3):
                self.picture().save(output / "chains" / f"{self.update:06d}.png")
            if last:
                break

    def picture(self) -> Image.Image:
        """Returns a grid of the chains in the store, one row per class, at most ten of each."""
        n = min(8, self.chains.per_class)
        return grid(self.chains.pixels(range(min(10, self.chains.n_classes)), n), columns=n)

    def _watch(self, line: dict[str, float]) -> None:
        """Keeps a healthy state; leaves one that is off. Noise, data and schedule go on."""
        if self.guard.trips(line["mean_gap"], line["worst"]):
            self._restore(self.guard.roll_back(line))
        elif self.guard.wants(self.update):
            self.guard.keep(self.update, self.state_dict())

    def _log(self, pending: list[Terms]) -> dict[str, float]:
        """Brings the numbers of some updates to the host, once."""
        table = torch.stack(
            [
                torch.stack(
                    [t.contrast, t.cross_entropy, t.observed.mean(), t.synthesized.mean(), t.hits]
                ).detach()
                for t in pending
            ]
        ).tolist()
        contrast, entropy, observed, synthesized, hits = table[-1]
        line = {
            "update": self.update,
            "seconds": round(self.seconds, 2),
            "contrast": contrast,
            "cross_entropy": entropy,
            "observed": observed,
            "synthesized": synthesized,
            "gap": observed - synthesized,
            "accuracy": sum(row[4] for row in table) / len(table),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "mean_gap": sum(row[2] - row[3] for row in table) / len(table),
            "worst": max(abs(value) for row in table for value in row),
            "rollbacks": self.guard.rollbacks,
        }
        self.history.append(line)
        return line


def finetune(
    energy: ClassifierEnergy,
    dataset: Dataset,
    settings: Settings | None = None,
    *,
    output: Path | None = None,
) -> ClassifierEnergy:
    """Fine-tunes the classifier of an energy, in place, until its samples look like the data.

    Arguments:
        energy: The energy.
        dataset: Pairs of an image in [0, 1] and a class index.
        settings: The settings.
        output: A folder for the log and pictures. `None` for neither.

    Returns:
        The energy, with its `start` and `sampler` set to those of the run.

    Raises:
        UsageError: If the data do not fit the classifier.
        Diverged: If the run diverged.
    """
    Finetuner(energy, dataset, settings).run(output)
    return energy


def _optimizer(
    classifier: nn.Module, settings: Settings
) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Creates the optimiser, and its schedule counted in updates."""
    optimizer = create_optimizer_v2(
        classifier,
        opt=settings.optimizer,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=settings.schedule,
        num_epochs=settings.updates,
        warmup_epochs=min(settings.warmup, settings.updates // 2),
        warmup_lr=settings.learning_rate / 100,
        min_lr=settings.learning_rate / 50,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return optimizer, schedule
