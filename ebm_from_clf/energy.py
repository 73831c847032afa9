r"""A classifier read as class-conditional energies over a Gaussian reference.

.. math::
    p_c(x) &= \exp(\gamma f_c(x)) \, q(x) / Z_c, \qquad x = \mu + A u \\
    U(u, c) &= |u|^2 / 2 - F_c(u), \qquad F_c(u) = \gamma f_c(\mu + A u) \\
    B(u) &= \nabla_u F_c = \gamma A^\top \nabla f_c, \qquad -\nabla_u U = B(u) - u

with the classifier's logit :math:`f_c`, the gain :math:`\gamma` and the reference q. The
classifier is an attribute: it is never edited, and every mode and flag that is touched here is
put back, also after an error.
"""

__all__ = ["ClassifierEnergy"]

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .gauge import Gauge, check_classes, check_gauge, gauged, pick
from .modes import evaluation_mode, frozen
from .noise import Randomness
from .reference import Reference
from .smooth import Coarse, Smoothing, View
from .space import PixelSpace
from .support import Kept, Support, check_support, confine


class ClassifierEnergy(nn.Module):
    r"""Creates the energy :math:`U(u, c) = |u|^2 / 2 - \gamma f_c(\mu + A u)`.

    A softmax fixes the logits up to a common shift :math:`g(x)`, which changes every
    :math:`p_c` but not the classifier. The gauge says which shift is taken: `raw` logits;
    `log_softmax`, for which q is the marginal of images; or `centered`, zero mean over classes.

    References:
        | A Theory of Generative ConvNet (Xie et al., 2016)
        | https://arxiv.org/abs/1602.03264

    Arguments:
        classifier: The classifier, which gives logits with shape (B, K).
        reference: The reference q.
        space: The map from pixels to the classifier's input. `None` if the classifier takes
            pixels in [0, 1].
        gauge: The common shift of the logits.
        gain: The gain :math:`\gamma` on the logits, applied before the gauge.
        support: Whether the model lives on all images, or on the box [0, 1] with `reflect` or
            `clamp` at its border. A clamped chain has no density: no likelihood then.
        smoothing: The changes of an image that its score is averaged over; see
            :class:`Smoothing`. `None` for none. Logits and posterior are never smoothed.

    Three attributes travel with it and serve `sample()`: `start`, where chains begin, `sampler`,
    how they move, and `class_names`. Fine-tuning sets them to what it used. Two more are for
    classifiers that were not: `coarse`, a first stage of chains, and `kept`, a region that they
    leave alone; see :func:`edit`. With a `precision` passes of the classifier are made in it, by
    `torch.autocast`; all else is not.

    Raises:
        ValueError: If an option is unknown, the gain is not positive, the shapes of `space` and
            `reference` differ, or a box is asked for with a reference that mixes pixels.
    """

    def __init__(
        self,
        classifier: nn.Module,
        reference: Reference,
        space: PixelSpace | None = None,
        *,
        gauge: Gauge = "raw",
        gain: float = 1.0,
        support: Support = "unbounded",
        smoothing: Smoothing | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = reference.shape
        if space is None:
            space = PixelSpace([0.0] * channels, [1.0] * channels, (height, width))
        if space.shape != reference.shape:
            raise ValueError(
                f"ClassifierEnergy: the classifier takes images {tuple(space.shape)}, the "
                f"reference has {tuple(reference.shape)}. Build the reference for that shape."
            )
        check_gauge(gauge)
        check_support(support, reference)
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"ClassifierEnergy: `gain` must be positive, got {gain}.")
        self.classifier = classifier
        self.reference = reference
        self.space = space
        self.gauge: Gauge = gauge
        self.gain = float(gain)
        self.support: Support = support
        self.smoothing = smoothing
        self.start: nn.Module | None = None
        self.sampler: Any = None
        self.kept: Kept | None = None
        self.coarse: Coarse | None = None
        self.class_names: list[str] | None = None
        self.precision: torch.dtype | None = None

    @property
    def n_classes(self) -> int | None:
        """The number of classes, where the classifier states it."""
        return getattr(self.classifier, "num_classes", None)

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        """Returns the energy U(u, y) in nats, with shape (B).

        Arguments:
            u: Whitened coordinates, with shape (B, C, H, W).
            y: The class indices, with shape (B), or weights of all classes, with shape (B, K);
                weights w give the density proportional to :math:`q \\prod_c e^{w_c F_c}`.
        """
        return u.flatten(1).square().sum(1) / 2 - self.tilt(u, y)

    def tilt(self, u: Tensor, y: Tensor) -> Tensor:
        r"""Returns :math:`F_y(u) = \gamma f_y(\mu + A u)` in the gauge, with shape (B).

        A smoothed score is averaged over some changes, the same ones at every call.
        """
        return pick(self.all_tilts(u), y)

    def realise(self, u: Tensor, generator: Randomness) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns an energy U(u, y) whose smoothed score is estimated by changes drawn now.

        Its gradient at u is an unbiased estimate of the energy's. Without smoothing it is the
        energy itself.

        Arguments:
            u: Where it will be asked, with shape (B, C, H, W).
            generator: One generator, or one per image.
        """
        views = self.views(u, generator)
        if views is None:
            return self
        return lambda u, y: u.flatten(1).square().sum(1) / 2 - pick(self.all_tilts(u, views), y)

    def views(self, u: Tensor, generator: Randomness) -> list[View] | None:
        """Draws the changes of one step of a chain, `None` without smoothing.

        Arguments:
            u: Where the score will be asked, with shape (B, C, H, W).
            generator: One generator, or one per image.
        """
        if self.smoothing is None:
            return None
        return [self.smoothing.view(u, generator) for _ in range(self.smoothing.draws)]

    def all_tilts(self, u: Tensor, views: Sequence[View] | None = None) -> Tensor:
        """Returns the tilts of all classes, averaged over changes, with shape (B, K).

        Arguments:
            u: Whitened coordinates, with shape (B, C, H, W).
            views: The changes. `None` for some that are the same at every call.
        """
        found = self.each_tilts(u, views)
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)

    def each_tilts(self, u: Tensor, views: Sequence[View] | None = None) -> list[Tensor]:
        """Returns the tilts of all classes under each change, with shapes (B, K).

        Arguments:
            u: Whitened coordinates, with shape (B, C, H, W).
            views: The changes. `None` for some that are the same at every call.
        """
        # Full precision for the pixels; only the network follows the caller's autocast.
        with torch.autocast(u.device.type, enabled=False):
            x = self.reference.decode(u)
        if self.smoothing is None:
            return [self.tilts(self.classify(x))]
        views = self.smoothing.fixed(u) if views is None else views
        return [self.tilts(self.classify(view(x))) for view in views]

    def classify(self, x: Tensor, wrapper: nn.Module | None = None) -> Tensor:
        """Returns the classifier's own logits f(x), with shape (B, K), without any check.

        Arguments:
            x: Pixels in [0, 1], with shape (B, C, H, W).
            wrapper: What to call instead of the classifier, if something wraps it.
        """
        network = self.classifier if wrapper is None else wrapper
        kind = x.device.type
        reduced = self.precision is not None or torch.is_autocast_enabled(kind)
        dtype = self.precision or torch.get_autocast_dtype(kind)
        # Under the caller's autocast a cache would outlive the pass, and weights change.
        cast = torch.autocast(kind, dtype, enabled=reduced, cache_enabled=False)
        # Evaluation mode always: batch statistics would make U(u) depend on the other images.
        with evaluation_mode(network), cast:
            return network(self.space(x)).to(x.dtype)

    def tilts(self, logits: Tensor) -> Tensor:
        """Returns the tilts F of all classes from logits: gain and gauge, with shape (B, K)."""
        return gauged(self.gain * logits, self.gauge)

    def confine(self, u: Tensor) -> Tensor:
        """Returns u with its pixels brought back into the support, and those kept put back."""
        return confine(u, self.reference, self.support, self.kept)

    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Returns :math:`U = |A^{-1}(x - \mu)|^2 / 2 - \gamma f_y(x)` in nats, with shape (B).

        Arguments:
            x: Pixels in [0, 1], with shape (B, C, H, W).
            y: The class indices, with shape (B).

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If a shape is wrong or a class does not exist.
        """
        self.space.check(x)
        check_classes(y, len(x), self.n_classes)
        return self(self.reference.encode(x), y)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the classifier's own logits f(x), with shape (B, K).

        Arguments:
            x: Pixels in [0, 1], with shape (B, C, H, W).

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape is not that of the classifier.
        """
        self.space.check(x)
        return self.classify(x)

    def posterior(self, x: Tensor) -> Tensor:
        """Returns the classifier's p(c | x) = softmax(f), with shape (B, K).

        Gauge and gain leave it untouched. It is Bayes' rule of the classes' densities where
        the gain is 1 and the priors are proportional to the constants Z_c.
        """
        return self.logits(x).softmax(1)

    def free_energy(self, x: Tensor) -> Tensor:
        r"""Returns :math:`|u|^2 / 2 - \log \sum_c e^{F_c(u)}` in nats, with shape (B)."""
        self.space.check(x)
        u = self.reference.encode(x)
        return u.flatten(1).square().sum(1) / 2 - self.all_tilts(u).logsumexp(1)

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Returns the top-down reconstruction :math:`\mu + A B(u)` of images, in pixels.

        On a linear piece of the network the model is Gaussian around this image; a minimum of
        the energy inside a piece is its own reconstruction (Xie et al., 2016).

        Arguments:
            x: Pixels in [0, 1], with shape (B, C, H, W).
            y: The class indices, with shape (B).

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If a shape is wrong or a class does not exist.
        """
        self.space.check(x)
        check_classes(y, len(x), self.n_classes)
        with torch.inference_mode(False), torch.enable_grad(), frozen(self):
            u = self.reference.encode(x.detach().clone()).requires_grad_()
            (gradient,) = torch.autograd.grad(self.tilt(u, y.clone()).sum(), u)
        return self.reference.decode(gradient)
