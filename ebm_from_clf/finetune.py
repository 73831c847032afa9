r"""Fine-tuning: updates of Algorithm 1 of the paper, watched over.

Each update contrasts observed images with persistent chains of their classes (see
:mod:`ebm_from_clf.learner`). Some of them make a line of the log, which the guard looks at:
healthy states are kept, and returned to when chains or weights go astray. The weights that are
kept in the end are the moving average of those on the way.
"""

__all__ = ["Finetuner", "finetune"]

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .batches import pairs
from .energy import ClassifierEnergy
from .errors import Diverged, UsageError
from .fault import find_fault
from .folders import new_folder
from .guard import Guard
from .journal import Journal
from .labels import check_labels
from .learner import Learner, Pair
from .settings import Settings
from .space import check_pixels
from .trail import CHAINS, Trail


class Finetuner:
    """Creates the loop's state: energy, optimiser, moving average, chains and generators.

    Arguments:
        energy: The energy; its classifier is trained in place.
        dataset: Pairs of an image in [0, 1] and a class index.
        settings: The settings.
        folder: The folder for the file of mapped chains; `None` for a temporary file.

    Attributes:
        notes: What its owner wants to be kept with the state.

    Raises:
        UsageError: If the data do not fit the classifier, mapped chains the disk, it has no such
            part to freeze, or a warm start is asked for that it cannot make.
    """

    def __init__(
        self,
        energy: ClassifierEnergy,
        dataset: Dataset,
        settings: Settings | None = None,
        folder: Path | None = None,
    ) -> None:
        self.settings = settings = settings or Settings()
        self.dataset = dataset
        n_classes = check_labels(dataset, energy.n_classes)
        try:
            energy.space.check(dataset[0][0][None])
            check_pixels("data", dataset[0][0])
        except (TypeError, ValueError) as error:
            raise UsageError(f"the data: {error}") from error
        self.generator = torch.Generator().manual_seed(settings.seed * 1009)
        start = settings.start.build(energy, dataset, n_classes)
        file = None if folder is None else folder / CHAINS
        self.learner = Learner(energy, start, settings, self.generator, n_classes, file)
        self.energy, self.chains = energy, self.learner.chains
        self.gen, self.descent = self.learner.gen, self.learner.descent
        # Without a box there is no border to stick to.
        free = replace(settings.guard, max_saturated=1.0)
        self.guard = Guard(free if energy.support == "unbounded" else settings.guard)
        self.notes: dict[str, Any] = {}
        self.update = 0
        self.seconds = 0.0
        self.journal = Journal(n_classes)
        self.n_steps = settings.sampler.n_steps

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on; data order follows from `update`."""
        return {
            "notes": self.notes,
            "update": self.update,
            "seconds": self.seconds,
            "guard": self.guard.state_dict(),
            "journal": self.journal.state_dict(),
            "n_steps": self.n_steps,
            "generator": self.generator.get_state(),
            **self.learner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`, bit for bit.

        Arguments:
            state: The state, from a run of the same settings and data.
        """
        self.notes, self.update, self.seconds = state["notes"], state["update"], state["seconds"]
        self.guard.load_state_dict(state["guard"])
        self.journal.load_state_dict(state["journal"])
        self.generator.set_state(state["generator"])
        self.n_steps = state["n_steps"]
        self.learner.load_state_dict(state)
        self._make_steps()

    def batches(self) -> Iterator[list[Tensor]]:
        """Yields observed images and labels, then clean ones, from where the run stands."""
        sizes = (self.settings.batch_size, max(self.settings.clean_batch_size, 1))
        for (x, y), (clean, labels) in pairs(
            self.dataset, sizes, seed=self.settings.seed, position=self.update
        ):
            clean = self.settings.augment(clean, self.generator)
            yield [t.to(self.learner.device) for t in (x, y, clean, labels)]

    def step(self, x: Tensor, y: Tensor, clean: Tensor, labels: Tensor) -> None:
        """Makes one update and notes it in the journal.

        Arguments:
            x: Observed images, with shape (B, C, H, W).
            y: Their class indices, with shape (B).
            clean: Augmented images for the cross-entropy, with shape (M, C, H, W).
            labels: Their class indices, with shape (M).
        """
        weight = self.settings.objective.cross_entropy
        pair = (clean, labels) if weight and self.settings.clean_batch_size else None
        if self._is_chainless(self.update):
            warm = self.update < self.settings.warm_start.updates
            learn = self.learner.denoise if warm else self.learner.generative
            self.journal.add_chainless(*learn(x, y, pair, self.update, self.guard.rate))
        else:
            self._contrast(x, y, pair)
        self.update += 1

    def _is_chainless(self, update: int) -> bool:
        """Tells whether an update, counted from 0, has no chains."""
        generative = self.settings.objective.kind == "generative"
        return generative or update < self.settings.warm_start.updates

    def _contrast(self, x: Tensor, y: Tensor, clean: Pair | None) -> None:
        """Makes an update with chains, and begins anew those that it lost."""
        self._make_steps()
        done = self.learner.contrast(x, y, clean, self.update, self.guard.rate)
        lost = self.guard.lost(done.terms.observed, done.terms.synthesized)
        self.chains.begin_anew(done.synthesized.draw, lost)
        ahead = done.ahead & ~lost
        self.journal.add(x, done.terms, done.synthesized, lost, ahead, done.gradient)

    def run(
        self,
        output: Path | None = None,
        *,
        callback: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """Runs to the end; the classifier then holds the averaged weights.

        Arguments:
            output: A folder for the log `metrics.jsonl`, pictures of the chains in `chains/`,
                and the state to resume from in `state.safetensors`. `None` for none of them.
            callback: Called with each line of the log.

        Raises:
            Diverged: If chains fall behind the data more often than the guard allows.
        """
        trail = Trail(output, self.settings.checkpoint_every, self.update, self.journal)
        classifier = self.energy.classifier
        if self.settings.channels_last:
            classifier.to(memory_format=torch.channels_last)
        try:
            self._loop(trail, callback)
        finally:
            if self.settings.channels_last:
                classifier.to(memory_format=torch.contiguous_format)
        self.descent.finish()

    def _loop(self, trail: Trail, callback: Callable[[dict[str, float]], None] | None) -> None:
        begin = time.perf_counter() - self.seconds
        if self.guard.is_empty:
            self.guard.keep(self.update, self.learner.state_dict())
        if not self.update:
            trail.keep(0, self.state_dict)
        batches = self.batches()
        while self.update < self.settings.updates:
            self.step(*next(batches))
            self.seconds = time.perf_counter() - begin
            is_line = self._due(self.settings.log_every)
            if is_line:
                line = self._line()
                trail.log()
                self._watch(line)
            if self._due(self.settings.grid_every) and not self._is_chainless(self.update - 1):
                trail.draw(self.update, self.chains)
            if is_line:
                trail.keep(self.update, self.state_dict)
                if callback is not None:
                    callback(line)

    def _line(self) -> dict[str, Any]:
        """Makes the next line of the log."""
        make: Callable[..., dict[str, Any]] = self.journal.line
        if self._is_chainless(self.update - 1):
            warm = self.update <= self.settings.warm_start.updates
            make = partial(self.journal.chainless_line, "warm_start" if warm else "generative")
        return make(
            update=self.update,
            seconds=round(self.seconds, 2),
            learning_rate=self.descent.rate,
            rollbacks=self.guard.rollbacks,
            n_steps=self.gen.sampler.n_steps,
            step_size=self.gen.sampler.step_size,
            shortest_step=self.gen.sampler.step_size * min(self.gen.sampler.step_factors or (1,)),
            gain=self.energy.gain,
        )

    def _due(self, every: int) -> bool:
        """Tells whether something is due that is done every so often, and at a stage's end."""
        ends = (self.settings.warm_start.updates, self.settings.updates)
        return every > 0 and (self.update % every == 0 or self.update in ends)

    def _watch(self, line: dict[str, float]) -> None:
        """Keeps a healthy state, mends one that is off. Noise, data and schedule go on."""
        fault = find_fault(line, self.guard.settings)
        if fault is None:
            if "auc" in line:  # not without chains
                # Observed minus synthesized scores: the gradient of the likelihood in the gain.
                change = self.settings.learn_gain * line["mean_gap"]
                self.energy.gain *= math.exp(min(max(change, -0.1), 0.1))
                self.n_steps = self.settings.curriculum.steps(self.n_steps, line["auc"])
            self.guard.settle(self.update)
            warm = 0 < self.update == self.settings.warm_start.updates
            if warm or self.guard.wants(self.update):
                # What the warm start has learned it does not learn again.
                self.guard.keep(self.update, self.learner.state_dict(), alone=warm)
        else:
            state = self.guard.act(fault, line)
            if state is None:
                self.chains.begin_all_anew(fault.classes)
                self.journal.forget(fault.classes)
            else:
                self.learner.load_state_dict(state)
                self.journal.forget(None)
                if self.update >= self.settings.updates and not self.guard.actions[-1]["back_to"]:
                    raise Diverged(f"fine-tuning ended where it began: {fault.text}.")
        self._make_steps()

    def _make_steps(self) -> None:
        grown = self.settings.curriculum.grown(self.update / self.settings.updates)
        n_steps = max(round(self.n_steps * grown * self.guard.steps), 1)
        shorter, limit = self.guard.step_size, self.settings.curriculum.max_stiffness
        if limit is not None:
            # Or else steps would grow to what they were.
            self.gen.synthesizer.stride.max_stiffness = limit * shorter**2
        self.gen.synthesizer.make_steps(n_steps, self.settings.sampler.step_size * shorter)


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
        output: A folder for log, pictures and state; see :meth:`Finetuner.run`. It must not
            exist, or be empty.

    Returns:
        The energy, with its `start` and `sampler` set to those of the run.

    Raises:
        UsageError: If the data do not fit the classifier, it has no such part to freeze, or the
            folder is taken.
        Diverged: If the run diverged.
    """
    folder = None if output is None else new_folder(output)
    try:
        Finetuner(energy, dataset, settings, folder).run(folder)
    finally:
        if folder is not None:
            (folder / CHAINS).unlink(missing_ok=True)
    return energy
