"""The energy: signs, gauges, modes put back, and every way a caller may hold it."""

import pytest
import torch
import toys
from torch import nn

from ebm_from_clf import ClassifierEnergy, Langevin, PixelSpace, SpectralNoise, WhiteNoise
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.modes import frozen


def images(n=4, seed=1):
    return torch.rand(n, *toys.SHAPE, generator=toys.seeded(seed))


Y = torch.tensor([0, 2, 1, 2])


def test_energy_is_reference_minus_tilt():
    """exp(-U) is exp(gamma f) q up to one constant: -U - gamma f - log q never changes."""
    energy = toys.smooth(gain=1.7)
    x = images()
    f = energy.logits(x).gather(1, Y[:, None])[:, 0]
    rest = -energy.energy(x, Y) - 1.7 * f - energy.reference.log_prob(x)
    assert rest.std() < 1e-4
    assert (energy.energy(x, Y) + energy.reference.log_prob(x)).std() > 1e-2


def test_posterior_is_the_classifiers_whatever_the_gauge():
    x = images()
    found = [toys.smooth(gauge=g, gain=3.0) for g in ("raw", "log_softmax", "centered")]
    plain = found[0].classifier(found[0].space(x)).softmax(1)
    for energy in found:
        assert torch.equal(energy.posterior(x), plain)
    energies = [e.energy(x, Y) for e in found]
    assert (energies[0] - energies[1]).abs().max() > 0.1
    assert (energies[0] - energies[2]).abs().max() > 0.01


def test_gauges_shift_all_classes_alike():
    x = images().double()
    raw = toys.smooth(gain=2.0).double()
    other = toys.smooth(gain=2.0, gauge="log_softmax").double()
    u = raw.reference.encode(x)
    shift = [raw(u, torch.full((4,), c)) - other(u, torch.full((4,), c)) for c in range(3)]
    assert max((shift[0] - s).abs().max() for s in shift) < 1e-9
    # log-softmax with the gain inside: p_c q sums to q over the classes.
    total = sum((-other(u, torch.full((4,), c))).exp() for c in range(3)).detach()
    assert total == pytest.approx((-u.flatten(1).square().sum(1) / 2).exp(), rel=1e-9)


def test_free_energy_sums_over_classes():
    energy, x = toys.smooth(gain=1.5), images()
    each = torch.stack([-energy.energy(x, torch.full((4,), c)) for c in range(3)])
    assert energy.free_energy(x).detach() == pytest.approx(-each.logsumexp(0).detach(), rel=1e-5)


def test_reconstruction_is_the_mean_of_the_piece():
    """For a linear classifier mu + A B is the mean of p_c, at every image."""
    energy, x = toys.linear(), images()
    a = toys.dense(energy.reference)
    mean = energy.reference.mean.double().flatten() + toys.linear_tilt(energy, Y) @ a.T
    assert (energy.reconstruct(x, Y).flatten(1).double() - mean).abs().max() < 1e-5


class Modes(nn.Module):
    """BatchNorm and dropout: everything that would make an energy depend on the batch."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(toys.DIM, 3)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)).flatten(1))


def modes():
    energy = ClassifierEnergy(Modes(), toys.reference(), toys.space())
    energy.classifier.norm.running_mean.uniform_(-1, 1)
    return energy


def test_evaluation_mode_always_and_put_back():
    energy, x = modes(), images()
    energy.classifier.train()
    energy.classifier.drop.eval()
    state = {k: v.clone() for k, v in energy.state_dict().items()}
    whole = energy.energy(x, Y)
    alone = torch.cat([energy.energy(x[i : i + 1], Y[i : i + 1]) for i in range(4)])
    assert (whole - alone).abs().max() < 1e-5
    assert energy.classifier.training and energy.classifier.norm.training
    assert not energy.classifier.drop.training
    assert all(torch.equal(v, state[k]) for k, v in energy.state_dict().items())


def test_flags_are_put_back_after_an_error():
    energy = modes().train()
    energy.classifier.head.bias.requires_grad_(False)
    flags = {k: p.requires_grad for k, p in energy.named_parameters()}

    def broken(x):
        assert not any(p.requires_grad for p in energy.parameters())
        raise RuntimeError("broken")

    energy.classifier.forward = broken
    with pytest.raises(RuntimeError, match="broken"):
        Langevin(n_steps=1)(energy, images(), Y, generator=toys.seeded())
    assert flags == {k: p.requires_grad for k, p in energy.named_parameters()}
    assert all(m.training for m in energy.modules())


def test_sampling_leaves_no_gradient_and_no_trace_in_the_weights():
    energy = modes().train()
    Langevin(n_steps=3)(energy, images(), Y, generator=toys.seeded())
    assert all(p.grad is None and p.requires_grad for p in energy.parameters())
    with frozen(energy):
        u = images().requires_grad_()
        energy(u, Y).sum().backward()
        assert u.grad is not None and all(p.grad is None for p in energy.parameters())


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.enable_grad,
    ],
)
def test_works_in_every_context_of_the_caller(context):
    energy = toys.smooth()
    sampler = Langevin(n_steps=5)
    expected, _ = sampler(energy, images(), Y, generator=toys.seeded())
    with context():
        u = images()
        found, trace = sampler(energy, u, Y.clone(), generator=toys.seeded())
        energy.reconstruct(u, Y.clone())
        value = energy.energy(u, Y)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert value.dtype == torch.float32
    # bfloat16 inside the network only: the state stays close.
    assert (found - expected).abs().max() < 0.05


def test_autocast_reaches_the_network_alone():
    energy = toys.smooth()
    seen = []
    energy.classifier.body[1].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        value, score = energy_and_score(energy, images(), Y)
    assert seen == [torch.bfloat16]
    assert value.dtype == score.dtype == torch.float32


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda e: e.energy(images(), Y.float()), "class index"),
        (lambda e: e.energy(images(), Y[:2]), "one class index per image"),
        (lambda e: e.energy(images(), Y + 1), "classes are 0 to 2"),
        (lambda e: e.energy(images(), Y - 1), "classes are 0 to 2"),
        (lambda e: e.logits(images()[:, :1]), "must have shape"),
        (lambda e: e.posterior(images()[..., :2]), "must have shape"),
        (lambda e: e.logits(images()[0]), "must have shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(toys.smooth())
    assert "\n" not in str(error.value)


def test_eight_bit_images_are_refused():
    with pytest.raises(TypeError, match="Divide 8-bit images by 255"):
        toys.smooth().logits((images() * 255).byte())


@pytest.mark.parametrize(
    "options",
    [
        {"gauge": "softmax"},
        {"support": "box"},
        {"gain": 0.0},
        {"gain": float("inf")},
        {"support": "clamp"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="ClassifierEnergy"):
        toys.smooth(**options)


def test_a_box_needs_a_diagonal_reference():
    mean = torch.full((1, 4, 4), 0.5)
    classifier = toys.Smooth(dim=16)
    ClassifierEnergy(classifier, WhiteNoise(mean), support="reflect")
    with pytest.raises(ValueError, match="acts on each pixel alone"):
        ClassifierEnergy(classifier, SpectralNoise(mean), support="reflect")


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="the classifier takes images"):
        ClassifierEnergy(toys.Smooth(), toys.reference(), PixelSpace([0.5], [0.5], (3, 4)))
    with pytest.raises(ValueError, match="positive std"):
        PixelSpace([0.5], [0.0], (3, 4))
