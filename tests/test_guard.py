"""What the guard mends, against closed forms."""

import pytest
import torch
import toys
from torch import nn

from ebm_from_clf import ClassifierEnergy, PixelSpace, Settings, WhiteNoise
from ebm_from_clf.chain_settings import ChainSettings, StartSettings
from ebm_from_clf.curriculum import Curriculum
from ebm_from_clf.data import Images
from ebm_from_clf.fault import GuardSettings
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.objective import Objective


class Well(nn.Module):
    """A score that falls with the square of an image: steepness w makes p a Gaussian."""

    num_classes = 1

    def __init__(self):
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        return -self.steepness * x.flatten(1).square().sum(1, keepdim=True) / 2


def narrow(step, limit, guard, **options):
    """A run that learns a well from data which are too narrow for the step; their variance."""
    u = 0.1**0.5 * torch.randn(400, 1, 4, 4, generator=toys.seeded(3))
    pixels = (255 * (0.5 + 0.25 * u)).round().byte()
    data = Images(pixels, torch.zeros(400, dtype=torch.int64), ["it"])
    reference = WhiteNoise(torch.full((1, 4, 4), 0.5), 0.25)
    well = ClassifierEnergy(Well(), reference, PixelSpace([0.5], [0.25], (4, 4)))
    settings = Settings(
        batch_size=64,
        clean_batch_size=0,
        sampler=Langevin(4, step),
        curriculum=Curriculum(max_stiffness=limit),
        start=StartSettings(kind="reference"),
        chains=ChainSettings(per_class=64, restart_rate=0.0, burn_in=8),
        objective=Objective(cross_entropy=0.0),
        guard=guard,
        grid_every=0,
        **options,
    )
    return Finetuner(well, data, settings), float(((pixels / 255 - 0.5) / 0.25).var())


def learned(variance, step):
    """The steepness at which chains of a step have a variance, 1 / (a (1 - a e^2 / 4)) - 1."""
    least = step**2 / 4
    return (1 - (1 - 4 * least / variance) ** 0.5) / (2 * least) - 1


@pytest.mark.parametrize("shorter, learns", [(0.7, True), (1.0, False)])
def test_a_well_that_is_too_steep_for_the_step_is_learned_by_shorter_ones(shorter, learns):
    """Chains of step e have the variance 1 / (a (1 - a e^2 / 4)), a = 1 + w, which is e^2 or more.

    Data of less cannot be learned at e = .4; at .7 of it they can. Mutant: the step stays. Here
    the guard is alone: steps do not follow the energy.
    """
    limits = {"max_gap": 20.0, "max_class_gap": 40.0, "max_auc": 1.0}
    guard = GuardSettings(keep_every=20, shorter_step=shorter, **limits)
    tuner, variance = narrow(0.4, None, guard, updates=300, learning_rate=1.0, log_every=5)
    tuner.run()
    step = tuner.gen.sampler.step_size
    assert tuner.guard.rollbacks > 0 and tuner.energy.sampler.step_size == step
    assert (step**2 < variance) == learns
    if learns:
        found = float(tuner.energy.classifier.steepness.detach())
        assert found == pytest.approx(learned(variance, step), rel=0.1)
