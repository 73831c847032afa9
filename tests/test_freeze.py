"""Parts that are held: which names choose them, that they stay, and what learning is then."""

import pytest
import timm
import torch
import toys
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from ebm_from_clf import (
    ChainStore,
    ClassifierEnergy,
    Contrastive,
    Langevin,
    Objective,
    ReferenceStart,
    Settings,
    UsageError,
    WhiteNoise,
    finetune,
)
from ebm_from_clf.chain_settings import ChainSettings, StartSettings
from ebm_from_clf.data import Images
from ebm_from_clf.descent import Descent
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.freeze import chosen

X = torch.rand(24, *toys.SHAPE, generator=toys.seeded(2))
Y = torch.arange(24) % 3
DATA = Images((255 * X).byte(), Y, "abc")


class Headed(nn.Module):
    """A body and a last layer, known by timm's name."""

    def __init__(self, body, n_features):
        super().__init__()
        self.body, self.fc, self.num_classes = body, nn.Linear(n_features, 3), 3

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(self.body(x))


def headed():
    with torch.random.fork_rng():
        torch.random.manual_seed(4)
        body = nn.Sequential(nn.Flatten(), nn.Linear(toys.DIM, 16), nn.Tanh(), nn.Linear(16, 8))
        classifier = Headed(nn.Sequential(body), 8)
    return ClassifierEnergy(classifier, toys.reference(), toys.space())


def settings(**options):
    quick = dict(
        updates=3,
        batch_size=8,
        clean_batch_size=8,
        start=StartSettings(kind="reference"),
        chains=ChainSettings(per_class=8),
        sampler=Langevin(n_steps=2),
        log_every=1,
    )
    return Settings(**quick | options)


@pytest.fixture(scope="module")
def resnet():
    return timm.create_model("test_resnet", num_classes=3)


def names(network, chosen_names):
    """The names of the parameters that are chosen."""
    found = {id(p) for p in chosen(network, chosen_names)}
    return {key for key, p in network.named_parameters() if id(p) in found}


def test_names_and_patterns_choose_parts(resnet):
    keys = {key for key, _ in resnet.named_parameters()}

    def under(*prefixes):
        return {key for key in keys if key.startswith(prefixes)}

    assert names(resnet, ()) == set()
    assert names(resnet, ["layer1"]) == under("layer1.") != set()
    assert names(resnet, "layer1.0") == under("layer1.0.")
    assert names(resnet, ("layer[12]", "bn1.weight")) == (
        under("layer1.", "layer2.") | {"bn1.weight"}
    )
    assert names(resnet, "layer1, conv1") == under("layer1.", "conv1.")
    assert names(resnet, ["*.bias"]) == {key for key in keys if key.endswith(".bias")}
    assert names(resnet, ["layer1", "layer1", "layer1.0"]) == under("layer1.")
    assert len(chosen(resnet, ["layer1", "layer*"])) == len(under("layer"))
    assert names(resnet, ["body"]) == keys - {"fc.weight", "fc.bias"}
    assert names(resnet, ["body", "fc.bias"]) == keys - {"fc.weight"}


def test_a_part_called_body_is_that_part():
    assert names(toys.Smooth(), ["body.1"]) == {"body.1.weight", "body.1.bias"}
    with pytest.raises(UsageError, match="nothing is left"):
        chosen(toys.Smooth(), ["body"])


def test_two_last_layers_are_both_left_out():
    network = headed().classifier
    network.other = nn.Linear(2, 2)
    network.trunk, network.body = network.body, nn.Identity()
    network.get_classifier = lambda: (network.fc, network.other)
    found = names(network, ["body"])
    assert found and all(key.startswith("trunk.") for key in found)


def test_unknown_names_are_refused_with_those_near(resnet):
    for wrong, near in (
        ("layr1", "layer1"),
        ("bn1.wieght", "bn1.weight"),
        ("layer", "layer[1-4]"),
        ("bod", "body"),
        ("xyz", "body, conv1"),
        ("", "body, conv1"),
    ):
        with pytest.raises(UsageError, match=f"called '{wrong}'. Try .*{near}") as error:
            chosen(resnet, ["conv1", wrong])
        assert "\n" not in str(error.value)


def test_freezing_everything_is_refused(resnet):
    for everything in (["*"], ["body", "fc"]):
        with pytest.raises(UsageError, match="nothing is left to learn"):
            chosen(resnet, everything)
    with pytest.raises(UsageError, match="get_classifier"):
        chosen(nn.Sequential(nn.Linear(2, 2)), ["body"])
    energy = headed()
    energy.classifier.fc.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing is left to learn"):
        Finetuner(energy, DATA, settings(freeze="body"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "muon"])
