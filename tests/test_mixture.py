"""Starts from several Gaussians per class: weights, moments, and modes that remember nothing."""

import pytest
import stats
import torch
import toys

from ebm_from_clf import ClassGaussian, ClassMixture

SHAPE = (1, 4, 4)


def looks(levels, count, seed=0):
    """Images around some gray levels, so many of each."""
    x = torch.tensor(levels).repeat_interleave(torch.tensor(count))
    noise = 0.02 * torch.randn(len(x), *SHAPE, generator=toys.seeded(seed))
    return x.view(-1, 1, 1, 1) + noise


# Class 0 has two looks, class 1 too few images for a second mode, class 2 one look and a stray.
IMAGES = torch.cat(
    [looks([0.3, 0.7], [120, 80]), looks([0.1, 0.9], [12, 12], 1), looks([0.5, 0.95], [60, 3], 2)]
)
LABELS = torch.tensor([0] * 200 + [1] * 24 + [2] * 63)
START = ClassMixture.fit(IMAGES, LABELS, 3, modes=3, rank=4)


def drawn(c, n=20_000, start=START):
    return start(torch.full((n,), c), generator=toys.seeded(5))


def test_a_class_of_two_looks_is_drawn_in_two_looks():
    two = ClassMixture.fit(IMAGES, LABELS, 3, modes=2, rank=4)
    assert two.weight[0].sort().values.tolist() == pytest.approx([0.4, 0.6])
    level = drawn(0, start=two).mean((1, 2, 3))
    stats.assert_mean((level > 0.5).double(), 0.4)
    assert ((level - 0.3).abs().minimum((level - 0.7).abs()) < 0.1).all()
    # The mutant, one Gaussian, draws what lies between the looks.
    one = drawn(0, start=ClassGaussian.fit(IMAGES, LABELS, 3, rank=4, residual=False))
    assert ((one.mean((1, 2, 3)) - 0.5).abs() < 0.1).float().mean() > 0.2


def test_the_mean_of_the_draws_is_that_of_the_class():
    for c in range(3):
        x = drawn(c).flatten(1)
        exact = IMAGES[LABELS == c].flatten(1).mean(0)
        error = x.std(0) / len(x) ** 0.5
        # Clipping at 1 moves the stray look of class 2 and the bright one of class 1 a little.
        assert (x.mean(0) - exact).abs().max() < 5 * error.max() + (0.002 if c == 2 else 0.004)


def test_a_mode_keeps_the_covariance_of_its_images():
    two = ClassMixture.fit(IMAGES, LABELS, 3, modes=2, rank=16)
    dark = int(two.mean[:2].mean((1, 2, 3)).argmin())
    part = two.components[dark].flatten(1)
    expected = torch.cov(IMAGES[:120].flatten(1).T)
    assert (part.T @ part - expected).abs().max() < 1e-6


def test_few_images_are_no_mode_of_their_own():
    """A start that is three training images would be a memory of them."""
    counts = START.weight * torch.bincount(LABELS)[:, None]
    assert counts[START.weight > 0].min() >= 20 - 1e-3
    assert int((START.weight[1] > 0).sum()) == 1, "24 images are one mode"
    assert START.weight.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_classes_of_different_numbers_of_modes_do_not_mix():
    levels = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.9])
    mean = levels.view(-1, 1, 1, 1).expand(-1, *SHAPE)
    weight = torch.tensor([[0.5, 0.5], [1, 0], [0.25, 0.75]])
    start = ClassMixture(mean, torch.zeros(5, 0, *SHAPE), torch.zeros_like(mean), weight)
    for c, own in enumerate(([0, 1], [2], [3, 4])):
        found = drawn(c, start=start)[:, 0, 0, 0]
        assert set(found.tolist()) == set(levels[own].tolist())
        if len(own) > 1:
            stats.assert_mean((found == levels[own[0]]).double(), float(weight[c, 0]))


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="`modes` must be 1 or more"):
        ClassMixture.fit(IMAGES, LABELS, 3, modes=0)
    with pytest.raises(ValueError, match="no image of class 3"):
        ClassMixture.fit(IMAGES, LABELS, 4)
    with pytest.raises(ValueError, match="lower rank"):
        ClassMixture.fit(IMAGES, LABELS, 3, rank=30)
    parts = (START.mean, START.components, START.residual)
    with pytest.raises(ValueError, match=f"for 3 modes, there are {len(START.mean)}"):
        ClassMixture(*parts, torch.eye(3))
    with pytest.raises(ValueError, match="sum to 1"):
        ClassMixture(*parts, START.weight / 2)
