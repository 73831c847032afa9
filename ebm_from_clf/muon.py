r"""Muon: momentum whose matrices are made orthogonal.

.. math::
    M' = \mu M + (1 - \mu) \nabla_W L, \qquad
    W' = (1 - \eta \lambda) W - 0.2 \, \eta \sqrt{\max(m, n)} \; \mathrm{polar}(M')

with :math:`\mathrm{polar}(U S V^\top) = U V^\top` for a weight of m rows and n columns, the
kernels of a convolution in one row (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
With that factor (Liu et al., 2025, https://arxiv.org/abs/2502.16982) a step is as long as one of
Adam, so that learning rates of Adam serve. All directions of a layer are learned at one pace. What
has no matrix, such as biases, norms and depthwise kernels, is learned by AdamW. The last layer has
one, and so have tables of relative positions.

The polar factor is found by iterations of Newton and Schulz in float32: other implementations make
them in bfloat16, which many processors emulate, in a third of a second for a small ResNet.
"""

__all__ = ["Muon", "polar"]

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# X <- a X + (b A + c A^2) X, A = X X', brings singular values to .68 to 1.21 in five iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
# Of matrices whose largest entry is less the polar factor fades: their gradient has become zero.
LEAST = 1e-12
# Rows and columns of a matrix, at least: of fewer there is not much to make orthogonal.
FEWEST = 4


def polar(matrices: Tensor) -> Tensor:
    """Returns matrices with nearly orthonormal rows or columns, with the shape of what is given.

    Their singular vectors stay, their singular values are .68 to 1.21, those aside that are less
    than two thousandths of the norm. Zero stays zero, and what is all below 1e-12 becomes less.

    Arguments:
        matrices: The matrices, with shape (B, m, n).

    References:
        | Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024),
          https://kellerjordan.github.io/posts/muon/
    """
    a, b, c = QUINTIC
    least = max(torch.finfo(matrices.dtype).tiny, LEAST)
    with torch.autocast(matrices.device.type, enabled=False):
        # First by the largest entry: the square of a small or a large one is 0 or infinite.
        x = (matrices / matrices.abs().amax((1, 2), keepdim=True).clamp_min(least)).float()
        if tall := x.shape[1] > x.shape[2]:
            x = x.mT
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1.0)
        for _ in range(N_ITERATIONS):
            square = x @ x.mT
            inner = torch.baddbmm(square, square, square, beta=b, alpha=c)
            x = torch.baddbmm(x, inner, x, beta=a)
        return (x.mT if tall else x).to(matrices)


class Muon(torch.optim.Optimizer):
    """Creates the optimiser; it has no Nesterov momentum.

    References:
        | Muon is scalable for LLM training (Liu et al., 2025), https://arxiv.org/abs/2502.16982
        | Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024),
          https://kellerjordan.github.io/posts/muon/

    Arguments:
        params: The parameters, or groups of them.
        lr: The learning rate, as of Adam.
        momentum: The momentum of matrices.
        betas: Momentum of the gradient and of its square, for all that is no matrix.
        eps: What is added to the root of that square.
        weight_decay: Weight decay, decoupled.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with numbers of its own or those of all.

        Arguments:
            param_group: Its `params`, and numbers by their names.

        Raises:
            ValueError: If a number is out of range.
        """
        numbers = self.defaults | param_group
        if len(numbers["betas"]) != 2:
            raise ValueError(f"Muon: `betas` are two numbers, got {numbers['betas']}.")
        below = {"momentum": [numbers["momentum"]], "betas": numbers["betas"]}
        for name, value in ((name, v) for name, values in below.items() for v in values):
            if not 0 <= value < 1:
                raise ValueError(f"Muon: `{name}` must be 0 or more, below 1, got {value}.")
        for name in ("lr", "eps", "weight_decay"):
            if not 0 <= numbers[name] < math.inf:
                raise ValueError(f"Muon: `{name}` must be 0 or more, got {numbers[name]}.")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state of :meth:`state_dict`.

        Arguments:
            state_dict: The state.

        Raises:
            ValueError: If it is that of another optimiser; nothing is changed then.
        """
        if any({"momentum", "betas"} - group.keys() for group in state_dict["param_groups"]):
            raise ValueError("Muon: this is the state of another optimiser.")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step.

        Arguments:
            closure: What makes the loss anew, and its gradients.

        Returns:
            The loss of the closure.

        Raises:
            ValueError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = [p for group in self.param_groups for p in group["params"]]
        if any(p.grad is not None and p.grad.is_sparse for p in every):
            raise ValueError("Muon: a gradient is sparse. Make embeddings with sparse=False.")
        for group in self.param_groups:
            learned = [p for p in group["params"] if p.grad is not None]
            self._orthogonal([p for p in learned if _is_matrix(p)], group)
            self._adam([p for p in learned if not _is_matrix(p)], group)
        return loss

    def _orthogonal(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Takes the step of matrices, those of one shape at once."""
        alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            alike[(len(p), p.numel(), p.device, p.dtype)].append(p)
        for some in alike.values():
            momenta = [self.state[p]["momentum_buffer"].flatten(1) for p in some]
            length = 0.2 * math.sqrt(max(momenta[0].shape))
            for p, update in zip(some, polar(torch.stack(momenta)), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(update.view(p.shape), alpha=group["lr"] * length)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Takes the step of AdamW."""
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), dtype=torch.float32),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        columns = zip(*([self.state[p][k] for k in _ADAM] for p in parameters), strict=True)
        means, squares, steps = map(list, columns)
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            means,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


_ADAM = ("exp_avg", "exp_avg_sq", "step")


def _is_matrix(p: Tensor) -> bool:
    """Tells whether a parameter mixes several channels into several others.

    Not biases, norms and embeddings of positions, nor depthwise kernels and those on one channel.
    """
    if p.ndim < 2 or p.shape[1] == 1:
        return False
    return min(len(p), p.numel() // max(len(p), 1)) >= FEWEST
