r"""Chains of a batch: what Algorithm 1 of the paper synthesizes at each update.

.. math:: u' = u + \frac{e^2}{2} (B(u) - u) + e \sqrt{T} z

One chain of each observed class is taken from the store, moved by a few such steps at the least
cost of a pass, and put back. Steps are as long as the energy lets them be, see
:mod:`ebm_from_clf.stride`.

A new chain makes b steps first, the burn-in. Where the steps e of a class are shorter than
:math:`e_m`, half of the median over classes, it makes :math:`b \, e_m / e`, at most 5 b: with b of
its own it would be a negative that can never be good enough, so that the energy gets steeper and
steps shorter.
"""

__all__ = ["Synthesized", "Synthesizer"]

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .chains import ChainStore
from .drift import Trace
from .energy import ClassifierEnergy
from .langevin import Langevin
from .marginal import Marginal
from .replay import Recorder
from .slots import Draw
from .stride import Stride
from .swift import Swift, for_chains

# A burn-in is so much longer, and a pace so much slower, at most.
FARTHEST = 5.0


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


class Synthesizer:
    """Creates what moves the chains of a batch; it sets the energy's `start` and `sampler`.

    Arguments:
        energy: The energy.
        sampler: The Langevin sampler, with the longest step, and the factors that the steps of
            each class begin with, if it has any.
        chains: The persistent chains.
        generator: The generator of all noise.
        joint: Whether chains are of all classes together.
        max_stiffness: Largest stiffness of steps; `None` for steps that stay.

    Attributes:
        sampler: The sampler as it is now.
        stride: The lengths of its steps, one of each class.

    Raises:
        ValueError: If 8-bit chains are used for an energy that is not on the box, or the
            stiffness is out of range.
    """

    def __init__(
        self,
        energy: ClassifierEnergy,
        sampler: Langevin,
        chains: ChainStore,
        generator: torch.Generator,
        *,
        joint: bool,
        max_stiffness: float | None,
    ) -> None:
        if chains.storage == "uint8" and energy.support == "unbounded":
            raise ValueError(
                "Contrastive: `uint8` chains are clipped to [0, 1], the energy is unbounded. "
                "Use storage='float16', or a support on the box."
            )
        self.energy, self.sampler, self.chains = energy, sampler, chains
        self.generator, self.joint = generator, joint
        n_classes = self._n_lengths()
        sampler.check_factors(n_classes)
        self.stride = Stride(max_stiffness, n_classes)
        if sampler.step_factors is not None:
            self.stride.factors = torch.tensor(sampler.step_factors, dtype=torch.float64)
        self._swift: Swift | None = None
        self._recorder = Recorder()
        self._made: Langevin | None = None
        energy.coarse, energy.start = None, chains.start
        self.make_steps(sampler.n_steps, sampler.step_size)

    def make_steps(self, n_steps: int, step_size: float) -> None:
        """Sets the Langevin steps of an update, and with them the length of fresh chains.

        Arguments:
            n_steps: The number of steps.
            step_size: Their longest step e.
        """
        self._longest = step_size
        factors = self.stride.factors
        top = float(factors.max())
        alike = bool((factors == top).all())
        found = replace(
            self.sampler,
            n_steps=n_steps,
            step_size=step_size * top,
            step_factors=None if alike else tuple((factors / top).tolist()),
        )
        if found == self._made:
            return  # the length of fresh chains is read from the device
        self.sampler = self._made = found
        # A fresh chain is as long as those of the store are in the end, on average. With momentum
        # it takes fewer steps, since its velocity is not drawn anew after each update.
        burnt_in = replace(self.sampler, n_steps=self.chains.burn_in).time
        age = burnt_in + self.sampler.time * self.chains.lifetime
        self.energy.sampler = self.sampler.lasting(age)

    def follow(self) -> None:
        """Makes the steps of each class as long as the stride says now."""
        self.make_steps(self.sampler.n_steps, self._longest)

    def _n_lengths(self) -> int:
        """Returns how many lengths steps have; chains of all classes together have one density."""
        return 1 if self.joint else self.energy.n_classes or self.chains.n_classes

    def __call__(self, y: Tensor) -> Synthesized:
        """Moves one chain of each class index in y, new ones first by their burn-in.

        Arguments:
            y: The class indices, with shape (B).
        """
        if len(self.stride.factors) != self._n_lengths():  # a part was replaced
            self.stride = Stride(self.stride.max_stiffness, self._n_lengths())
            self.follow()
        draw = self.chains.draw(y, generator=self.generator)
        u, fresh = draw.u, draw.fresh
        energy = self.chain_energy()
        if self.chains.burn_in and fresh.any():
            u[fresh] = self._burnt_in(energy, u[fresh], y[fresh])
        before = u
        u, trace = self.sampler(energy, u, y, generator=self.generator)
        self.chains.write(draw, u)
        moved = (u - before).flatten(1).square().mean(1).sqrt()
        stiffness = self._stiffness(trace, y)
        if self.stride.note(stiffness, 0 * y if self.joint else y, self._longest):
            self.follow()
        return Synthesized(self.energy.reference.decode(u), draw, moved, stiffness)

    def pace(self, y: Tensor) -> Tensor | None:
        """Returns how long steps are beside half of the median over classes, with shape (B).

        From a fifth to 1; `None` if they are all of one length. Classes that were never drawn
        have the steps of the steepest.

        Arguments:
            y: The class indices, with shape (B).
        """
        factors = torch.tensor(self.sampler.step_factors or (1.0,))
        if len(factors) != self._n_lengths() or len(factors) == 1:
            return None
        found = (2 * factors / factors.quantile(0.5)).clamp(1 / FARTHEST, 1)
        return found.to(y.device, non_blocking=True)[y.long()]

    def _burnt_in(self, energy: nn.Module, u: Tensor, y: Tensor) -> Tensor:
        """Returns new chains after their burn-in, with the shape of u.

        Where classes make unlike numbers of steps, velocities are drawn anew at each of these.
        """
        pace, n = self.pace(y), self.chains.burn_in
        if pace is None:
            return replace(self.sampler, n_steps=n)(energy, u, y, generator=self.generator)[0]
        n_steps, done = (n / pace).round().long(), 0
        for n in n_steps.unique().tolist():
            rest = n_steps >= n
            first = replace(self.sampler, n_steps=n - done)
            u[rest], _ = first(energy, u[rest], y[rest], generator=self.generator)
            done = n
        return u

    def _stiffness(self, trace: Trace, y: Tensor) -> Tensor:
        """Returns the stiffness of chains, with shape (B), NaN where it is not known."""
        found = self.sampler.lengths(y) ** 2 / 4 * trace.curvature.nanmean(0)
        # Drifts of a fixed norm fall for no reason of the energy, random ones by chance.
        known = self.sampler.tilt_norm is None and self.energy.smoothing is None
        return torch.where(found.isfinite() & known, found, math.nan)

    def chain_energy(self) -> nn.Module:
        """Returns the energy that chains descend."""
        energy = for_chains(self.swift_energy())
        found = Marginal(energy) if self.joint else energy
        if energy.smoothing is not None:
            return found  # every pass draws other changes
        return self._recorder.of(found, (energy.gain, energy.gauge, energy.precision, self.joint))

    def swift_energy(self) -> ClassifierEnergy:
        """Returns the energy of single classes at the least cost of a pass."""
        if self._swift is None or not self._swift.serves(self.energy):
            self._swift, self._recorder = Swift(self.energy), Recorder()
        return self._swift.energy()
