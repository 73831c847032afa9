r"""Descent of a loss in the weights of a classifier, and the average of the weights on the way.

.. math:: \theta' = \theta - \eta_t \, \mathrm{precondition}(\nabla_\theta L), \qquad
    \bar\theta' = d_t \bar\theta + (1 - d_t) \theta'

with the optimiser, the schedule :math:`\eta_t` and the moving average of timm, or
:class:`~ebm_from_clf.muon.Muon`, on the device that Accelerate chooses. Weights that move never
settle; their average is what is kept. Up to a largest decay :math:`d_t = t / (3 + t)`, so that
after T steps those of step t weigh about :math:`3 t^2 / T^3` (Shamir and Zhang, 2013,
https://arxiv.org/abs/1212.1824). Weights repel the chains that are there when they are learned;
averaged over a large part of a run they repel what any chain would run into, so that long chains
stay good.
"""

__all__ = ["Descent"]

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .errors import UsageError
from .freeze import chosen
from .modes import held
from .settings import Settings


class Descent:
    """Creates optimiser, schedule and moving average for a classifier.

    Arguments:
        classifier: The classifier, on the device of :attr:`device` or moved there.
        settings: The settings.

    Raises:
        UsageError: If several processes were started, or what is to be frozen is not there.
    """

    def __init__(self, classifier: nn.Module, settings: Settings) -> None:
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise UsageError("fine-tuning in several processes is not supported yet; start one.")
        self.device = self.accelerator.device
        self.classifier = classifier.to(self.device)
        self.settings = settings
        self._held = chosen(classifier, settings.freeze)
        optimizer = settings.create_optimizer(classifier)
        kept = {id(p) for p in self._held}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in kept]
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched=settings.schedule,
            num_epochs=settings.updates,
            warmup_epochs=min(settings.warmup, settings.updates // 2),
            warmup_lr=settings.learning_rate / 100,
            min_lr=settings.learning_rate / 50,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
        # Chains run through the classifier itself, the loss through what Accelerate made of it.
        self.wrapped, self.optimizer = self.accelerator.prepare(classifier, optimizer)
        # With these numbers the decay is that of the docstring.
        self.average = ModelEmaV3(
            classifier, decay=settings.ema, use_warmup=True, warmup_gamma=3.0, warmup_power=1.0
        )

    def held(self) -> AbstractContextManager[None]:
        """Stops gradients to what the settings freeze; to be entered where a loss is made."""
        return held(self._held)

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, loss: Tensor, update: int, factor: float = 1.0) -> Tensor:
        """Takes one step down the gradient of a loss.

        Arguments:
            loss: The loss, a scalar.
            update: The number of steps taken before.
            factor: A factor on the learning rate of the schedule.

        Returns:
            The norm of the gradient, before it is clipped.
        """
        self.schedule.step_update(update)
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        largest = math.inf if self.settings.clip_grad is None else self.settings.clip_grad
        # Not those of the classifier: what is frozen may still have an old gradient.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, largest)
        self.optimizer.step()
        self.average.update(self.classifier, update + 1)
        # In float16 the scale of the gradient is found by trial; no harm is done.
        skipped = getattr(self.optimizer, "step_was_skipped", False)
        return torch.zeros_like(norm) if skipped else norm

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights, their average, and the optimiser's memory."""
        return {
            "classifier": self.classifier.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave.

        Arguments:
            state: The state.
        """
        self.classifier.load_state_dict(state["classifier"])
        self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finish(self) -> None:
        """Puts the average in the place of the weights."""
        self.classifier.load_state_dict(self.average.module.state_dict())
