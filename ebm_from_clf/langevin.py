r"""Unadjusted Langevin dynamics in whitened coordinates, with momentum or without.

.. math:: u' = u - \frac{e^2}{2} \nabla U(u, y) + e v, \qquad
    v = c \Bigl(\frac{u - u_-}{e} - \frac{e}{2} \nabla U(u, y)\Bigr) + \sqrt{(1 - c^2) T} \, z,
    \qquad z \sim \mathcal{N}(0, I)

Without momentum, c = 0, the velocity v is :math:`\sqrt{T} z`. With it the chain keeps a part c of
the velocity with which it came from :math:`u_-`: a leapfrog step whose velocity is partly drawn
anew (kinetic, or underdamped, Langevin dynamics). It gets as far in (1 - c) / (1 + c) of the
steps, with the same stationary law wherever F is linear. The first velocity of a call is drawn; a
wall stops or turns it as it does the chain.

With :math:`U = |u|^2/2 - F` and :math:`a = 1 - e^2/2` this is :math:`u' = a u + (1 - a) B + e
\sqrt{T} z`. The step e has no unit: it is in standard deviations of the reference, whatever the
reference is, and :math:`2 / e^2` steps forget the start. A chain at temperature T samples
:math:`\exp(-U / T)`; T = 1 is the model itself. Where F is linear the stationary variance of the
plain chain is :math:`T / (1 - e^2/4)`; the variance-corrected one scales the noise by
:math:`\sqrt{1 - e^2/4}` and has exactly T.

A sampler knows no classifier: it calls `energy(u, y)`, reads y where classes have steps of their
own, and where there are such methods `energy.confine(u)` and `energy.realise(u, generator)`, the
energy of one step of a random score.
"""

__all__ = ["Langevin"]

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .drift import Energy, Trace, confined, curvature, energy_and_score, rescale, sampling
from .noise import Randomness, normal


