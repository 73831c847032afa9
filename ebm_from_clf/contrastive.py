r"""How the energy is learned: observed against synthesized.

.. math::
    \frac{\partial}{\partial \theta} \frac{1}{n} \sum_i \log p_{y_i}(x_i)
    = \frac{\gamma}{n} \sum_i \partial_\theta f_{y_i}(x_i)
    - \gamma \, E_{p_y} [ \partial_\theta f_y(\tilde x) ]

(Xie et al., 2016). The expectation is estimated on synthesized images, chains of the present
model; nothing is differentiated through the chain. The losses below are functions of the scores
F / gain on both sides and are to be minimised; they own nothing. :class:`Contrastive` draws the
chains for one and adds to any training loop as `loss = cross_entropy(f(x), y) + gen(x, y)`.
"""

__all__ = [
    "Contrastive",
    "Objective",
    "Synthesized",
    "Terms",
    "likelihood",
    "logistic",
    "trim",
]

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .chains import ChainStore, Draw
from .energy import ClassifierEnergy
from .langevin import Langevin
from .marginal import Marginal, joint
from .noise import normal
from .space import check_pixels
from .swift import Swift


def likelihood(observed: Tensor, synthesized: Tensor) -> Tensor:
    """Returns the loss whose gradient is minus that of the log-likelihood, over the gain.

    Arguments:
        observed: The scores of observed images, with shape (N).
        synthesized: The scores of synthesized images, with shape (M).
    """
    return synthesized.mean() - observed.mean()


def logistic(observed: Tensor, synthesized: Tensor) -> Tensor:
    r"""Returns the logistic loss of telling observed from synthesized by the score.

    Its gradient is that of :func:`likelihood` with weights :math:`1 - \sigma(f)` on observed and
    :math:`\sigma(f)` on synthesized images, so that neither side can run away (Yin et al., 2020,
    Learning Energy-Based Models With Adversarial Training, https://arxiv.org/abs/2012.06568).

    Arguments:
        observed: The scores of observed images, with shape (N).
        synthesized: The scores of synthesized images, with shape (M).
    """
    return functional.softplus(-observed).mean() + functional.softplus(synthesized).mean()


def trim(synthesized: Tensor, fraction: float) -> Tensor:
    """Leaves out the synthesized images of the lowest scores: chains that got lost.

    Arguments:
        synthesized: The scores, with shape (M).
        fraction: The fraction left out, rounded down to whole images.
    """
    lost = int(fraction * len(synthesized))
    return synthesized.topk(len(synthesized) - lost, sorted=False).values if lost else synthesized


