"""The structure of an energy: B, alpha, pieces and patterns, in whitened coordinates."""

import copy

import pytest
import torch
import toys
from torch import nn

from ebm_from_clf import ClassifierEnergy, Smoothing, topdown
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.theory import Structure, structure


class Kinked(nn.Module):
    """Two layers of rectifiers, of every kind that the whole map is seen through."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 5, 2), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(5, 6, 2, padding=1), nn.MaxPool2d(2), nn.PReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


def kinked(classifier=Kinked, **options):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(7)
        network = classifier()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_var.uniform_(0.3, 2)
                part.running_mean.uniform_(-1, 1)
    options = {"gain": 30.0} | options
    return ClassifierEnergy(network, toys.reference(), toys.space(), **options).double()


def state(n=4, seed=0):
    return torch.randn(n, *toys.SHAPE, generator=toys.seeded(seed)).double()


Y = torch.tensor([0, 2, 1, 2])


def inner(a, b):
    return (a * b).flatten(1).sum(1)


def test_the_adjoint_of_the_reference_is_its_transpose():
    reference = toys.reference().double()
    u, v = state(seed=1), state(seed=2)
    left, right = inner(reference.factor(u), v), inner(u, reference.adjoint(v))
    assert (left - right).abs().max() < 1e-12
    # Mutant: A itself, which differs as its colour factor is not symmetric.
    assert (left - inner(u, reference.factor(v))).abs().max() > 1e-2


def test_a_linear_classifier_has_its_closed_form():
    """B = gamma A' w and alpha = gamma (b + <w, I(mu)>), the same at every image."""
    energy = toys.linear()
    found = Structure.at(energy, state().float())
    plane = found.plane(Y)
    assert torch.allclose(
        plane.slope.flatten(1).double(), toys.linear_tilt(energy, Y), rtol=0, atol=1e-5
    )
    weight, bias = energy.classifier.weight[Y], energy.classifier.bias[Y]
    center = energy.space(energy.reference.mean).flatten()
    alpha = energy.gain * (weight @ center + bias)
    assert torch.allclose(plane.alpha, alpha, rtol=0, atol=1e-5)
    # Mutants: the mean forgotten, the gain forgotten.
    assert (plane.alpha - energy.gain * bias).abs().max() > 0.1
    assert (plane.alpha - alpha / energy.gain).abs().max() > 0.1
    assert (found.reach(state().float()) == torch.inf).all()


@pytest.mark.parametrize("gauge", ["raw", "centered"])
def test_b_is_the_gradient_and_the_residual_that_of_the_energy(gauge):
    energy, u = kinked(gauge=gauge), state()
    found = Structure.at(energy, u)
    value, score = energy_and_score(energy, u, Y)
    plane = found.plane(Y)
    assert (plane.slope - (score + u)).abs().max() < 1e-12 * plane.slope.abs().max()
    assert (found.residual(Y) + score).abs().max() < 1e-12 * plane.slope.abs().max()
    tilt = u.flatten(1).square().sum(1) / 2 - value
    assert (plane.alpha + inner(plane.slope, u) - tilt).abs().max() < 1e-12 * tilt.abs().max()
    # Mutants: the gradient of the mean over the batch, A for its transpose, and no A at all.
    assert (plane.slope - (score + u) / len(u)).norm() > 1e-2 * plane.slope.norm()
    gradient = torch.linalg.solve(toys.dense(energy.reference).T, plane.slope.flatten(1).T).T
    for w in (energy.reference.factor(gradient.view_as(u)), gradient.view_as(u)):
        assert (plane.slope - w).norm() > 1e-2 * plane.slope.norm()
    # The secant of rectifiers is the plane itself.
    assert (found.secant(Y).slope - plane.slope).abs().max() == 0


def test_weights_of_classes_give_their_sum():
    energy, u = kinked(), state()
    weights = torch.rand(4, 3, generator=toys.seeded()).double()
    found = Structure.at(energy, u)
    planes = [found.plane(torch.full((4,), c)) for c in range(3)]
    slope = sum(weights[:, c].view(4, 1, 1, 1) * p.slope for c, p in enumerate(planes))
    assert (found.plane(weights).slope - slope).abs().max() < 1e-12


def test_images_in_pixels_are_whitened():
    energy, x = kinked(), torch.rand(4, *toys.SHAPE, generator=toys.seeded()).double()
    found = structure(energy, x)
    expected = energy.reconstruct(x, Y)
    assert (found.u - energy.reference.encode(x)).abs().max() == 0
    decoded = energy.reference.decode(found.plane(Y).slope)
    assert (decoded - expected).abs().max() < 1e-10 * expected.abs().max()
    # The residual is the reconstruction error, in the metric of the reference.
    error = energy.reference.solve(x - decoded)
    assert torch.allclose(error, found.residual(Y), rtol=0, atol=1e-4)