@dataclass(frozen=True)
class Langevin:
    r"""Settings of a Langevin sampler.

    References:
        | A Theory of Generative ConvNet (Xie et al., 2016), https://arxiv.org/abs/1602.03264
        | Exponential convergence of Langevin distributions (Roberts and Tweedie, 1996)
        | A generalized guided Monte Carlo algorithm (Horowitz, 1991), without its rejections

    Arguments:
        n_steps: Number of steps.
        step_size: Step e, in standard deviations of the reference; stable below 2.
        temperature: Temperature T; 1 samples the model, 0 descends the energy.
        variance_corrected: Whether the noise is scaled so that the variance is exact wherever
            the scores are linear.
        tilt_norm: If given, B is rescaled to this norm per square root of a dimension. A trust
            region for classifiers that were never trained to generate; no density then.
        step_factors: Factor on the step of each class, above 0 and at most 1. `None` for steps of
            one length.
        momentum: Part c of its velocity that a chain keeps from step to step, below 1.
    """

    n_steps: int = 20
    step_size: float = 0.3
    temperature: float = 1.0
    variance_corrected: bool = False
    tilt_norm: float | None = None
    step_factors: tuple[float, ...] | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.n_steps, int) or self.n_steps < 0:
            raise ValueError(f"Langevin: `n_steps` is an int of 0 or more, got {self.n_steps!r}.")
        if not 0 < self.step_size < 2:
            raise ValueError(
                f"Langevin: `step_size` must be between 0 and 2, where the chain is stable, "
                f"got {self.step_size}. It is in standard deviations of the reference."
            )
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"Langevin: `temperature` must be 0 or more, got {self.temperature}.")
        if self.tilt_norm is not None and not self.tilt_norm > 0:
            raise ValueError(f"Langevin: `tilt_norm` must be positive, got {self.tilt_norm}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"Langevin: `momentum` must be 0 or more, below 1, got {self.momentum}."
            )
        factors = self.step_factors
        if factors is not None and not (factors and all(0 < f <= 1 for f in factors)):
            raise ValueError(
                "Langevin: `step_factors` must be above 0 and at most 1, one a class."
            )

    @classmethod
    def ascent(cls, n_steps: int = 60) -> "Langevin":
        """Returns a sampler for classifiers that were never trained to generate.

        Each step goes as far, whatever the norm of the gradient, so that nothing depends on the
        scale of the logits, and no gain is needed. There is no noise and no density: images are
        examples of what the classifier looks for, not draws of p.

        Arguments:
            n_steps: Number of steps.
        """
        return cls(n_steps, step_size=0.08, temperature=0.0, tilt_norm=5.0)

    @property
    def density(self) -> str:
        """What the chains sample, in words."""
        if self.tilt_norm is not None:
            return "none: the norm of the drift is fixed"
        if self.temperature == 0:
            return "none: the energy is descended"
        return "p" if self.temperature == 1 else f"p at the temperature {self.temperature:g}"

    @property
    def time(self) -> float:
        """How far a constant drift of 1 moves chains in all steps."""
        return self._time(self.n_steps)

    def _time(self, n: float) -> float:
        """Returns how far a constant drift of 1 moves chains in n steps."""
        c = self.momentum
        return self.step_size**2 / 2 * (n + 2 * c / (1 - c) * (n - (1 - c**n) / (1 - c)))

    def lasting(self, time: float) -> "Langevin":
        """Returns the sampler with as many steps in one call as take a time.

        Arguments:
            time: The time, see :attr:`time`.
        """
        most = range(math.ceil(2 * time / self.step_size**2) + 1)
        n_steps = bisect_right(most, time, key=lambda n: self._time(n + 0.5))
        return replace(self, n_steps=n_steps)

    def equivalent(self, gain: float) -> dict[str, float | None]:
        r"""Returns the T = 1 model that the chains sample.

        Of the scale of A, the gain and T only two are independent: :math:`\exp(-U/T)` is the
        model with :math:`\sqrt{T} A` for A and :math:`\gamma / T` for the gain.

        Arguments:
            gain: The gain of the energy. At T = 0 there is no such model, and it is `None`.
        """
        t = self.temperature
        return {"gain": gain / t if t else None, "scale_factor": math.sqrt(t)}

    def check_factors(self, n_classes: int | None) -> None:
        """Checks that there is a factor on the step of each class, if there are any.

        Arguments:
            n_classes: The number of classes, 1 for all together; `None` where it is not known.

        Raises:
            ValueError: If there are more or fewer.
        """
        n = len(self.step_factors or ())
        if n and n_classes not in (n, None):
            raise ValueError(
                f"Langevin: {n} `step_factors` for steps of {n_classes} lengths. Give as many, "
                "or None."
            )

    def lengths(self, y: Tensor) -> Tensor | float:
        """Returns the step of each chain, with shape (B), or the one of all.

        Arguments:
            y: Class indices, with shape (B), or weights of classes, with shape (B, K): a chain
                takes the shortest step of the classes whose weight is not 0.
        """
        if self.step_factors is None:
            return self.step_size
        factors = torch.tensor(self.step_factors).to(y.device, non_blocking=True)
        found = factors[y.long()] if y.ndim == 1 else torch.where(y != 0, factors, 1.0).amin(1)
        return self.step_size * found

    def step(
        self, energy: Energy, u: Tensor, y: Tensor, *, generator: Randomness
    ) -> tuple[Tensor, Trace]:
        """Takes one step, with a velocity drawn anew: momentum is that of the steps of one call.

        Arguments:
            energy: The energy U(u, y), in nats, with shape (B).
            u: The state, with shape (B, *).
            y: The class indices, with shape (B).
            generator: One generator, or one per chain.

        Returns:
            The next state, and the energy and score norm of this one; the curvature needs two
            steps, and is NaN.
        """
        drift, value, norm = self._drift(energy, u, y, generator)
        trace = Trace(value, norm, torch.full_like(norm, math.nan))
        moved, _ = self._move(energy, u, None, drift, self._shaped(u, y), generator)
        return moved, trace

    def noise_std(self, e: Tensor | float) -> Tensor | float:
        """Returns the standard deviation of the noise of a step, in u.

        Arguments:
            e: The length of the step.
        """
        corrected = 1 - e**2 / 4 if self.variance_corrected else 1.0
        return e * (self.temperature * corrected) ** 0.5

    def _shaped(self, u: Tensor, y: Tensor) -> Tensor | float:
        """Returns the step of each chain, with as many axes as u."""
        e = self.lengths(y)
        return e.to(u).view(-1, *[1] * (u.ndim - 1)) if isinstance(e, Tensor) else e

    def _move(
        self,
        energy: Energy,
        u: Tensor,
        way: Tensor | None,
        drift: Tensor,
        e: Tensor | float,
        generator: Randomness,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the next state and, with momentum, the way on: e times the velocity."""
        c, shift = self.momentum, e**2 / 2 * drift
        cold = self.temperature == 0
        noise = torch.zeros_like(u) if cold else self.noise_std(e) * normal(u, generator)
        if way is not None:
            noise = c * (way + shift) + (1 - c**2) ** 0.5 * noise
        u = u + shift + noise
        if c:
            return confined(energy, u, shift + noise)
        confine = getattr(energy, "confine", None)
        return (u if confine is None else confine(u)), None

    def _drift(
        self, energy: Energy, u: Tensor, y: Tensor, generator: Randomness
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the drift B - u as it is used, the energy, and the norm of the score."""
        realise = getattr(energy, "realise", None)
        now = energy if realise is None else realise(u, generator)
        value, score = energy_and_score(now, u, y)
        norm = score.flatten(1).norm(dim=1)
        if self.tilt_norm is not None:
            score = rescale(score + u, self.tilt_norm) - u
        return score, value, norm

    def __call__(
        self,
        energy: Energy,
        u: Tensor,
        y: Tensor,
        *,
        generator: Randomness,
        watch: Callable[[Tensor], None] | None = None,
    ) -> tuple[Tensor, Trace]:
        """Runs the chains; other arguments as for :meth:`step`.

        Parameters of the energy get no gradient and its parts are in evaluation mode while the
        chains run. Works under `no_grad`, `inference_mode` and autocast.

        Arguments:
            watch: Called with the state after each step.

        Returns:
            The last state, detached, and the trace.
        """
        rows: list[Trace] = []
        with sampling(energy):
            u, y = u.detach().clone(), y.clone()
            last, way, e = None, None, self._shaped(u, y)
            for _ in range(self.n_steps):
                drift, value, norm = self._drift(energy, u, y, generator)
                rows.append(Trace(value, norm, curvature(last, (u, drift))))
                last = (u, drift)
                u, way = self._move(energy, u, way, drift, e, generator)
                if watch is not None:
                    watch(u)
        if not rows:
            return u, Trace(*u.new_empty(3, 0, len(u)))
        return u, Trace(*(torch.stack(column) for column in zip(*rows, strict=True)))
