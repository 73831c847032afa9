r"""How the energy is learned: observed against synthesized.

.. math::
    \frac{\partial}{\partial \theta} \frac{1}{n} \sum_i \log p_{y_i}(x_i)
    = \frac{\gamma}{n} \sum_i \partial_\theta f_{y_i}(x_i)
    - \gamma \, E_{p_y} [ \partial_\theta f_y(\tilde x) ]

(Xie et al., 2016). The expectation is estimated on synthesized images, chains of the present
model; nothing is differentiated through the chain. :class:`Contrastive` draws the chains for an
:class:`Objective` and adds to any training loop as `loss = cross_entropy(f(x), y) + gen(x, y)`.

Chains must be faster than what they learn from (Younes, 1999). A step e takes them along
:math:`e^2 / 2` of the drift: where that of a class is shorter than e_m, half of the median over
classes, the gradients of its scores are weighed by :math:`(e / e_m)^2`. Zero stays zero.
"""

__all__ = ["Contrastive", "Terms"]

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .chains import ChainStore
from .energy import ClassifierEnergy
from .gauge import check_classes
from .langevin import Langevin
from .lead import Lead
from .marginal import joint
from .objective import Generative, Objective, generative, weighed
from .slots import Draw
from .space import check_pixels
from .support import noisy
from .swift import is_on_torus
from .synthesis import Synthesized, Synthesizer


class Terms(NamedTuple):
    """The parts of one update.

    Arguments:
        contrast: The contrastive loss.
        cross_entropy: The cross-entropy on the clean images where the objective moved them to,
            0 without any.
        observed: The scores of the observed images, detached, with shape (N).
        synthesized: The scores of the synthesized images, detached, with shape (N).
        hits: The fraction of those images classified right.
    """

    contrast: Tensor
    cross_entropy: Tensor
    observed: Tensor
    synthesized: Tensor
    hits: Tensor