def test_frozen_weights_stay_bit_for_bit(optimizer):
    """Under weight decay, momentum, the moving average and gradients left over from before."""
    energy = headed()
    energy.logits(X).sum().backward()
    before = {key: p.detach().clone() for key, p in energy.classifier.named_parameters()}
    frozen = {"body.0.1.weight", "body.0.3.bias"}
    energy.classifier.body[0][3].weight.requires_grad_(False)
    tuner = Finetuner(
        energy,
        DATA,
        settings(freeze=tuple(frozen), weight_decay=0.3, ema=0.5, optimizer=optimizer),
    )
    kept = energy.classifier.get_parameter("body.0.1.weight")
    size, old = tuner.descent.optimizer.param_groups, kept.grad.clone()
    assert sum(p.numel() for group in size for p in group["params"] if p.requires_grad) == sum(
        p.numel()
        for key, p in energy.classifier.named_parameters()
        if p.requires_grad and key not in frozen
    )
    tuner.run()
    for key, p in energy.classifier.named_parameters():
        still = key in frozen or not p.requires_grad
        assert torch.equal(p, before[key]) == still, key
    assert torch.equal(kept.grad, old)
    norm = torch.stack(
        [p.grad.norm() for group in size for p in group["params"] if p.requires_grad]
    ).norm()
    assert tuner.journal.lines[-1]["gradient"] == pytest.approx(float(norm), rel=1e-4)


def test_flags_are_put_back_also_after_an_error(monkeypatch):
    energy = headed()
    energy.classifier.body[0][1].bias.requires_grad_(False)
    flags = {key: p.requires_grad for key, p in energy.classifier.named_parameters()}
    inside = []
    terms = Contrastive.terms

    def look(self, *arguments, **options):
        now = {key: p.requires_grad for key, p in energy.classifier.named_parameters()}
        inside.append({key for key, live in now.items() if live})
        if len(inside) == 3:
            raise RuntimeError("stop")
        return terms(self, *arguments, **options)

    monkeypatch.setattr(Contrastive, "terms", look)
    chosen_names = ("body.0.*",)
    finetune(energy, DATA, settings(freeze=chosen_names, updates=2))
    assert {key: p.requires_grad for key, p in energy.classifier.named_parameters()} == flags
    with pytest.raises(RuntimeError, match="stop"):
        finetune(energy, DATA, settings(freeze=chosen_names, updates=2))
    assert {key: p.requires_grad for key, p in energy.classifier.named_parameters()} == flags
    finetune(energy, DATA, settings(updates=1))
    live = {key for key, value in flags.items() if value}
    assert inside == [{"fc.weight", "fc.bias"}] * 3 + [live]


def contrast_gradient(energy, head, **options):
    """The gradient in the last layer of a contrast of fixed images, with this last layer."""
    with torch.no_grad():
        energy.classifier.fc.weight.copy_(head)
    start = ReferenceStart(energy.reference)
    chains = ChainStore(energy.reference, start, 3)
    objective = Objective(data_noise=0.0, **options)
    gen = Contrastive(energy, Langevin(n_steps=1), chains, objective)
    loss = gen.terms(X[:12], Y[:12], X[12:]).contrast
    return torch.autograd.grad(loss, energy.classifier.fc.weight)[0]


def test_with_a_held_body_the_likelihood_is_linear_in_what_is_learned():
    """For given chains its gradient is mean features minus mean features, whatever the head."""
    energy = headed()
    heads = [torch.randn(3, 8, generator=toys.seeded(seed)) for seed in (1, 2)]
    found = [contrast_gradient(energy, head) for head in heads]
    assert torch.equal(found[0], found[1])
    features = energy.classifier.body(energy.space(X)).detach()
    for c in range(3):
        gap = features[12:][Y[:12] == c].sum(0) - features[:12][Y[:12] == c].sum(0)
        assert (found[0][c] - gap / 12).abs().max() < 1e-6
    for options in ({"kind": "logistic"}, {"square": 0.1}):
        other = [contrast_gradient(energy, head, **options) for head in heads]
        assert (other[0] - other[1]).abs().max() > 1e-3


