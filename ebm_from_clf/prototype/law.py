r"""The law of a prototype with orthogonal filters, in closed form.

.. math::
    \log p(u) = \sum_k h(r_k + \beta_k) - |u|^2 / 2 - \log Z + \mathrm{const}, \qquad
    r_k = \langle u, \omega_k \rangle

Which units are on, those with :math:`\delta_k = [r_k + \beta_k > 0]`, says in which piece an
image lies, and on a piece the model is Gaussian around :math:`B = \sum_k \delta_k \omega_k`.
Where the :math:`\omega_k` are orthogonal the units are independent and everything is a closed
form. Where they are not, see :mod:`ebm_from_clf.prototype.pieces`.
"""

__all__ = ["PrototypeLaw"]

import copy
import math

import torch
from torch import Tensor

from ..energy import ClassifierEnergy
from ..noise import Randomness, normal, uniform
from .network import read_filters

PARALLEL = 1e-5
LEAST = 2.0**-54  # a uniform number below every other, and above 0


class PrototypeLaw:
    r"""Creates the law of a prototype with orthogonal :math:`\omega_k`, exact up to rounding.

    With :math:`\tau_k = |\omega_k|` and :math:`t_k = \beta_k / \tau_k`, the standard normal
    density :math:`\phi` and its integral :math:`\Phi`,

    .. math::
        Z_k &= \Phi(-t_k) + e^{\beta_k + \tau_k^2 / 2} \, \Phi(t_k + \tau_k) \\
        \pi_k &= e^{\beta_k + \tau_k^2 / 2} \, \Phi(t_k + \tau_k) / Z_k, \qquad
        \kappa_k = \phi(t_k) / (\tau_k Z_k)

    Everything is float64 and in nats. At another temperature than 1 it is the law of the model
    that a chain samples, of :math:`\omega / \sqrt T` and :math:`\beta / T`, whose responses
    are :math:`r_k / T`; images, and u of :meth:`sample`, are those of the energy.

    Arguments:
        energy: The energy of a :class:`Prototype`, in the gauge `raw`, on all images.
        temperature: The temperature T of the chains.

    Attributes:
        omega: The tilts :math:`\omega_k`, with shape (K, C, H, W).
        beta: The responses :math:`\beta_k` at the mean of q, with shape (K).
        tau: The norms :math:`\tau_k`, with shape (K).
        log_z: :math:`\log Z = \sum_k \log Z_k`, a scalar.
        on: The probability :math:`\pi_k` that a unit is on, with shape (K).
        kink: The density :math:`\kappa_k` of :math:`r_k` where the unit turns on, with shape (K).

    Raises:
        TypeError: If the classifier is no prototype.
        ValueError: If the energy is another one, or the filters are not orthogonal, or 0.
    """

    def __init__(self, energy: ClassifierEnergy, temperature: float = 1.0) -> None:
        self.omega, self.beta = read_filters(energy, temperature)
        self.tau = self.omega.flatten(1).norm(dim=1)
        self._directions = self.omega / self.tau.view(-1, 1, 1, 1)
        flat = self._directions.flatten(1)
        cosine = (flat @ flat.T - torch.eye(len(flat)).to(flat)).abs().max()
        if not cosine < PARALLEL:
            raise ValueError(
                "PrototypeLaw: the filters must be orthogonal in u, and none 0; the largest "
                f"cosine is {cosine:.2g}. For other filters use PieceLaw."
            )
        self._root, self._gain = math.sqrt(temperature), energy.gain / temperature
        self._space = copy.deepcopy(energy.space).double()
        self._reference = copy.deepcopy(energy.reference).double()
        self._dtype = energy.reference.mean.dtype
        t = self._t = self.beta / self.tau
        off = torch.special.log_ndtr(-t)
        on = self.beta + self.tau.square() / 2 + torch.special.log_ndtr(t + self.tau)
        self._each = torch.logaddexp(off, on)
        self.log_z = self._each.sum()
        self.on = (on - self._each).exp()
        self.kink = (-t.square() / 2 - self._each).exp() / (math.sqrt(2 * math.pi) * self.tau)

    @property
    def response(self) -> Tensor:
        r""":math:`E \, r_k = \tau_k^2 \pi_k`, with shape (K)."""
        return self.tau.square() * self.on

    @property
    def square(self) -> Tensor:
        r""":math:`E \, r_k^2 = \tau_k^2 + \tau_k^4 (\pi_k + \kappa_k)`, with shape (K)."""
        return self.tau.square() + self.tau.pow(4) * (self.on + self.kink)

    @property
    def active(self) -> Tensor:
        r""":math:`E \, \delta_k r_k = \tau_k^2 (\pi_k + \kappa_k)`, with shape (K)."""
        return self.tau.square() * (self.on + self.kink)

    @property
    def tilt(self) -> Tensor:
        r""":math:`E_p F = \sum_k (E \, \delta_k r_k + \beta_k \pi_k)`, a scalar."""
        return (self.active + self.beta * self.on).sum()

    @property
    def reference_tilt(self) -> Tensor:
        r""":math:`E_q F = \sum_k (\tau_k \phi(t_k) + \beta_k \Phi(t_k))`, a scalar."""
        density = (-self._t.square() / 2).exp() / math.sqrt(2 * math.pi)
        return (self.tau * density + self.beta * torch.special.ndtr(self._t)).sum()

    @property
    def divergence(self) -> Tensor:
        r""":math:`KL(p \, \| \, q) = E_p F - \log Z`, a scalar."""
        return self.tilt - self.log_z

    @property
    def reconstruction(self) -> Tensor:
        r""":math:`E |B|^2 = \sum_k \pi_k \tau_k^2`, a scalar."""
        return (self.on * self.tau.square()).sum()

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`\mu + A \sum_k \pi_k \omega_k`, in pixels, with shape (C, H, W)."""
        u = torch.einsum("k,kchw->chw", self.on, self.omega)
        return self._reference.decode(self._root * u)

    def covariance(self) -> Tensor:
        r"""Returns the covariance of the pixels of images, with shape (C H W, C H W).

        It is :math:`A (1 + \sum_k (\mathrm{Var} \, r_k / \tau_k^2 - 1) \, \omega_k \omega_k^\top
        / \tau_k^2) A^\top`, in pixels squared, with the temperature as a factor, and
        :math:`\mathrm{Var} \, r_k / \tau_k^2 - 1 = \tau_k^2 (\pi_k (1 - \pi_k) + \kappa_k)`.
        """
        flat = self._directions.flatten(1)
        excess = self.tau.square() * (self.on * (1 - self.on) + self.kink)
        one = torch.eye(flat.shape[1]).to(flat)
        rows = self._reference.factor(one.view(-1, *self._reference.shape)).flatten(1)
        return self._root**2 * rows.T @ (one + flat.T @ (excess[:, None] * flat)) @ rows

    def density(self, r: Tensor) -> Tensor:
        r"""Returns the density of the responses :math:`r_k`, each by itself.

        Arguments:
            r: The responses, with shape (\*, K).
        """
        s, shift = r / self.tau, torch.where(r > -self.beta, r + self.beta, 0)
        return (shift - s.square() / 2 - self._each).exp() / (math.sqrt(2 * math.pi) * self.tau)

    def gradient(self) -> dict[str, Tensor]:
        r"""Returns the gradient of log Z in the parameters of the prototype, by their names.

        :math:`\partial \log Z / \partial b_k = \gamma \pi_k` and :math:`\partial \log Z /
        \partial w_k = \gamma (\pi_k \mu + A \, E \, \delta_k u)`, in classifier input.
        """
        on, axes = self.on, self.omega
        others = on[:, None] * on * (1 - torch.eye(len(on)).to(on))
        own = (self.active / self.tau.square()).diag()
        u = torch.einsum("kj,jchw->kchw", own + others, axes)
        center = self._space(self._reference.mean)
        moved = self._root * self._reference.factor(u) / self._space.std
        weight = on.view(-1, 1, 1, 1) * center + moved
        return {"weight": self._gain * weight, "bias": self._gain * on}

    def sample(self, n: int, *, generator: Randomness) -> Tensor:
        r"""Draws independent whitened coordinates from the model itself, with shape (n, C, H, W).

        Each unit is turned on with the probability :math:`\pi_k`; its response is then a Gaussian
        cut off at the kink, by the inverse of its distribution.

        Arguments:
            n: How many.
            generator: One generator, or one per image.
        """
        like = self.omega.new_empty(n, len(self.beta))
        # Both from one draw: a generator per image gives a number per call.
        choice, level = uniform(torch.cat([like, like], 1), generator).chunk(2, 1)
        level, t = level.clamp_min(LEAST), self._t
        below = torch.special.ndtri(level * torch.special.ndtr(-t))
        above = self.tau - torch.special.ndtri(level * torch.special.ndtr(t + self.tau))
        wanted = torch.where(choice < self.on, above, below)
        u = normal(self.omega.new_empty(n, *self.omega.shape[1:]), generator)
        found = u.flatten(1) @ self._directions.flatten(1).T
        u = u + torch.einsum("nk,kchw->nchw", wanted - found, self._directions)
        return (self._root * u).to(self._dtype)
