r"""The structure of the energy at images: what the paper's theorems speak of.

.. math::
    F_y(u) &= \tilde\alpha + \langle B, u \rangle, \qquad
    \tilde\alpha = \gamma (\alpha + \langle G, I(\mu) \rangle), \qquad B = \gamma A^\top G \\
    U(u, y) &= |u - B|^2 / 2 - \tilde\alpha - |B|^2 / 2

on the linear piece of u, with the logit :math:`f = \alpha + \langle G, I \rangle` as a function of
the classifier's input I(x). There the model is the Gaussian :math:`\mathcal{N}(B, 1)`, cut off at
the borders of the piece. The piece is named by its pattern :math:`\delta`, and
:math:`u \to \delta \to B` is an auto-encoder: the top-down pass needs the pattern, not the image.
"""

__all__ = ["Plane", "Structure", "structure"]

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..gauge import check_classes
from ..graph import Choice, Graph, Pattern, down, reach, read, respond, secants
from ..space import check_images
from .census import Census, census


class Plane(NamedTuple):
    r"""A linear function of whitened images, :math:`\alpha + \langle B, u \rangle`.

    Arguments:
        alpha: Its value at u = 0, in nats, with shape (B).
        slope: Its gradient, in u, with shape (B, C, H, W).
        above: Its gradients in what each activation and max-pool returns, in nats, in their
            order. `None` for those that it does not depend on.
    """

    alpha: Tensor
    slope: Tensor
    above: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class Structure:
    r"""The energy laid open at images; use :func:`structure`.

    References:
        | A Theory of Generative ConvNet (Xie et al., 2016)
        | https://arxiv.org/abs/1602.03264

    Arguments:
        energy: The energy.
        u: The images in whitened coordinates, with shape (B, C, H, W).
        graph: The classifier as a graph, read at them.
    """

    energy: ClassifierEnergy
    u: Tensor
    graph: Graph

    @classmethod
    def at(cls, energy: ClassifierEnergy, u: Tensor) -> "Structure":
        """Lays an energy open at whitened coordinates; see :func:`structure`.

        Arguments:
            energy: The energy.
            u: Whitened coordinates, with shape (B, C, H, W).

        Raises:
            TypeError: If the energy is none, or they are not of its dtype.
            ValueError: If their shape is not that of the energy, there is none, one is not
                finite, or the scores are smoothed.
        """
        check_images("structure", u, energy)
        if energy.smoothing is not None:
            raise ValueError(
                "structure: the scores are averaged over changes of the image, which have no "
                "piece in common. Take an energy without smoothing."
            )
        with torch.no_grad():
            inputs = energy.space(energy.reference.decode(u))
        return cls(energy, u.detach(), read(energy.classifier, inputs))

    @property
    def pattern(self) -> Pattern:
        """The slopes of every activation and the positions of every max-pool."""
        return self.graph.pattern

    @property
    def census(self) -> Census:
        """What the classifier is made of."""
        return census(self.graph)

    def plane(self, y: Tensor, pattern: Pattern | Choice | None = None) -> Plane:
        r"""Returns :math:`\tilde\alpha` and B by the top-down pass, without differentiation.

        Where the classifier is linear on pieces :math:`F_y = \tilde\alpha + \langle B, u \rangle`
        on the whole piece; with smooth activations at u only. B is the gradient of :math:`F_y`.

        Arguments:
            y: The class indices, with shape (B), or weights of all classes, with shape (B, K).
            pattern: The pattern. `None` for that of the images; that of as many other images
                gives their reconstructions. A function chooses it on the way, from what comes to
                each activation and max-pool.

        Raises:
            ValueError: If a class does not exist, the gauge is not linear in the logits, an
                operation of the classifier has no slopes, or the pattern is that of another
                number of images or of another network.
        """
        alpha, slope, above = down(self.graph, self._weights(y), pattern)
        reference, space = self.energy.reference, self.energy.space
        alpha = alpha + (slope * space(reference.mean)).flatten(1).sum(1)
        return Plane(alpha, reference.adjoint(slope / space.std), above)

    def secant(self, y: Tensor) -> Plane:
        r"""Returns the plane through :math:`F_y(u)` whose slopes are h(r) / r, not h'(r).

        Its :math:`\alpha + \langle G, u \rangle` is :math:`F_y(u)` for smooth activations too,
        with the biases alone in :math:`\alpha`. G is no gradient: never sample with it. For
        rectifiers it is the plane itself.

        Arguments:
            y: The class indices, with shape (B), or weights of all classes, with shape (B, K).

        Raises:
            ValueError: As for :meth:`plane`.
        """
        return self.plane(y, secants(self.graph))

    def responses(self, u: Tensor, pattern: Pattern) -> list[Tensor]:
        """Returns what goes into each activation and max-pool for other images, by a pattern.

        Arguments:
            u: Whitened coordinates, with the shape of those of the structure.
            pattern: The pattern. That of u itself gives what does go in.

        Raises:
            TypeError: If the images are not of the dtype of the energy.
            ValueError: If they are not like those of the structure, or as for :meth:`plane`.
        """
        self._check("responses", u)
        return respond(self.graph, self.energy.space(self.energy.reference.decode(u)), pattern)[1]

    def residual(self, y: Tensor) -> Tensor:
        r"""Returns :math:`R = u - B = \nabla_u U`, with the shape of u.

        Its squared norm is the reconstruction error :math:`|A^{-1} (x - \mu - A B)|^2`.

        Arguments:
            y: The class indices, with shape (B), or weights of all classes, with shape (B, K).

        Raises:
            ValueError: As for :meth:`plane`.
        """
        return self.u - self.plane(y).slope

    def reach(self, direction: Tensor) -> Tensor:
        """Returns the largest t for which u + t direction is on the same piece, with shape (B).

        No rectifier and no max-pool changes before. Infinite if none ever does.

        Arguments:
            direction: The direction in whitened coordinates, with the shape of u; the drift is
                minus the residual.

        Raises:
            TypeError: If it is not of the dtype of the energy.
            ValueError: If it is not like the images, or the classifier is not linear on pieces.
        """
        self._check("reach", direction)
        return reach(self.graph, self.energy.reference.factor(direction) / self.energy.space.std)

    def _check(self, who: str, u: Tensor) -> None:
        """Checks that images are like those of the structure, and as many."""
        check_images(who, u, self.energy)
        if len(u) != len(self.u):
            raise ValueError(
                f"{who}: the structure is that of {len(self.u)} images, got {len(u)}. "
                "Give as many."
            )

    def _weights(self, y: Tensor) -> Tensor:
        """Returns the weights of the logits in the tilt, with shape (B, K)."""
        check_classes(y, len(self.u), self.energy.n_classes)
        if self.energy.gauge == "log_softmax":
            raise ValueError(
                "structure: the gauge log_softmax is not linear in the logits, so that its "
                "scores have no pieces. Take an energy with the gauge raw or centered."
            )
        none = torch.zeros_like(self.graph.logits)
        weights = y.to(none) if y.is_floating_point() else none.scatter(1, y[:, None].long(), 1.0)
        if self.energy.gauge == "centered":
            weights = weights - weights.mean(1, keepdim=True)
        return self.energy.gain * weights


def structure(energy: ClassifierEnergy, x: Tensor) -> Structure:
    """Lays an energy open at images, in one forward pass.

    Arguments:
        energy: The energy. It is not changed.
        x: Pixels in [0, 1], with shape (B, C, H, W).

    Raises:
        TypeError: If the energy is none, or they are not of its dtype.
        ValueError: If their shape is not that of the energy, there is none, one is not finite, or
            the scores are smoothed.
    """
    check_images("structure", x, energy)
    return Structure.at(energy, energy.reference.encode(x))