@dataclass(frozen=True)
class Objective:
    """Settings of the contrastive loss.

    Arguments:
        kind: Which loss, `likelihood` or `logistic`.
        trim: Fraction of synthesized images left out, those of the lowest scores.
        square: Weight of the mean squared score on both sides, which keeps scores bounded.
        scores: Whether chains and scores are those of a class, or of all of them together as in
            JEM; see :class:`Marginal`. Samples of a class are drawn from its own energy all the
            same, which joint learning shapes through the cross-entropy alone.
        data_noise: Standard deviation of the noise on observed images, in pixels.
        cross_entropy: Weight of the cross-entropy on clean images.
        label_smoothing: Label smoothing of the cross-entropy.
    """

    kind: Literal["likelihood", "logistic"] = "likelihood"
    trim: float = 0.0
    square: float = 0.0
    scores: Literal["class", "joint"] = "class"
    data_noise: float = 0.005
    cross_entropy: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kind", "scores"):
            words = get_args(Objective.__annotations__[name])
            if getattr(self, name) not in words:
                raise ValueError(f"Objective: `{name}` is {words}, got {getattr(self, name)!r}.")
        if not 0 <= self.trim < 1:
            raise ValueError(f"Objective: `trim` is a fraction below 1, got {self.trim}.")
        for name in ("square", "data_noise", "cross_entropy", "label_smoothing"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Objective: `{name}` must be 0 or more.")

    def __call__(self, observed: Tensor, synthesized: Tensor) -> Tensor:
        """Returns the contrastive loss of scores with shapes (N) and (M)."""
        contrast = likelihood if self.kind == "likelihood" else logistic
        loss = contrast(observed, trim(synthesized, self.trim))
        if self.square:
            loss = loss + self.square * (observed.square().mean() + synthesized.square().mean())
        return loss

    def classification(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cross-entropy of clean images, and the fraction classified right.

        Arguments:
            logits: The logits, with shape (M, K).
            labels: The class indices, with shape (M).
        """
        smoothing = self.label_smoothing
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss, (logits.argmax(1) == labels).float().mean()


class Terms(NamedTuple):
    """The parts of one update.

    Arguments:
        contrast: The contrastive loss.
        cross_entropy: The cross-entropy on the clean images, 0 without any.
        observed: The scores of the observed images, detached, with shape (N).
        synthesized: The scores of the synthesized images, detached, with shape (N).
        hits: The fraction of clean images classified right.
    """

    contrast: Tensor
    cross_entropy: Tensor
    observed: Tensor
    synthesized: Tensor
    hits: Tensor


class Synthesized(NamedTuple):
    """Chains of a batch after their steps.

    Arguments:
        images: Their pixels, with shape (B, C, H, W).
        draw: Where they came from in the store.
        moved: The distance of their last steps per root of a dimension, in standard deviations
            of the reference, with shape (B).
    """

    images: Tensor
    draw: Draw
    moved: Tensor


class Contrastive(nn.Module):
    """Creates the drop-in: a loss that makes a classifier generate, for any training loop.

    It sets the energy's `start` and `sampler`, so that `sample` draws as the chains were trained.

    Arguments:
        energy: The energy; its classifier is the one being trained.
        sampler: The Langevin sampler of the synthesized images.
        chains: The persistent chains.
        objective: The loss.
        generator: The generator of all its noise.

    Raises:
        ValueError: If 8-bit chains are used for an energy that is not on the box, or joint
            scores in a gauge where they are 0.
    """

    def __init__(
        self,
        energy: ClassifierEnergy,
        sampler: Langevin,
        chains: ChainStore,
        objective: Objective | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.energy = energy
        self.sampler = sampler
        self.chains = chains
        self.objective = objective or Objective()
        if self.objective.scores == "joint" and energy.gauge == "log_softmax":
            raise ValueError(
                "Contrastive: in the gauge log_softmax the joint score is 0. Use gauge='raw'."
            )
        self.generator = generator or torch.Generator().manual_seed(0)
        self._swift: Swift | None = None
        if chains.storage == "uint8" and energy.support == "unbounded":
            raise ValueError(
                "Contrastive: `uint8` chains are clipped to [0, 1], the energy is unbounded. "
                "Use storage='float16', or a support on the box."
            )
        # A fresh chain is as long as those in the middle of the store.
        n_steps = chains.burn_in + round(sampler.n_steps * chains.lifetime)
        energy.coarse = None
        energy.start, energy.sampler = chains.start, replace(sampler, n_steps=n_steps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the contrastive loss of a batch; moves and keeps the chains of its classes.

        Arguments:
            x: Observed images, pixels in [0, 1], with shape (B, C, H, W).
            y: Their class indices, with shape (B).

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If a shape or the scale is wrong, or a class does not exist.
        """
        self.energy.space.check(x)
        check_pixels("Contrastive", x)
        self.energy.check_classes(y, len(x))
        return self.terms(x, y, self.synthesize(y).images).contrast

    def synthesize(self, y: Tensor) -> Synthesized:
        """Moves one chain of each class index in y, new ones first by their burn-in.

        Arguments:
            y: The class indices, with shape (B).
        """
        draw = self.chains.draw(y, generator=self.generator)
        u, fresh = draw.u, draw.fresh
        energy = self._chain_energy()
        if self.chains.burn_in and fresh.any():
            first = replace(self.sampler, n_steps=self.chains.burn_in)
            u[fresh], _ = first(energy, u[fresh], y[fresh], generator=self.generator)
        before = u
        u, _ = self.sampler(energy, u, y, generator=self.generator)
        self.chains.write(draw, u)
        moved = (u - before).flatten(1).square().mean(1).sqrt()
        return Synthesized(self.energy.reference.decode(u), draw, moved)

    def _chain_energy(self) -> nn.Module:
        """Returns the energy that chains descend."""
        if self._swift is None or not self._swift.serves(self.energy):
            self._swift = Swift(self.energy)
        energy = self._swift.energy()
        return Marginal(energy) if self.objective.scores == "joint" else energy

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

        Arguments:
            x: Observed images, pixels in [0, 1], with shape (B, C, H, W).
            y: Their class indices, with shape (B).
            synthesized: Synthesized images of the same classes, with the shape of x.
            clean: Images and labels for the cross-entropy, augmented as you like.
            classify: The network to differentiate, if it is a wrapper of the classifier (as
                `DistributedDataParallel` is). `None` for the classifier itself.
        """
        n = len(x)
        pair = torch.cat([self._observe(x), synthesized])
        if self.energy.smoothing is not None:
            whole = replace(self.energy.smoothing, size=1.0)
            pair = whole.view(pair, self.generator)(pair)
        images = torch.cat([pair, *([] if clean is None else clean[:1])])
        logits = self.energy.classify(images, classify)
        observed, synthetic = self._scores(logits[: 2 * n], y.repeat(2)).split(n)
        cross_entropy, hits = logits.new_zeros(()), logits.new_zeros(())
        if clean is not None:
            cross_entropy, hits = self.objective.classification(logits[2 * n :], clean[1])
        contrast = self.objective(observed, synthetic)
        return Terms(contrast, cross_entropy, observed.detach(), synthetic.detach(), hits)

    def _scores(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns the scores of images from their logits, with shape (N)."""
        tilts, gain = self.energy.tilts(logits), self.energy.gain
        if self.objective.scores == "joint":
            return joint(tilts, gain)
        return tilts.gather(1, y[:, None])[:, 0] / gain

    def _observe(self, x: Tensor) -> Tensor:
        """Adds the data noise, within the support.

        Chains cannot leave the support. If observed images could, the score would learn to tell
        the two apart by that alone, and its gradient would have no end.
        """
        x = x + self.objective.data_noise * normal(x, self.generator)
        if self.energy.support == "unbounded":
            return x
        reference = self.energy.reference
        return reference.decode(self.energy.confine(reference.encode(x)))