def test_with_a_held_body_the_likelihood_is_concave_and_bends_by_the_spread_of_features():
    """Its second derivative is minus gamma^2 times the covariance of the features under p."""
    with torch.random.fork_rng():
        torch.random.manual_seed(4)
        body = nn.Sequential(nn.Flatten(), nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4))
        classifier = Headed(body, 4)
    reference = WhiteNoise(torch.full((1, 1, 2), 0.5))
    energy = ClassifierEnergy(classifier, reference, gain=3.0).double()
    side = torch.linspace(-7, 7, 121).double()
    u = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    y = torch.zeros(len(u), dtype=torch.int64)
    observed = torch.randn(5, 1, 1, 2, generator=toys.seeded(), dtype=torch.float64)

    def likelihood(name):
        """The mean log-likelihood of class 0 as a function of a parameter."""
        shape = energy.get_parameter(name).shape

        def value(flat):
            def tilt(v, n):
                return -functional_call(energy, {name: flat.view(shape)}, (v, n))

            return tilt(observed, y[:5]).mean() - tilt(u, y).logsumexp(0)

        return hessian(value, energy.get_parameter(name).detach().flatten().clone())

    found = likelihood("classifier.fc.weight")
    with torch.no_grad():
        share = (-energy(u, y)).softmax(0)
        features = energy.classifier.body(energy.space(reference.decode(u)))
        apart = features - (share[:, None] * features).sum(0)
        expected = -9 * (share[:, None] * apart).T @ apart
    assert (found[:4, :4] - expected).abs().max() < 1e-9 * expected.abs().max()
    assert not found[4:].any() and expected.diagonal().max() < -1e-3
    assert torch.linalg.eigvalsh(found).max() < 1e-9
    # Under q the spread is another; where the body learns there is no such law.
    under_q = features.T.cov(aweights=(-u.flatten(1).square().sum(1) / 2).softmax(0))
    assert (9 * under_q + expected).abs().max() > 1e-2 * expected.abs().max()
    assert torch.linalg.eigvalsh(likelihood("classifier.body.1.weight")).max() > 1e-3


def test_learning_a_head_on_rotated_pixels_is_learning_the_linear_energy():
    """Gradient descent does not see a rotation: w = R'v all along, with R held."""
    rotation = torch.linalg.qr(torch.randn(toys.DIM, toys.DIM, generator=toys.seeded(5)))[0]
    data = toys.reference().decode(
        0.5 + 0.5 * torch.randn(60, *toys.SHAPE, generator=toys.seeded(4))
    )
    y = torch.arange(60) % 3

    def learned(matrix, freeze):
        body = nn.Sequential(nn.Flatten(), nn.Linear(toys.DIM, toys.DIM, bias=False))
        classifier = Headed(nn.Sequential(body), toys.DIM)
        with torch.no_grad():
            body[1].weight.copy_(matrix)
            classifier.fc.weight.zero_()
            classifier.fc.bias.zero_()
        energy = ClassifierEnergy(classifier, toys.reference(), toys.space())
        start = ReferenceStart(energy.reference)
        chains = ChainStore(energy.reference, start, 3, per_class=20)
        objective = Objective(data_noise=0.0)
        sampler = Langevin(n_steps=5, step_size=0.5)
        gen = Contrastive(energy, sampler, chains, objective, generator=toys.seeded(1))
        options = dict(optimizer="momentum", learning_rate=0.05, schedule="constant", warmup=0)
        descent = Descent(classifier, Settings(freeze=freeze, **options))
        for update in range(20):
            images = gen.synthesize(y).images
            with descent.held():
                descent.step(gen.terms(data, y, images).contrast, update)
        return (classifier.fc.weight @ matrix).detach()

    plain = learned(torch.eye(toys.DIM), ("body.0.1",))
    assert plain.norm(dim=1).min() > 0.2
    assert (learned(rotation, ("body.0.1",)) - plain).abs().max() < 1e-3
    assert 1e-2 < (learned(rotation, ()) - plain).abs().max() < 10


def test_finetune_takes_the_frame_case():
    energy = headed()
    energy.classifier.trunk, energy.classifier.body = energy.classifier.body, nn.Identity()
    energy.classifier.forward = lambda x: energy.classifier.fc(energy.classifier.trunk(x))
    before = {key: p.detach().clone() for key, p in energy.classifier.named_parameters()}
    finetune(energy, DATA, settings(freeze=["body"], optimizer="adamw", weight_decay=0.1))
    moved = {k for k, p in energy.classifier.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"fc.weight", "fc.bias"}
    assert all(p.requires_grad for p in energy.classifier.parameters())
