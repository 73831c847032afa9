"""Networks without their BatchNorms compute the same; those that cannot lose them keep them."""

import copy
import importlib

import timm
import torch
import toys
from torch import nn

from ebm_from_clf import Langevin, Smoothing, convert, sample
from ebm_from_clf.fold import Folded, fold
from ebm_from_clf.sample import draw
from ebm_from_clf.swift import Swift


def norms(network):
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def randomised(network):
    """Norms of a new network are nearly the identity, which any fold would pass."""
    generator = toys.seeded(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.3, 2.0),
            ):
                value.data = low + (high - low) * torch.rand(value.shape, generator=generator)
    return network.eval()


def same(network, other, x):
    with torch.no_grad():
        expected = network(x)
        return bool((other(x) - expected).abs().max() < 1e-4 * expected.abs().max())


def test_resnets_and_efficientnets_lose_every_norm_and_compute_the_same():
    for name in ("test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"):
        network = randomised(timm.create_model(name, num_classes=5))
        x = torch.randn(2, 3, 64, 64, generator=toys.seeded())
        before = {k: v.clone() for k, v in network.state_dict().items()}
        found = fold(network, x[:1]).network
        assert norms(network) > 0 and norms(found) == 0 and same(network, found, x)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        a, b = (
            torch.autograd.grad(f(z)[:, 0].sum(), z)[0]
            for f, z in (
                (network, x.clone().requires_grad_()),
                (found, x.clone().requires_grad_()),
            )
        )
        assert (a - b).abs().max() < 1e-3 * a.abs().max()


def test_the_copy_follows_the_network_and_shares_the_rest():
    network = randomised(timm.create_model("test_resnet", num_classes=5))
    x = torch.randn(2, 3, 64, 64, generator=toys.seeded())
    found = fold(network, x)
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(1.1)
    assert not same(network, found.network, x)
    found.refresh()
    assert same(network, found.network, x) and found.network.fc.weight is network.fc.weight


def test_other_tensors_or_another_place_make_another_copy():
    def changed(change):
        energy = convert(timm.create_model("test_resnet", num_classes=5), size=64)
        swift = Swift(energy)
        assert swift.serves(energy) and not swift.serves(copy.copy(energy))
        change(energy.classifier)
        return not swift.serves(energy)

    state = dict(timm.create_model("test_resnet", num_classes=5).state_dict())
    assert changed(lambda network: network.load_state_dict(dict(state), assign=True))
    assert changed(lambda network: network.reset_classifier(7))
    assert changed(lambda network: network.double())
    assert changed(lambda network: setattr(network.layer1[0], "act2", nn.SiLU()))
    assert not changed(lambda network: network.load_state_dict(state))


class Odd(nn.Module):
    """A norm after a convolution whose output, or whose weights, also go elsewhere."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3)
        self.other = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.num_classes = 5

    def forward(self, x):
        z = self.first(x)
        if self.kind == "changed in place":
            z = nn.functional.hardtanh(z, -30, 30, inplace=True)
        y = self.norm(z).relu()
        if self.kind == "output used twice":
            y = y + z
        elif self.kind == "output used twice, at times":
            y = y + (z.abs() - 3).relu()
        elif self.kind == "asks for its norm":
            assert isinstance(self.norm, nn.BatchNorm2d)
        elif self.kind == "norm used twice":
            y = self.norm(y + 1)
        elif self.kind == "convolution used twice":
            y = y + self.other(self.first(x.flip(3)))
        elif self.kind == "looks into its norm":
            y = y * self.norm.weight.view(-1, 1, 1)
        return self.head(self.other(self.second(y)).mean((2, 3)))


def test_what_is_not_one_linear_map_is_left_alone():
    x = torch.randn(2, 3, 16, 16, generator=toys.seeded())
    probes = torch.cat([0.2 * x[:1], 4 * x[1:]])
    kept = {
        "plain": 0,
        "output used twice": 2,
        "output used twice, at times": 2,
        "changed in place": 1,
        "asks for its norm": 2,
        "norm used twice": 1,
        "convolution used twice": 2,
        "looks into its norm": 2,
    }
    for kind, count in kept.items():
        network = randomised(Odd(kind))
        found = fold(network, probes).network
        assert (norms(found), same(network, found, x)) == (count, True), kind
        # The same verdict where norms do nothing yet and the head is 0: weights may learn.
        new = Odd(kind).eval()
        nn.init.zeros_(new.head.weight), nn.init.zeros_(new.head.bias)
        assert norms(fold(new, probes).network) == count, kind


def test_a_convolution_or_norm_may_be_called_by_name():
    class Named(Odd):
        def forward(self, x):
            y = self.norm(input=self.first(input=x)).relu()
            return self.head(self.other(self.second(y)).mean((2, 3)))

    network = randomised(Named("plain"))
    x = torch.randn(2, 3, 16, 16, generator=toys.seeded())
    found = fold(network, x).network
    assert norms(found) == 1 and same(network, found, x)


def test_networks_without_norms_are_not_copied():
    network = toys.smooth().classifier
    assert fold(network, torch.zeros(1, *toys.SHAPE)).network is network


def test_sampling_works_in_inference_mode():
    energy = convert(randomised(timm.create_model("test_resnet", num_classes=5)), size=64)
    expected = sample(energy, [1], sampler=Langevin(2))
    with torch.inference_mode():
        found = sample(energy, [1], sampler=Langevin(2))
    assert torch.equal(found, expected)
    energy.smoothing = Smoothing()
    with torch.inference_mode():
        assert sample(energy, [1], sampler=Langevin(2)).isfinite().all()


def test_weights_that_are_computed_are_left_alone():
    network = randomised(Odd("plain"))
    network.first = nn.utils.parametrizations.weight_norm(network.first)
    x = torch.randn(2, 3, 16, 16, generator=toys.seeded())
    assert same(network, fold(network, x).network, x)


def test_samples_are_those_of_the_network_itself(monkeypatch):
    network = randomised(timm.create_model("test_resnet", num_classes=5))
    energy = convert(network, size=64, gain=30.0)
    sampler = Langevin(n_steps=5)
    found = draw(energy, [0, 3], 2, sampler=sampler)
    assert energy.classifier is network and norms(network) > 0
    module = importlib.import_module("ebm_from_clf.swift")
    monkeypatch.setattr(module, "fold", lambda network, x: Folded(network, []))
    expected = draw(energy, [0, 3], 2, sampler=sampler)
    assert not torch.equal(found.images, expected.images)
    assert (found.images - expected.images).abs().max() < 1e-3
