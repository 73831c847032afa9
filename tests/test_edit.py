"""Photographs as starts, regions that are kept, and blends of classes."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import toys

from ebm_from_clf import (
    ClassifierEnergy,
    FittedGaussian,
    Langevin,
    SpectralNoise,
    UsageError,
    WhiteNoise,
    convert,
    edit,
    sample,
    save,
)
from ebm_from_clf.errors import Diverged
from ebm_from_clf.labels import find_blend, find_class
from ebm_from_clf.sample import draw
from ebm_from_clf.stationary import StationaryGaussian

SAMPLER = Langevin(n_steps=10, step_size=0.5)


def photograph():
    return torch.rand(toys.SHAPE, generator=toys.seeded(3))


def test_strength_0_gives_the_photograph_back():
    found = sample(edit(toys.smooth(), photograph(), 0.0, sampler=SAMPLER), [0, 1], n=2)
    assert (found - photograph()).abs().max() < 1e-5


def test_more_strength_goes_further_and_1_forgets_the_photograph():
    energy = toys.smooth(gain=3.0)
    energy.start = None
    far = []
    for strength in (0.1, 0.5, 1.0):
        found = sample(edit(energy, photograph(), strength, sampler=SAMPLER), [1], n=20)
        far.append(float((found - photograph()).square().mean()))
    assert far[0] < far[1] / 2 < far[2]
    other = sample(edit(energy, 1 - photograph(), 1.0, sampler=SAMPLER), [1], n=20)
    assert torch.equal(found, other)
    assert torch.equal(found, sample(energy, [1], n=20, sampler=SAMPLER))


def test_a_masked_region_stays_untouched_and_the_rest_moves():
    energy = toys.smooth(gain=3.0)
    mask = torch.zeros(toys.SHAPE[1:], dtype=torch.bool)
    mask[:, :2] = True
    found = sample(edit(energy, photograph(), 1.0, mask=mask, sampler=SAMPLER), [1], n=5)
    assert (found - photograph())[:, :, mask].abs().max() < 1e-5
    assert (found - photograph())[:, :, ~mask].abs().mean() > 0.05
    still = sample(edit(energy, photograph(), 1.0, mask=mask, sampler=Langevin(0)), [1])
    assert (still - photograph())[:, :, mask].abs().max() < 1e-5, "kept without a step, too"


def test_a_change_samples_the_class_given_the_photograph():
    """f linear, T = 1: Gaussian around (1 - s) x0 + s (mu + A B), covariance s A A^T."""
    energy, n, s = toys.linear(), 4000, 0.3
    found, q = edit(energy, photograph(), s), energy.reference
    y, g = torch.ones(n, dtype=torch.int64), toys.seeded(7)
    exact = Langevin(60, 0.5, variance_corrected=True)
    u, _ = exact(found, torch.randn(n, *toys.SHAPE, generator=g), y, generator=g)
    x = found.reference.decode(u)
    b = toys.linear_tilt(energy, y[:1]).float().view(toys.SHAPE)

    def off(share: float, variance: float) -> tuple[float, float]:
        """How far the two moments are off, in standard errors."""
        mean = (1 - s) * photograph() + s * q.mean + share * q.factor(b)
        v = q.solve(x - mean) / variance**0.5
        first, second = v.mean(0) * n**0.5, (v.square().mean(0) - 1) * (n / 2) ** 0.5
        return float(first.abs().max()), float(second.abs().max())

    assert max(off(s, s)) < 5
    for share, variance in ((0, s), (s**0.5, s), (s, s**2)):
        assert max(off(share, variance)) > 5, "the mutants"


def test_the_energy_is_left_as_it_was():
    energy = toys.smooth()
    before = (energy.start, energy.sampler, energy.kept, set(energy.state_dict()))
    reference, mean = energy.reference, energy.reference.mean.clone()
    mask = torch.ones(toys.SHAPE[1:], dtype=torch.bool)
    found = edit(energy, photograph(), 0.5, mask=mask, sampler=SAMPLER)
    assert found.classifier is energy.classifier and found.sampler == SAMPLER
    assert before == (energy.start, energy.sampler, energy.kept, set(energy.state_dict()))
    assert energy.reference is reference and torch.equal(reference.mean, mean)


@pytest.mark.parametrize("kind", [WhiteNoise, SpectralNoise, FittedGaussian])
def test_every_reference_is_moved_to_the_photograph(kind):
    reference = kind(torch.full(toys.SHAPE, 0.5), 0.1)
    support = "clamp" if reference.is_diagonal else "unbounded"
    energy = ClassifierEnergy(toys.smooth().classifier, reference, support=support).double()
    found = edit(energy, photograph().double(), 0.5, sampler=SAMPLER)
    assert type(found.reference) is kind and found.reference.mean.dtype == torch.float64
    assert sample(found, [0]).isfinite().all()


def test_a_stationary_field_is_moved_and_narrowed():
    lag = torch.fft.fftfreq(8, 1 / 8)
    field = torch.exp(-(lag[:, None] ** 2 + lag**2) / 2)
    mean = torch.full(toys.SHAPE, 0.5)
    q = StationaryGaussian(mean, field, torch.eye(2) * 0.04, floor=0.01)
    found = edit(ClassifierEnergy(toys.smooth().classifier, q), photograph(), 0.25).reference
    u = torch.randn(3, *toys.SHAPE, generator=toys.seeded())
    assert torch.allclose(found.factor(u), q.factor(u) / 2, atol=1e-6)
    assert torch.allclose(found.mean, 0.75 * photograph() + 0.25 * mean)


def test_an_edit_is_not_saved(tmp_path):
    classifier = timm.create_model("test_resnet", num_classes=3, in_chans=2)
    space = toys.space()
    energy = ClassifierEnergy(classifier, toys.reference(), space)
    with pytest.raises(UsageError, match="Save the energy it was made of"):
        save(edit(energy, photograph()), tmp_path / "model")


def test_a_wrong_photograph_is_refused():
    energy = toys.smooth()
    with pytest.raises(ValueError, match="strength"):
        edit(energy, photograph(), 1.5)
    with pytest.raises(ValueError, match="images must have shape"):
        edit(energy, photograph()[:, :2])
    with pytest.raises(ValueError, match=r"images must be floats in \[0, 1\]"):
        edit(energy, 255 * photograph())
    with pytest.raises(TypeError, match="mask is boolean"):
        edit(energy, photograph(), mask=torch.ones(toys.SHAPE[1:]))
    with pytest.raises(ValueError, match="mask of the size"):
        edit(energy, photograph(), mask=torch.ones(2, 2, dtype=torch.bool))


def test_a_blend_of_linear_scores_has_the_blended_mean():
    """f linear and T = 1: p is Gaussian around B = sum of the weighted gradients."""
    weight = torch.randn(3, toys.DIM, generator=toys.seeded(4))
    clf = toys.Linear(weight, torch.zeros(3))
    reference = WhiteNoise(torch.full(toys.SHAPE, 0.5), 0.01)
    energy = ClassifierEnergy(clf, reference, gain=100.0)
    n = 4000
    found = draw(energy, [{0: 0.7, 2: 0.3}], n, sampler=Langevin(60, 0.5, variance_corrected=True))
    assert set(found.classes.tolist()) == {0}
    u = reference.encode(found.images).flatten(1)
    expected = 0.7 * weight[0] + 0.3 * weight[2]
    assert ((u.mean(0) - expected) * n**0.5).abs().max() < 5
    assert ((u.mean(0) - weight[0]) * n**0.5).abs().max() > 5, "the mutant: one class alone"
    weighted, plain = (draw(energy, [c], 2, sampler=SAMPLER) for c in ({1: 1.0}, 1))
    assert (weighted.images - plain.images).abs().max() < 1e-5


@pytest.mark.parametrize("blend", [{0: math.nan}, {0: math.inf, 1: 0.5}, {1: 1e50}])
def test_weights_that_are_not_numbers_are_refused(blend):
    with pytest.raises(UsageError, match="a weight is a number up to"):
        sample(toys.smooth(), [blend])


@pytest.mark.parametrize("blend", [1.7, "cat", {"cat": 1.0}, {0: "much"}])
def test_classes_that_are_no_indices_are_refused(blend):
    with pytest.raises(UsageError, match="classes are indices or weights of them"):
        sample(toys.smooth(), [blend])


def test_a_chain_that_runs_away_says_so():
    with pytest.raises(Diverged, match="Give a smaller gain"):
        sample(toys.linear(gain=1e38), [0])


@pytest.mark.parametrize("blend", [{}, {3: 1.0}, {-1: 0.5, 0: 0.5}])
def test_wrong_blends_are_refused(blend):
    with pytest.raises(UsageError, match="classes are 0 to 2"):
        sample(toys.smooth(), [blend])


def test_a_blend_needs_the_number_of_classes():
    energy = toys.smooth()
    del energy.classifier.num_classes
    with pytest.raises(UsageError, match="must state `num_classes`"):
        sample(energy, [{0: 1.0}])


NAMES = ["tabby, tabby cat", "zebra", "crane", "crane", "panda, panda bear", "red panda, panda"]


def test_classes_are_found_by_any_of_their_names():
    for word, c in {"zebra": 1, "Tabby Cat": 0, "tabby, tabby cat": 0, "panda": 4, "5": 5}.items():
        assert find_class(word, NAMES) == c
    with pytest.raises(UsageError, match="several classes are named 'crane'.*2: crane; 3: crane"):
        find_class("crane", NAMES)
    with pytest.raises(UsageError, match="no class is named 'zebr'. Near it: zebra"):
        find_class("zebr", NAMES)
    with pytest.raises(UsageError, match="no class is named 'xyz'. Give its index"):
        find_class("xyz", NAMES)


def test_blends_are_read():
    assert find_blend("zebra+tabby", NAMES) == {1: 0.5, 0: 0.5}
    assert find_blend("zebra:0.7+0:0.3", NAMES) == {1: 0.7, 0: 0.3}
    assert find_blend("a+b", ["a+b"]) == 0
    assert find_blend("tabby+tabby cat", NAMES) == {0: 1.0}
    for wrong in ("zebra:x+tabby", "zebra:nan+tabby"):
        with pytest.raises(UsageError, match="a weight is a number"):
            find_blend(wrong, NAMES)
    with pytest.raises(UsageError, match="every class a weight, or none"):
        find_blend("zebra+tabby:0.3", NAMES)


def test_pictures_come_from_an_untrained_classifier_that_is_smoothed():
    from ebm_from_clf import Smoothing

    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        energy = convert("test_resnet", pretrained=False, size=64, smoothing=Smoothing())
    found = draw(energy, [7], 2, sampler=replace(energy.sampler, n_steps=8))
    assert found.images.shape == (2, 3, 64, 64)
    assert Langevin.ascent().density.startswith("none")
    assert Langevin().density == "p" and "0.5" in Langevin(temperature=0.5).density