class Contrastive(nn.Module):
    """Creates the drop-in: a loss that makes a classifier generate, for any training loop.

    It sets the energy's `start` and `sampler`, so that `sample` draws as the chains were trained.

    Arguments:
        energy: The energy; its classifier is the one being trained.
        sampler: The Langevin sampler of the synthesized images.
        chains: The persistent chains.
        objective: The loss.
        generator: The generator of all its noise.
        max_stiffness: Largest stiffness of the chains' steps, two or more of them, which are
            shortened above it, and as long as `sampler` says at most. `None` for steps that stay.
        max_lead: How far the score of an image may be ahead of its chain's, in times the largest
            lead of a chain over its image, of late; beyond it the chain goes on from the image,
            see :mod:`ebm_from_clf.lead`. `None` for chains that never do.

    Raises:
        ValueError: If 8-bit chains are used for an energy that is not on the box, or joint
            scores in a gauge where they are 0, or the stiffness or lead is out of range.
    """

    def __init__(
        self,
        energy: ClassifierEnergy,
        sampler: Langevin,
        chains: ChainStore,
        objective: Objective | None = None,
        *,
        generator: torch.Generator | None = None,
        max_stiffness: float | None = 0.25,
        max_lead: float | None = 1.5,
    ) -> None:
        super().__init__()
        self.energy = energy
        self.chains = chains
        self.objective = objective or Objective()
        if self.objective.kind == "generative" and energy.n_classes == 1:
            raise ValueError(
                "Contrastive: the objective `generative` tells images of a class from those of "
                "others, and there is one class. Take `likelihood`."
            )
        is_joint = self.objective.scores == "joint"
        if is_joint and energy.gauge == "log_softmax":
            raise ValueError(
                "Contrastive: in the gauge log_softmax the joint score is 0. Use gauge='raw'."
            )
        self.generator = generator or torch.Generator().manual_seed(0)
        self.synthesizer = Synthesizer(
            energy,
            sampler,
            chains,
            self.generator,
            joint=is_joint,
            max_stiffness=max_stiffness,
        )
        self.lead = Lead(max_lead)

    @property
    def sampler(self) -> Langevin:
        """The sampler of the chains, with the steps that they make now."""
        return self.synthesizer.sampler

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch; moves and keeps the chains of its classes, if it has any.

        Arguments:
            x: Observed images, pixels in [0, 1], with shape (B, C, H, W).
            y: Their class indices, with shape (B).

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If a shape or the scale is wrong, or a class does not exist.
        """
        self.energy.space.check(x)
        check_pixels("Contrastive", x)
        check_classes(y, len(x), self.energy.n_classes)
        if y.is_floating_point():
            raise ValueError(
                f"Contrastive: `y` must hold one class index per image, got {y.dtype} of shape "
                f"{tuple(y.shape)}."
            )
        if not len(y):
            raise ValueError("Contrastive: the batch is empty. Give at least one image.")
        y = y.long()
        if self.objective.kind == "generative":
            return self.generative(x, y).loss
        synthesized = self.synthesize(y)
        terms = self.terms(x, y, synthesized.images)
        self.begin_at_data(x, synthesized.draw, terms)
        # A network that was astray once must not leave its chains behind.
        self.chains.begin_anew(synthesized.draw, ~terms.synthesized.isfinite())
        return terms.contrast

    def synthesize(self, y: Tensor) -> Synthesized:
        """Moves one chain of each class index in y, new ones first by their burn-in.

        Arguments:
            y: The class indices, with shape (B).
        """
        made = self.synthesizer
        # As they are now: each may have been replaced.
        made.energy, made.chains, made.generator = self.energy, self.chains, self.generator
        made.joint = self.objective.scores == "joint"
        return made(y)

    def generative(self, x: Tensor, y: Tensor, *, classify: nn.Module | None = None) -> Generative:
        """Returns the generative loss over the gain, which has no chains.

        Arguments:
            x: Observed images, pixels in [0, 1], with shape (B, C, H, W).
            y: Their class indices, with shape (B).
            classify: The network to differentiate, as for :meth:`terms`.
        """
        logits = self.energy.classify(self._changed(self._observe(x)), classify)
        found = generative(self.energy.tilts(logits), y)
        return found._replace(loss=found.loss / self.energy.gain)

    @torch.no_grad()
    def begin_at_data(self, x: Tensor, draw: Draw, terms: Terms) -> Tensor:
        """Lets chains go on from images that are far ahead of them; see :mod:`ebm_from_clf.lead`.

        Not if observed images are cut out of larger ones and chains are on the torus: the border
        of such an image would be a seam.

        Arguments:
            x: The observed images, with shape (B, C, H, W).
            draw: The chains that were drawn for them.
            terms: What :meth:`terms` gave of them.

        Returns:
            Which of them, a bool tensor of shape (B).
        """
        if self.lead.limit is None or is_on_torus(self.energy):
            return torch.zeros_like(draw.fresh)
        # A chain without a slot is forgotten anyway.
        ahead = self.lead(terms.observed - terms.synthesized) & (draw.slot >= 0)
        self.chains.begin_at(draw, ahead, self.energy.confine(self.energy.reference.encode(x)))
        return ahead

    def get_extra_state(self) -> dict[str, Any]:
        """Returns how long steps are and how far chains lead: they belong to the state."""
        return {"stride": self.synthesizer.stride.state_dict(), "lead": self.lead.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on with steps of that length and chains that lead so far.

        Arguments:
            state: The state.
        """
        self.synthesizer.stride.load_state_dict(state["stride"])
        self.lead.load_state_dict(state["lead"])
        self.synthesizer.follow()

    def worst(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Moves clean images to where their cross-entropy is largest, if the objective says so.

        Not in the forwards of the chains, which have other steps, and where the scores are joint
        another loss; but through the same network.

        Arguments:
            x: Clean images, pixels in [0, 1], with shape (M, C, H, W).
            y: Their class indices, with shape (M), which are returned as they are.
        """
        if self.objective.adversarial.radius:
            x = self.objective.adversarial(self.synthesizer.swift_energy(), x, y)
        return x, y

    def terms(
        self,
        x: Tensor,
        y: Tensor,
        synthesized: Tensor,
        clean: tuple[Tensor, Tensor] | None = None,
        *,
        classify: nn.Module | None = None,
    ) -> Terms:
        """Returns the parts of the loss, from one forward of all images together.

        Clean images of an adversarial cross-entropy cost `n_steps` passes more before it.

        Arguments:
            x: Observed images, pixels in [0, 1], with shape (B, C, H, W).
            y: Their class indices, with shape (B).
            synthesized: Synthesized images of the same classes, with the shape of x.
            clean: Images and labels for the cross-entropy, augmented as you like.
            classify: The network to differentiate, if it is a wrapper of the classifier (as
                `DistributedDataParallel` is). `None` for the classifier itself.
        """
        n = len(x)
        pair = self._changed(torch.cat([self._observe(x), synthesized]))
        clean = None if clean is None else self.worst(*clean)
        images = torch.cat([pair, *([] if clean is None else clean[:1])])
        logits = self.energy.classify(images, classify)
        observed, synthetic = self._scores(logits[: 2 * n], y.repeat(2)).split(n)
        cross_entropy, hits = logits.new_zeros(()), logits.new_zeros(())
        if clean is not None:
            cross_entropy, hits = self.objective.classification(logits[2 * n :], clean[1])
        pace = self.synthesizer.pace(y)
        if pace is not None and self.objective.scores == "class":
            observed, synthetic = (weighed(f, pace**2) for f in (observed, synthetic))
        contrast = self.objective(observed, synthetic)
        return Terms(contrast, cross_entropy, observed.detach(), synthetic.detach(), hits)

    def _scores(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns the scores of images from their logits, with shape (N)."""
        tilts, gain = self.energy.tilts(logits), self.energy.gain
        if self.objective.scores == "joint":
            return joint(tilts, gain)
        return tilts.gather(1, y[:, None])[:, 0] / gain

    def _observe(self, x: Tensor) -> Tensor:
        """Adds the data noise, within the support."""
        noise, energy = self.objective.data_noise, self.energy
        return noisy(x, noise, energy.reference, energy.support, self.generator)

    def _changed(self, x: Tensor) -> Tensor:
        """Shows images in one of the ways that the energy averages over, if it does."""
        if self.energy.smoothing is None:
            return x
        return replace(self.energy.smoothing, size=1.0).view(x, self.generator)(x)
