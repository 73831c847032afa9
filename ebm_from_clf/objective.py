r"""What is minimised: losses of observed against synthesized scores.

.. math:: L = \bar f(\tilde x) - \bar f(x) \qquad \text{or} \qquad
    L = \overline{\mathrm{softplus}}(-f(x)) + \overline{\mathrm{softplus}}(f(\tilde x))

The first descends along minus the gradient of the likelihood over the gain (Xie et al., 2016), the
second bounds what a single image weighs. They are functions of the scores F / gain of N observed
and M synthesized images, and own nothing. A third, :func:`generative`, is without chains: images
of all classes stand in for synthesized ones, so that it knows nothing of what lies between them.
"""

__all__ = ["Generative", "Objective", "generative", "likelihood", "logistic", "trim", "weighed"]

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .adversarial import Adversarial


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


class Generative(NamedTuple):
    """The generative loss and what it is worth.

    Arguments:
        loss: The loss, a scalar.
        effective: How many images the expectation under each class rests on, 1 to B, detached,
            with shape (K). Near 1 a single image has all the weight, and the gradient is no
            estimate of anything.
    """

    loss: Tensor
    effective: Tensor


def generative(tilts: Tensor, y: Tensor) -> Generative:
    r"""Returns the log-loss of finding an image among all of a batch by the tilt of its class.

    .. math::
        L = -\frac{1}{B} \sum_i \log \frac{e^{F_{y_i}(x_i)}}{\sum_j e^{F_{y_i}(x_j)}}, \qquad
        -\partial L = \frac{1}{B} \sum_i \Big( \partial F_{y_i}(x_i)
        - \sum_j w_{j y_i} \partial F_{y_i}(x_j) \Big), \quad
        w_{jc} = \frac{e^{F_c(x_j)}}{\sum_l e^{F_c(x_l)}}

    a softmax over the batch, where that of the cross-entropy is over classes. With q the density
    of images of all classes, from which the batch is drawn, the weighted mean estimates the
    expectation under :math:`p_c \propto e^{F_c} q`, and the loss is least, in batches of any
    size, where F is the log-density ratio of class and q up to a constant (Dai, Lu and Wu, 2015,
    https://arxiv.org/abs/1412.6296). The image itself and others of its class are in the sum;
    log B - L, the mean of that ratio, is at most log B.

    Arguments:
        tilts: The tilts F of all classes, with shape (B, K).
        y: The class indices, with shape (B).
    """
    logs = tilts.log_softmax(0)
    effective = (-(2 * logs).logsumexp(0)).exp()
    return Generative(-logs.gather(1, y[:, None]).mean(), effective.detach())


def trim(synthesized: Tensor, fraction: float) -> Tensor:
    """Leaves out the synthesized images of the lowest scores: chains that got lost.

    Arguments:
        synthesized: The scores, with shape (M).
        fraction: The fraction left out, rounded down to whole images.
    """
    lost = int(fraction * len(synthesized))
    return synthesized.topk(len(synthesized) - lost, sorted=False).values if lost else synthesized


def weighed(scores: Tensor, weight: Tensor) -> Tensor:
    """Returns the same scores, with gradients so many times theirs where they are finite.

    Arguments:
        scores: The scores, with shape (N).
        weight: How many times, with shape (N).
    """
    found = scores.detach() + weight * (scores - scores.detach())
    return torch.where(scores.isfinite(), found, scores)


@dataclass(frozen=True)
class Objective:
    """Settings of the contrastive loss.

    `trim` and `clamp` together are the loss of Energy Matching (Balcerak et al., 2025,
    https://arxiv.org/abs/2504.10612), there 0.1 and 0.02.

    Arguments:
        kind: Which loss, `likelihood` or `logistic`, or `generative`, which has no chains.
        trim: Fraction of synthesized images left out, those of the lowest scores.
        clamp: How far below 0 the likelihood loss is driven, in logits; once synthesized images
            score so much less than observed ones it has no gradient. No bound if absent.
        square: Weight of the mean squared score on both sides, which keeps scores bounded.
        scores: Whether chains and scores are those of a class, or of all of them together as in
            JEM; see :class:`Marginal`. Samples of a class are drawn from its own energy all the
            same, which joint learning shapes through the cross-entropy alone.
        data_noise: Standard deviation of the noise on observed images, in pixels.
        cross_entropy: Weight of the cross-entropy on clean images.
        label_smoothing: Label smoothing of the cross-entropy.
        adversarial: How far clean images are first moved to where the cross-entropy is largest.
    """

    kind: Literal["likelihood", "logistic", "generative"] = "likelihood"
    trim: float = 0.0
    clamp: float | None = None
    square: float = 0.0
    scores: Literal["class", "joint"] = "class"
    data_noise: float = 0.005
    cross_entropy: float = 1.0
    label_smoothing: float = 0.0
    adversarial: Adversarial = field(default_factory=Adversarial)

    def __post_init__(self) -> None:
        for name in ("kind", "scores"):
            words = get_args(Objective.__annotations__[name])
            if getattr(self, name) not in words:
                raise ValueError(f"Objective: `{name}` is {words}, got {getattr(self, name)!r}.")
        if not 0 <= self.trim < 1:
            raise ValueError(f"Objective: `trim` is a fraction below 1, got {self.trim}.")
        if self.clamp is not None and not (self.clamp >= 0 and self.kind == "likelihood"):
            # The logistic loss is positive, it never gets there.
            raise ValueError(
                f"Objective: `clamp` is 0 or more and for kind `likelihood`, got {self.clamp} for "
                f"`{self.kind}`. Leave it out."
            )
        if self.kind == "generative" and (self.trim or self.square or self.scores == "joint"):
            raise ValueError(
                "Objective: `generative` has no synthesized scores to `trim` or to `square`, and "
                "none of all classes together. Leave these out."
            )
        for name in ("square", "data_noise", "cross_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Objective: `{name}` must be 0 or more.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"Objective: `label_smoothing` is a fraction below 1, got {self.label_smoothing}."
            )

    def __call__(self, observed: Tensor, synthesized: Tensor) -> Tensor:
        """Returns the contrastive loss of scores with shapes (N) and (M), not of `generative`."""
        contrast = likelihood if self.kind == "likelihood" else logistic
        loss = contrast(observed, trim(synthesized, self.trim))
        if self.clamp is not None:
            loss = loss.clamp_min(-self.clamp)
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
