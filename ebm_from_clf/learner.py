r"""One update: Algorithm 1 of the paper, with the classifier kept.

.. math:: L = L_{contrast}(f(x), f(\tilde x)) + w \, CE(f(\mathrm{augment}(x')), y')

One chain of each observed class moves by a few Langevin steps with the parameters held; then one
forward of all images together is descended. An update of the warm start denoises images instead
and leaves the chains where they are, see :mod:`ebm_from_clf.denoise`; so does every update of the
generative loss, which has no use for them.
"""

__all__ = ["Learner"]

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contrastive import Contrastive, Terms
from .denoise import check_twice, warm_loss
from .descent import Descent
from .energy import ClassifierEnergy
from .errors import UsageError
from .precision import is_reduced, passes
from .settings import Settings
from .start import Start
from .synthesis import Synthesized

Pair = tuple[Tensor, Tensor]


class Contrasted(NamedTuple):
    """What an update with chains leaves behind.

    Arguments:
        terms: The parts of its loss.
        synthesized: Its chains.
        ahead: Which of them go on from the image of their place, with shape (B).
        gradient: The norm of the gradient.
    """

    terms: Terms
    synthesized: Synthesized
    ahead: Tensor
    gradient: Tensor


class Chainless(NamedTuple):
    """What an update without chains leaves behind: scalars, detached."""

    loss: Tensor
    cross_entropy: Tensor
    hits: Tensor
    gradient: Tensor


class Learner:
    """Creates what an update changes: the classifier, its optimiser and the chains.

    Arguments:
        energy: The energy; its classifier is trained in place.
        start: Where chains begin.
        settings: The settings.
        generator: The generator of all its noise.
        n_classes: The number of classes.
        file: The file of mapped chains; `None` for a temporary one.

    Raises:
        UsageError: If mapped chains do not fit the disk, the classifier has no such part to
            freeze, or a warm start is asked for that it cannot make.
    """

    def __init__(
        self,
        energy: ClassifierEnergy,
        start: Start,
        settings: Settings,
        generator: torch.Generator,
        n_classes: int,
        file: Path | None,
    ) -> None:
        self.settings, self.generator = settings, generator
        self.descent = Descent(energy.classifier, settings)
        self.device = self.descent.device
        self.energy = energy.to(self.device)
        self.reduced: bool | None = None  # not known before the first update
        if settings.warm_start.updates:
            check_twice(energy.classifier, energy.space)
        if settings.learn_gain and energy.gauge == "log_softmax":
            raise UsageError(
                "learn_gain: in the gauge log_softmax the gap is not the slope of the likelihood "
                "in the gain. Use gauge='raw' or 'centered'."
            )
        self.chains = settings.chains.build(energy.reference, start, n_classes, file)
        self.gen = Contrastive(
            energy,
            settings.sampler,
            self.chains,
            settings.objective,
            generator=generator,
            max_stiffness=settings.curriculum.max_stiffness,
            max_lead=settings.chains.max_lead,
        )

    def contrast(
        self, x: Tensor, y: Tensor, clean: Pair | None, at: int, rate: float
    ) -> Contrasted:
        """Makes an update with chains: observed images against synthesized ones.

        Arguments:
            x: Observed images, with shape (B, C, H, W).
            y: Their class indices, with shape (B).
            clean: Augmented images for the cross-entropy and their class indices.
            at: The number of updates made before.
            rate: A factor on the learning rate.
        """
        with self.descent.held():
            with self._passes():
                synthesized = self.gen.synthesize(y)
                terms = self.gen.terms(
                    x, y, synthesized.images, clean, classify=self.descent.wrapped
                )
            loss = terms.contrast + self.settings.objective.cross_entropy * terms.cross_entropy
            gradient = self.descent.step(loss, at, rate)
        ahead = self.gen.begin_at_data(x, synthesized.draw, terms)
        return Contrasted(terms, synthesized, ahead, gradient)

    def denoise(self, x: Tensor, y: Tensor, clean: Pair | None, at: int, rate: float) -> Chainless:
        """Makes an update of the warm start; arguments as for :meth:`contrast`."""
        settings, joint = self.settings, self.settings.objective.scores == "joint"
        chosen = (settings.warm_start, settings.sampler)

        def loss() -> tuple[Tensor, float]:
            return warm_loss(self.energy, x, y, *chosen, joint=joint, generator=self.generator)

        return self._without_chains(loss, clean, at, rate)

    def generative(
        self, x: Tensor, y: Tensor, clean: Pair | None, at: int, rate: float
    ) -> Chainless:
        """Makes an update of the generative loss; arguments as for :meth:`contrast`."""

        def loss() -> tuple[Tensor, float]:
            return self.gen.generative(x, y, classify=self.descent.wrapped).loss, 1.0

        return self._without_chains(loss, clean, at, rate)

    def _without_chains(
        self, make: Callable[[], tuple[Tensor, float]], clean: Pair | None, at: int, rate: float
    ) -> Chainless:
        """Descends a loss, so many times, and the cross-entropy of clean images."""
        objective = self.settings.objective
        with self.descent.held():
            with self._passes():
                loss, weight = make()
                cross_entropy, hits = loss.new_zeros(()), loss.new_zeros(())
                if clean is not None:
                    images, labels = self.gen.worst(*clean)
                    logits = self.energy.classify(images, self.descent.wrapped)
                    cross_entropy, hits = objective.classification(logits, labels)
            total = weight * loss + objective.cross_entropy * cross_entropy
            gradient = self.descent.step(total, at, rate)
        return Chainless(loss.detach(), cross_entropy.detach(), hits, gradient)

    def _passes(self) -> AbstractContextManager[None]:
        if self.reduced is None:
            swift = self.gen.synthesizer.swift_energy()
            self.reduced = is_reduced(self.settings.precision, swift)
        return passes(self.reduced, self.energy)

    def state_dict(self) -> dict[str, Any]:
        """Returns what learning changes."""
        return {
            "descent": self.descent.state_dict(),
            "chains": self.chains.state_dict(),
            "gain": self.energy.gain,
            "gen": self.gen.get_extra_state(),
            "reduced": self.reduced,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave.

        Arguments:
            state: The state.
        """
        self.descent.load_state_dict(state["descent"])
        self.chains.load_state_dict(state["chains"])
        self.energy.gain = state["gain"]
        self.gen.set_extra_state(state["gen"])
        self.reduced = state["reduced"]
