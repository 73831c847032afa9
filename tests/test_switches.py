"""The top-down pass: by hand, against autograd, and without a trace on the classifier."""

import re
import warnings

import pytest
import timm
import torch
import toys
from test_fold import randomised
from torch import nn
from torch.nn import functional

from ebm_from_clf import ClassifierEnergy, UsageError, WhiteNoise, convert, topdown, units

KINDS = ("gradient", "deconvnet", "guided")


def energy(network, shape):
    return ClassifierEnergy(network, WhiteNoise(torch.full(shape, 0.5)))


def two_layers():
    """f = w h(W x) at x = (1, 0), where W x = (1, 3, -2): its last switch is off."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    network.num_classes = 1
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0], [-2.0, 1.0]]))
        network[3].weight.copy_(torch.tensor([[2.0, -1.0, 4.0]]))
        network[1].bias.zero_()
    return network


def test_three_rules_by_hand():
    x, y = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0])
    expected = {
        "gradient": [2 * 1 - 1 * 3, 2 * 2 - 1 * -1],
        "deconvnet": [2 * 1 + 4 * -2, 2 * 2 + 4 * 1],
        "guided": [2 * 1, 2 * 2],
    }
    toy = energy(two_layers(), (1, 1, 2))
    for kind in KINDS:
        assert topdown(toy, x, y, kind).flatten().tolist() == expected[kind], kind


class Mixed(nn.Module):
    """Rectifiers as modules, as functions, in place, with a ceiling; a hard tanh is none."""

    def __init__(self):
        super().__init__()
        sizes = [(12, 9), (9, 8), (8, 7), (7, 6), (6, 5), (5, 3)]
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.six, self.module, self.num_classes = nn.ReLU6(inplace=True), nn.ReLU(), 3

    def forward(self, x):
        first, second, third, fourth, fifth, last = self.layers
        x = self.six(4 * first(x.flatten(1)))
        x = self.module(second(x))
        x = third(x)
        functional.relu(x, inplace=True)
        x = torch.relu_(fourth(x)).relu()
        return last(functional.hardtanh(fifth(x)))


def by_hand(network, x, y, kind):
    """The pass down with explicit masks."""
    weights = [layer.weight for layer in network.layers]
    biases = [layer.bias for layer in network.layers]
    factors = [4, 1, 1, 1, 1]
    signals, h = [], x.flatten(1)
    for i, (w, b) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        a = factors[i] * (h @ w.T + b)
        signals.append(a)
        low, high = (-1, 1) if i == 4 else (0, 6 if i == 0 else float("inf"))
        h = a.clamp(low, high)
    g = weights[-1][y]
    for i in range(4, -1, -1):
        a = signals[i]
        if i == 4:
            g = g * (a.abs() < 1)
        else:
            on = (a > 0) & (a < 6) if i == 0 else a > 0
            g = g * on if kind != "deconvnet" else g
            g = g if kind == "gradient" else g * (g > 0)
        g = factors[i] * g @ weights[i]
    return g.view_as(x)


def test_every_rectifier_is_switched_and_gradient_is_autograd():
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        network = Mixed().double()
    toy = energy(network, (1, 3, 4)).double()
    x = 3 * torch.randn(40, 1, 3, 4, generator=toys.seeded(), dtype=torch.float64)
    y = torch.arange(40) % 3
    with torch.no_grad():
        found = {kind: topdown(toy, x, y, kind) for kind in KINDS}
    for kind in KINDS:
        assert (found[kind] - by_hand(network, x, y, kind)).abs().max() < 1e-12, kind
        other = KINDS[KINDS.index(kind) - 1]
        assert (found[kind] - by_hand(network, x, y, other)).abs().max() > 1e-2
    z = x.clone().requires_grad_()
    score = toy.logits(z).gather(1, y[:, None]).sum()
    assert (torch.autograd.grad(score, z)[0] - found["gradient"]).abs().max() < 1e-12
    weights = functional.one_hot(y, 3).double()
    assert torch.equal(topdown(toy, x, 0.5 * weights), 0.5 * found["gradient"])


@pytest.mark.parametrize("name", ["test_resnet", "tf_mobilenetv3_small_minimal_100", "resnet10t"])
def test_gradient_of_timm_networks_is_autograd_and_gives_the_reconstruction(name):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = randomised(timm.create_model(name, num_classes=5))
    found = convert(network, size=64, gain=3.0)
    x = found.reference.sample(2, generator=toys.seeded())
    y = torch.tensor([1, 4])
    gradient = topdown(found, x, y)
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(found.logits(z).gather(1, y[:, None]).sum(), z)
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()
    # mu + A B with B = gain A' gradient: A' by autograd, since A is linear.
    u = torch.zeros_like(x).requires_grad_()
    (b,) = torch.autograd.grad((found.reference.decode(u) * gradient).sum(), u)
    reconstructed = found.reference.decode(found.gain * b)
    scale = (found.reconstruct(x, y) - found.reference.mean).abs().max()
    assert (reconstructed - found.reconstruct(x, y)).abs().max() < 1e-4 * scale
    for kind in KINDS[1:]:
        assert (topdown(found, x, y, kind) - gradient).abs().max() > 0.1 * gradient.abs().max()


def test_a_guided_unit_is_seen_inside_its_receptive_field_alone():
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = randomised(timm.create_model("test_resnet", num_classes=5))
    place = units(convert(network, size=64), "layer1.0.conv1:3@2,2")
    x = place.reference.sample(1, generator=toys.seeded())
    for kind in KINDS:
        signal = topdown(place, x, torch.tensor([0]), kind).abs().amax((0, 1))
        rows, columns = signal.nonzero().unbind(1)
        assert signal.max() > 0 and rows.max() < 40 and columns.max() < 40


def test_nothing_of_it_stays():
    network = two_layers().train()
    network[1].bias.requires_grad_(False)
    toy, x, y = energy(network, (1, 1, 2)), torch.rand(4, 1, 1, 2), torch.zeros(4).long()
    flags = [p.requires_grad for p in network.parameters()]

    def untouched():
        z = torch.tensor([-1.0, 2.0], requires_grad=True)
        functional.relu(z).backward(torch.tensor([1.0, -1.0]))
        assert z.grad.tolist() == [0, -1]
        assert all(part.training for part in network.modules())
        assert [p.requires_grad for p in network.parameters()] == flags
        assert all(p.grad is None for p in network.parameters())
        assert not any(part._forward_hooks for part in network.modules())

    topdown(toy, x, y, "guided")
    untouched()
    with torch.inference_mode():
        topdown(toy, x, y, "deconvnet")
    untouched()
    network.append(nn.Linear(7, 1))
    with pytest.raises(RuntimeError):
        topdown(toy, x, y, "guided")
    del network[-1]
    untouched()


class Other(nn.Module):
    """A ReLU beside another rectifier."""

    num_classes = 1

    def __init__(self, second, first=functional.relu):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return (self.second(x - 0.5) + self.first(x)).sum((2, 3))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of newer versions
        return torch.jit.script(nn.ReLU())


def test_rectifiers_without_switches_are_refused_by_name():
    """As a gradient they would pass what the others stop."""
    x, y = torch.rand(2, 1, 1, 2), torch.zeros(2).long()
    for second, name in [
        (nn.LeakyReLU(), "leaky_relu in second (LeakyReLU)"),
        (nn.PReLU(), "_prelu_kernel in second (PReLU)"),
        (lambda x: x.clamp(min=0), "clamp in the network (Other)"),
        (lambda x: x.clamp_min(0), "clamp_min in the network (Other)"),
        (torch.abs, "abs in the network (Other)"),
        (scripted(), "relu in"),
    ]:
        toy = energy(Other(second), (1, 1, 2))
        assert topdown(toy, x, y).shape == x.shape
        for kind in KINDS[1:]:
            with pytest.raises(UsageError, match=re.escape(f"{kind!r} is not defined for {name}")):
                topdown(toy, x, y, kind)
    alone = energy(Other(lambda x: x.clamp(min=0), torch.sin), (1, 1, 2))
    with pytest.raises(UsageError, match="is not defined for clamp"):
        topdown(alone, x, y, "guided")
    for second in (nn.Hardtanh(), nn.Hardsigmoid(), nn.GELU(), nn.Hardtanh(0, 6), nn.ReLU6()):
        assert topdown(energy(Other(second), (1, 1, 2)), x, y, "guided").shape == x.shape


def test_bad_requests_are_refused():
    toy, x, y = energy(two_layers(), (1, 1, 2)), torch.rand(1, 1, 1, 2), torch.tensor([0])
    with pytest.raises(ValueError, match="`switches` is"):
        topdown(toy, x, y, "smooth")
    with pytest.raises(ValueError, match="classes are 0 to 0"):
        topdown(toy, x, y + 1)
    with pytest.raises(ValueError, match="topdown: images must be finite, image 0 is not"):
        topdown(toy, x / 0, y)
    with pytest.raises(TypeError, match="topdown: images must be torch.float32"):
        topdown(toy, x.double(), y)
    with pytest.raises(TypeError, match="topdown: an energy is needed, got Sequential"):
        topdown(toy.classifier, x, y)
    smooth = toys.smooth()
    image = torch.rand(1, *toys.SHAPE)
    assert topdown(smooth, image, y).shape == image.shape
    for kind in KINDS[1:]:
        with pytest.raises(UsageError, match="no ReLU was met"):
            topdown(smooth, image, y, kind)