def test_on_its_piece_the_energy_is_that_of_a_gaussian_around_b():
    """U = |u' - B|^2 / 2 - alpha - |B|^2 / 2 up to the border, and no more beyond it."""
    energy, u = kinked(), state()
    found = Structure.at(energy, u)
    plane, drift = found.plane(Y), -found.residual(Y)
    reach = found.reach(drift)

    def gap(factor):
        moved = u + (factor * reach).view(-1, 1, 1, 1) * drift
        gaussian = (moved - plane.slope).flatten(1).square().sum(1) / 2
        constant = plane.alpha + plane.slope.flatten(1).square().sum(1) / 2
        with torch.no_grad():
            value = energy(moved, Y)
        return (value - (gaussian - constant)).abs(), value.abs()

    for factor in (0.3, 0.7, 1.0):
        error, size = gap(factor)
        assert (error < 1e-12 * (size + plane.slope.flatten(1).square().sum(1))).all()
    error, size = gap(1.5)
    assert (error > 1e-6 * size).all()


def test_the_pattern_alone_draws_the_reconstruction():
    energy, u = kinked(), state()
    found, other = Structure.at(energy, u), Structure.at(energy, state(seed=5))
    plane, again = found.plane(Y), other.plane(Y, found.pattern)
    assert all(torch.equal(a, b) for a, b in zip(plane[:2], again[:2], strict=True))
    assert (other.plane(Y).slope - plane.slope).norm() > 1e-2 * plane.slope.norm()
    # Images on one piece have one reconstruction.
    drift = -found.residual(Y)
    moved = u + 0.9 * found.reach(drift).view(-1, 1, 1, 1) * drift
    assert torch.equal(Structure.at(energy, moved).plane(Y).slope, plane.slope)


def test_smooth_units_have_a_tangent_and_a_secant():
    energy, u = toys.smooth(gain=20.0).double(), state()
    found = Structure.at(energy, u)
    value, score = energy_and_score(energy, u, Y)
    tilt = u.flatten(1).square().sum(1) / 2 - value
    plane, secant = found.plane(Y), found.secant(Y)
    assert (plane.slope - (score + u)).abs().max() < 1e-12 * plane.slope.abs().max()
    for found_plane in (plane, secant):
        straight = found_plane.alpha + inner(found_plane.slope, u)
        assert (straight - tilt).abs().max() < 1e-12 * tilt.abs().max()
    # tanh(0) = 0: of the secant's alpha there is nothing but biases, the same at every image.
    other = Structure.at(energy, state(seed=5)).secant(Y)
    assert (secant.slope - plane.slope).norm() > 1e-2 * plane.slope.norm()
    assert (other.slope - secant.slope).norm() > 1e-2 * secant.slope.norm()
    assert found.census.form == "elementwise"


def test_an_energy_is_left_as_it_was():
    energy, u = kinked().train(), state()
    before = copy.deepcopy(energy.state_dict())
    Structure.at(energy, u).plane(Y)
    assert all(m.training for m in energy.classifier.modules())
    assert all(p.requires_grad and p.grad is None for p in energy.classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in energy.state_dict().items())


def test_what_has_no_structure_is_refused():
    u = state()
    with pytest.raises(ValueError, match="not linear in the logits"):
        Structure.at(kinked(gauge="log_softmax"), u).plane(Y)
    with pytest.raises(ValueError, match="without smoothing"):
        Structure.at(kinked(smoothing=Smoothing()), u)
    with pytest.raises(ValueError, match="classes are 0 to 2"):
        Structure.at(kinked(), u).plane(Y + 1)
    with pytest.raises(ValueError, match="structure: images must have shape"):
        structure(kinked(), u[:, :1])
    with pytest.raises(ValueError, match="structure: images must have shape"):
        Structure.at(kinked(), u[:, :1])
    found = Structure.at(kinked(), u)
    with pytest.raises(TypeError, match="reach: images must be torch.float64, .* got torch.f"):
        found.reach(u.float())
    with pytest.raises(ValueError, match="reach: the structure is that of 4 images, got 1"):
        found.reach(u[:1])
    with pytest.raises(ValueError, match="responses: images must be finite, image 0"):
        found.responses(u / 0, found.pattern)


def test_classes_are_taken_in_any_precision():
    energy, u = kinked(), state()
    found = Structure.at(energy, u)
    for y in (torch.eye(3)[Y], Y.byte(), Y.int()):
        assert torch.equal(found.plane(y).slope, found.plane(Y).slope)
        assert torch.equal(energy(u, y), energy(u, Y))
        assert torch.equal(topdown(energy, u, y), topdown(energy, u, Y))


def test_the_pattern_of_other_images_or_of_another_network_is_refused():
    """One of a single image would be taken for that of all."""
    found = Structure.at(kinked(), state())
    one, other = Structure.at(kinked(), state()[:1]), found.pattern[::-1]
    for pattern in (one.pattern, other, lambda unit, b: one.pattern[unit]):
        with pytest.raises(ValueError, match="recursion: the .* must have shape"):
            found.plane(Y, pattern)
    for pattern in (found.pattern[:-1], [*found.pattern, found.pattern[0]]):
        for call in (found.plane, found.responses):
            with pytest.raises(ValueError, match="recursion: the pattern must have"):
                call(Y if call == found.plane else found.u, pattern)
    with pytest.raises(ValueError, match="recursion: the .* must have shape"):
        found.responses(found.u, one.pattern)
