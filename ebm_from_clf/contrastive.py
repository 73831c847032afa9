r"""How the energy is learned: observed against synthesized.

.. math::
    \frac{\partial}{\partial \theta} \frac{1}{n} \sum_i \log p_{y_i}(x_i)
    = \frac{\gamma}{n} \sum_i \partial_\theta f_{y_i}(x_i)
    - \gamma \, E_{p_y} [ \partial_\theta f_y(\tilde x) ]

(Xie et al., 2016). The expectation is estimated on synthesized images, chains of the present
model; nothing is differentiated through the chain. :class:`Contrastive` draws the chains for an
:class:`Objective` and adds to any training loop as `loss = cross_entropy(f(x), y) + gen(x, y)`.
"""

__all__ = ["Contrastive", "Synthesized", "Terms"]

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .chains import ChainStore, Draw
from .energy import ClassifierEnergy
from .langevin import Langevin, Trace
from .marginal import Marginal, joint
from .noise import normal
from .objective import Objective
from .replay import Recorder
from .space import check_pixels
from .stride import Stride
from .swift import Swift, for_chains


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


class Synthesized(NamedTuple):
    """Chains of a batch after their steps.

    Arguments:
        images: Their pixels, with shape (B, C, H, W).
        draw: Where they came from in the store.
        moved: The distance of their last steps per root of a dimension, in standard deviations
            of the reference, with shape (B).
        stiffness: The mean stiffness of their steps, with shape (B); see
            :mod:`ebm_from_clf.stride`. NaN where it is not known, as after a single step.
    """

    images: Tensor
    draw: Draw
    moved: Tensor
    stiffness: Tensor


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

    Raises:
        ValueError: If 8-bit chains are used for an energy that is not on the box, or joint
            scores in a gauge where they are 0, or the stiffness is out of range.
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
        self._recorder = Recorder()
        if chains.storage == "uint8" and energy.support == "unbounded":
            raise ValueError(
                "Contrastive: `uint8` chains are clipped to [0, 1], the energy is unbounded. "
                "Use storage='float16', or a support on the box."
            )
        energy.coarse, energy.start = None, chains.start
        self.stride = Stride(max_stiffness)
        self._made: Langevin | None = None
        self.make_steps(sampler.n_steps, sampler.step_size)

    def make_steps(self, n_steps: int, step_size: float) -> None:
        """Sets the Langevin steps of an update, and with them the length of fresh chains.

        Arguments:
            n_steps: The number of steps.
            step_size: Their longest step e.
        """
        self._longest = step_size
        found = replace(self.sampler, n_steps=n_steps, step_size=step_size * self.stride.factor)
        if found == self._made:
            return  # the length of fresh chains is read from the device
        self.sampler = self._made = found
        # A fresh chain is as long as those of the store are in the end, on average.
        length = self.chains.burn_in + round(n_steps * self.chains.lifetime)
        self.energy.sampler = replace(self.sampler, n_steps=length)

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
        u, trace = self.sampler(energy, u, y, generator=self.generator)
        self.chains.write(draw, u)
        moved = (u - before).flatten(1).square().mean(1).sqrt()
        stiffness = self._stiffness(trace)
        if self.stride.note(stiffness):
            self.make_steps(self.sampler.n_steps, self._longest)
        return Synthesized(self.energy.reference.decode(u), draw, moved, stiffness)

    def _stiffness(self, trace: Trace) -> Tensor:
        """Returns the stiffness of chains, with shape (B), NaN where it is not known."""
        found = self.sampler.step_size**2 / 4 * trace.curvature.nanmean(0)
        # Drifts of a fixed norm fall for no reason of the energy, random ones by chance.
        known = self.sampler.tilt_norm is None and self.energy.smoothing is None
        return torch.where(found.isfinite() & known, found, math.nan)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns how long steps are, which belongs to the state of the module."""
        return self.stride.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes on with steps of that length.

        Arguments:
            state: The state.
        """
        self.stride.load_state_dict(state)
        self.make_steps(self.sampler.n_steps, self._longest)

    def _chain_energy(self) -> nn.Module:
        """Returns the energy that chains descend."""
        energy = for_chains(self._swift_energy())
        found = Marginal(energy) if self.objective.scores == "joint" else energy
        if energy.smoothing is not None:
            return found  # every pass draws other changes
        return self._recorder.of(found, (energy.gain, energy.gauge))

    def _swift_energy(self) -> ClassifierEnergy:
        """Returns the energy of single classes at the least cost of a pass."""
        if self._swift is None or not self._swift.serves(self.energy):
            self._swift = Swift(self.energy)
        return self._swift.energy()

    def worst(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Moves clean images to where their cross-entropy is largest, if the objective says so.

        Not in the forwards of the chains, which have other steps, and where the scores are joint
        another loss; but through the same network.

        Arguments:
            x: Clean images, pixels in [0, 1], with shape (M, C, H, W).
            y: Their class indices, with shape (M), which are returned as they are.
        """
        if self.objective.adversarial.radius:
            x = self.objective.adversarial(self._swift_energy(), x, y)
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
        pair = torch.cat([self._observe(x), synthesized])
        if self.energy.smoothing is not None:
            whole = replace(self.energy.smoothing, size=1.0)
            pair = whole.view(pair, self.generator)(pair)
        clean = None if clean is None else self.worst(*clean)
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
