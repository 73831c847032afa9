"""Scores against closed forms."""

import math

import pytest
import torch
import toys

from ebm_from_clf import Diverged
from ebm_from_clf.data import Images
from ebm_from_clf.evaluate import accuracy, calibration_error, evaluate
from ebm_from_clf.judge import Judge, diversity, frechet, nearest


def test_frechet_distance_of_a_set_to_itself_is_zero():
    a = torch.randn(200, 6, generator=toys.seeded())
    assert abs(frechet(a, a)) < 1e-9


def test_frechet_distance_of_gaussians_is_the_formula():
    g = toys.seeded(1)
    n, d = 20_000, 4
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0])
    a = torch.randn(n, d, generator=g)
    b = 0.7 + scale * torch.randn(n, d, generator=g)
    expected = float(d * 0.7**2 + (scale - 1).square().sum())
    # The error of a mean or deviation is about 1 / sqrt(n) each; the sum is dominated by them.
    assert frechet(a, b) == pytest.approx(expected, abs=5 * 4 / math.sqrt(n) * 3)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_frechet_distance_sees_correlation():
    g = toys.seeded(2)
    a = torch.randn(20_000, 2, generator=g)
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    b = torch.randn(20_000, 2, generator=g) @ root.T
    # Eigenvalues of the second covariance: 1.9 and 0.1.
    expected = (1.9**0.5 - 1) ** 2 + (1 - 0.1**0.5) ** 2
    assert frechet(a, b) == pytest.approx(expected, rel=0.05)


def test_calibration_error_of_known_confidences():
    logits = torch.zeros(1000, 2)
    logits[:, 0] = math.log(0.8 / 0.2)
    y = (torch.arange(1000) >= 800).long()
    assert calibration_error(logits, y) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(logits, 1 - y) == pytest.approx(0.6, abs=1e-6)


def test_diversity_is_the_mean_distance_within_classes():
    found = torch.tensor([[0.0], [2.0], [10.0], [16.0]])
    assert diversity(found, torch.tensor([0, 0, 1, 1])) == pytest.approx(4.0)


def test_copies_are_at_no_distance_from_what_they_repeat():
    known = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert nearest(known[[1, 0, 1]], known) == 0
    many = 10 + torch.randn(200, 100, generator=toys.seeded())
    assert nearest(many[50:], many) == 0
    # More than one block of images.
    found = torch.tensor([[0.0, 1.0], [3.0, 6.0]]).repeat(150, 1)
    assert nearest(found, known) == pytest.approx(1.5)


def test_accuracy_counts():
    energy = toys.smooth()
    images = torch.randint(0, 256, (50, *toys.SHAPE), generator=toys.seeded(), dtype=torch.uint8)
    right = energy.logits(images / 255).argmax(1)
    data = Images(images, right.where(torch.arange(50) < 30, (right + 1) % 3), "abc")
    assert accuracy(energy, data) == pytest.approx(0.6)
    assert evaluate(energy, data)["accuracy"] == pytest.approx(0.6)


def test_logits_that_are_no_numbers_are_refused():
    energy = toys.smooth()
    with torch.no_grad():
        energy.classifier.body[-1].bias[0] = float("inf")
    images = torch.zeros(4, *toys.SHAPE, dtype=torch.uint8)
    data = Images(images, torch.tensor([0, 1, 2, 0]), "abc")
    with pytest.raises(Diverged, match="logits are not finite"):
        evaluate(energy, data)


def test_a_judge_finds_no_distance_from_real_images_to_themselves():
    energy = toys.smooth()
    images = torch.randint(0, 256, (60, *toys.SHAPE), generator=toys.seeded(), dtype=torch.uint8)
    data = Images(images, (images / 255).flatten(1).argmax(1) % 3, "abc")
    judge = Judge(Features(energy.classifier), energy.space, data, data)
    found = judge.score(images / 255, data.labels)
    assert found["n"] == found["frechet_n"] == 60
    assert abs(found["frechet"]) < 1e-9 and found["diversity"] == found["diversity_held_out"]
    assert found["agreement"] == found["judge_accuracy"] < 1
    # Held-out images that come class by class, as of a folder, and more samples than those.
    order = data.labels.argsort()
    sorted_data = Images(images[order], data.labels[order], "abc")
    again = Judge(Features(energy.classifier), energy.space, data, sorted_data)
    twice = again.score(images.repeat(2, 1, 1, 1)[:80] / 255, data.labels.repeat(2)[:80])
    assert twice["frechet_n"] == 60 and abs(twice["frechet_held_out"]) < 1e-9
    few = again.score(images[:30] / 255, data.labels[:30])
    assert few["frechet_n"] == 30 and few["frechet_held_out"] < 3 * few["frechet"]
    half = judge.score(images[::2] / 510, data.labels[::2])
    assert half["frechet"] > 0.01 and half["frechet_n"] == 30


class Features(torch.nn.Module):
    """The two calls of timm that a judge makes."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        return x.flatten(1)[:, :5] if pre_logits else self.classifier(x)
