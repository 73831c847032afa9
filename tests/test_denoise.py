"""The warm start: its closed forms, its limits, what it refuses, and its stage in a run."""

import copy
import json
import math
import sys
from dataclasses import replace

import pytest
import stats
import timm
import torch
import toys
from torch import nn
from torch.nn import functional

from ebm_from_clf import (
    ClassifierEnergy,
    FittedGaussian,
    Objective,
    PixelSpace,
    Settings,
    UsageError,
    WhiteNoise,
    convert,
    denoise,
    langevin,
    run,
)
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.chain_settings import ChainSettings, StartSettings
from ebm_from_clf.data import gather, load_data
from ebm_from_clf.denoise import WarmStart, check_twice, denoising, weight_of
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.marginal import Marginal
from ebm_from_clf.objective import likelihood
from ebm_from_clf.recipe import find_recipe
from ebm_from_clf.report import write_report

Y = torch.tensor([0, 1, 2])


def z_scores(loss, parameters, n=200):
    """The mean gradient over n independent calls, in standard errors, of every number."""
    rows = [flat(torch.autograd.grad(loss(), parameters)) for _ in range(n)]
    table = torch.stack(rows).double()
    return table.mean(0) / (table.std(0) / n**0.5)


class Quadratic(nn.Module):
    """F = <m, u> + sum_i h_i u_i^2 / 2, of which B = m + h u."""

    def __init__(self, mean, slope):
        super().__init__()
        self.mean, self.slope = nn.Parameter(mean), nn.Parameter(slope)

    def forward(self, u, y):
        return ((1 - self.slope) * u.square() / 2 - self.mean * u).sum(1)


@pytest.mark.parametrize(("temperature", "noise"), [(0.3, 0.3**0.5), (0.3, 0.2), (2.0, 0.7)])
def test_least_loss_is_the_gaussian_of_the_blurred_data(temperature, noise):
    """At B = m + h v with 1 - h = T / (S + s^2) and m = (1 - h) E u, for data of variance S."""
    g = toys.seeded(1)
    center = torch.tensor([0.4, -1.0, 2.0])
    variance = torch.tensor([0.2, 1.0, 3.0])

    def worst(own, used):
        """The gradient where the loss of a temperature is least, with that of another in use."""
        shrink = own / (variance + noise**2)
        energy = Quadratic(shrink * center, 1 - shrink)

        def loss():
            u = center + variance.sqrt() * torch.randn(400, 3, generator=g)
            return denoising(energy, u, Y, noise=noise, temperature=used, generator=g)

        return z_scores(loss, list(energy.parameters())).abs().max()

    assert worst(temperature, temperature) < 5
    # T / s for T / s^2 in the target, which is the target of another temperature.
    assert worst(temperature, temperature * noise) > 5


@pytest.mark.parametrize("noise", [0.5, 1.2])
def test_linear_classifier_learns_the_mean_of_the_data(noise):
    """B is constant, and the gradient in it is (B - mean u) / D whatever the noise."""
    energy, g = toys.linear(), toys.seeded(2)
    a = toys.dense(energy.reference)
    center = torch.randn(toys.DIM, generator=g)
    star = torch.linalg.solve(a.T, center.double()) / energy.gain
    weight = (star.view(toys.SHAPE) * energy.space.std.double()).flatten().float()
    y = torch.zeros(200, dtype=torch.int64)

    def loss():
        u = (center + torch.randn(200, toys.DIM, generator=g)).view(-1, *toys.SHAPE)
        return denoising(energy, u, y, noise=noise, temperature=0.5, generator=g)

    for factor, holds in ((1.0, True), (0.8, False)):
        with torch.no_grad():
            energy.classifier.weight[0] = factor * weight
        z = z_scores(loss, [energy.classifier.weight], n=100).view(3, -1)
        assert (z[0].abs().max() < 5) == holds
        assert z[1:].isnan().all()  # other classes are not touched


def test_noise_of_variance_t_reconstructs_the_image():
    energy, u = toys.smooth(gain=2.0), torch.randn(3, *toys.SHAPE, generator=toys.seeded(4))
    found = denoising(energy, u, Y, noise=0.5, temperature=0.25, generator=toys.seeded(5))
    v = u + 0.5 * torch.randn(u.shape, generator=toys.seeded(5))
    b = energy.reference.encode(energy.reconstruct(energy.reference.decode(v), Y))
    assert found.item() == pytest.approx((b - u).square().mean().item() / 2, rel=1e-4)


def smooth():
    energy = toys.smooth(gain=1.7).double()
    with torch.no_grad():
        for p in energy.classifier.parameters():
            p.mul_(3)  # curved enough for the divergence to count
    return energy, torch.randn(3, *toys.SHAPE, generator=toys.seeded(6), dtype=torch.float64)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients if g is not None])


def parameters_of(energy):
    """All but the bias of the logits, which no score depends on."""
    return list(energy.classifier.parameters())[:-1]


def score_matching(energy, u, temperature):
    """The gradients of the mean of |R|^2 / 2 + T div B and of its first term alone."""
    u = u.clone().requires_grad_()
    (b,) = torch.autograd.grad(energy.tilt(u, Y).sum(), u, create_graph=True)
    half = (u - b).square().sum() / 2 / len(u)
    units = torch.eye(toys.DIM, dtype=u.dtype).view(-1, 1, *toys.SHAPE).expand(-1, *u.shape)
    divergence = sum(
        (torch.autograd.grad(b, u, e, create_graph=True)[0] * e).sum() for e in units
    ) / len(u)
    weights = parameters_of(energy)
    both = torch.autograd.grad(half + temperature * divergence, weights, retain_graph=True)
    return flat(both), flat(torch.autograd.grad(half, weights, allow_unused=True))


def cubature(monkeypatch, module):
    """Noise in turn along plus and minus every axis: its moments up to the third are exact."""
    points = toys.DIM**0.5 * torch.eye(toys.DIM, dtype=torch.float64)
    points = torch.cat([points, -points]).view(-1, *toys.SHAPE)
    n = len(points)
    monkeypatch.setattr(
        module, "normal", lambda like, g: points.repeat_interleave(len(like) // n, 0)
    )
    return n


def orders(errors):
    return [float(torch.log2(a / b)) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize("temperature", [0.2, 1.5])
def test_one_step_from_the_data_is_score_matching_and_not_reconstruction(monkeypatch, temperature):
    """CD-1 over e^2 / 2 tends to minus the gradient of |R|^2 / 2 + T div B, with order 2."""
    energy, u = smooth()
    n = cubature(monkeypatch, langevin)
    weights = parameters_of(energy)
    limit, reconstruction = score_matching(energy, u, temperature)
    many, labels = u.repeat(n, 1, 1, 1), Y.repeat(n)
    errors = []
    for e in (0.04, 0.02, 0.01):
        sampler = Langevin(n_steps=1, step_size=e, temperature=temperature)
        moved, _ = sampler(energy, many, labels, generator=toys.seeded())
        contrast = energy.tilt(u, Y).mean() - energy.tilt(moved, labels).mean()
        learned = flat(torch.autograd.grad(contrast, weights)) / (e**2 / 2)
        errors.append((learned + limit).norm() / limit.norm())
    assert errors[-1] < 0.02 and all(1.8 < order < 2.2 for order in orders(errors))
    assert (learned + reconstruction).norm() / limit.norm() > 10 * errors[-1]


@pytest.mark.parametrize("temperature", [0.2, 1.5])
def test_little_noise_is_score_matching_and_not_reconstruction(monkeypatch, temperature):
    """D times the gradient of the loss tends to the same, as the noise goes to 0."""
    energy, u = smooth()
    n = cubature(monkeypatch, denoise)
    limit, reconstruction = score_matching(energy, u, temperature)
    errors = []
    for s in (0.04, 0.02, 0.01):
        loss = denoising(
            energy,
            u.repeat(n, 1, 1, 1),
            Y.repeat(n),
            noise=s,
            temperature=temperature,
            generator=toys.seeded(),
        )
        learned = toys.DIM * flat(torch.autograd.grad(loss, parameters_of(energy)))
        errors.append((learned - limit).norm() / limit.norm())
    assert errors[-1] < 0.02 and all(1.8 < order < 2.2 for order in orders(errors))
    assert (learned - reconstruction).norm() / limit.norm() > 10 * errors[-1]


class OneUnit(nn.Module):
    """F = h(w u + b) in one dimension."""

    def __init__(self, rectifier):
        super().__init__()
        self.rectifier = rectifier
        self.weight = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-0.6, dtype=torch.float64))

    def tilt(self, u):
        return self.rectifier(self.weight * u + self.bias).flatten()

    def forward(self, u, y):
        return u.square().flatten() / 2 - self.tilt(u)

    def gradients(self, value, **options):
        return torch.stack(torch.autograd.grad(value, (self.weight, self.bias), **options))


def on_a_grid(monkeypatch, n):
    """Data N(.4, .9^2), the kink between two of them, and noise N(0, 1), with their weights."""
    # The golden ratio keeps the two lattices out of step.
    spacing = 4 * (1 + 5**0.5) / n
    u = 0.6 / 1.7 + spacing * (torch.arange(n, dtype=torch.float64) - n / 2 + 0.5)
    z = torch.linspace(-6, 6, 97).double()
    share = torch.exp(-((u - 0.4) ** 2) / (2 * 0.81)), torch.exp(-(z**2) / 2)
    share = [part / part.sum() for part in share]
    monkeypatch.setattr(langevin, "normal", lambda like, g: z.repeat(n)[:, None])
    many = u.repeat_interleave(len(z))[:, None]
    return u[:, None], share[0], many, (share[0][:, None] * share[1]).flatten()


def one_step(energy, e, grid):
    """What a step of the sampler from the data learns, over e^2 / 2."""
    u, share, many, both = grid
    y = torch.zeros(len(many), dtype=torch.int64)
    moved, _ = Langevin(n_steps=1, step_size=e)(energy, many, y, generator=toys.seeded())
    gap = (share * energy.tilt(u)).sum() - (both * energy.tilt(moved)).sum()
    return energy.gradients(gap) / (e**2 / 2)


def reconstruction(energy, grid, temperature):
    """Minus the gradient of |R|^2 / 2 + T div B as autograd has it."""
    u = grid[0].clone().requires_grad_()
    (b,) = torch.autograd.grad(energy.tilt(u).sum(), u, create_graph=True)
    value = (u - b).square() / 2
    if temperature:
        value = value + torch.autograd.grad(b.sum(), u, create_graph=True)[0]
    mean = (grid[1] * value.flatten()).sum()
    return -energy.gradients(mean, allow_unused=True, materialize_grads=True)


def test_a_soft_rectifier_has_the_numbers_of_the_theory(monkeypatch):
    """CD-1 of softplus(1.7 u - .6) against score matching, at steps that shrink."""
    energy, grid = OneUnit(functional.softplus).double(), on_a_grid(monkeypatch, 400)
    limit = reconstruction(energy, grid, 1)
    assert limit.tolist() == pytest.approx([-0.57971, -0.13642], abs=1e-5)
    found = [one_step(energy, e, grid) for e in (0.4, 0.2, 0.1, 0.05)]
    expected = [-0.5759, -0.5787, -0.5794, -0.5796]
    assert [float(g[0]) for g in found] == pytest.approx(expected, abs=6e-5)
    errors = [(g - limit).norm() for g in found]
    assert all(1.8 < order < 2.2 for order in orders(errors))
    assert (reconstruction(energy, grid, 0) - limit).norm() > 0.2


def kink(variance):
    """E[d (u - w)] and the density at the kink, with what its motion adds to both gradients."""
    w, b, mean, std = 1.7, -0.6, 0.4, variance**0.5
    at = -b / w
    t = (mean - at) / std
    mass = (1 + math.erf(t / math.sqrt(2))) / 2
    p = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) / std
    slope = p * (mean - at) / std**2
    frozen = (mean - w) * mass + std**2 * p
    # Where the kink is, -b / w, R^2 / 2 jumps by w^2 / 2 - w u, and |w| p is taken.
    motion = (w**2 / 2 - w * at) * p - w * slope
    return frozen, p, torch.tensor([motion * b / w**2, motion * -1 / w])


def test_a_rectifier_learns_its_kink_which_autograd_does_not_see(monkeypatch):
    """CD-1 tends to score matching with the density at the kink, with order 1."""
    energy, grid = OneUnit(functional.relu).double(), on_a_grid(monkeypatch, 8000)
    frozen, p, motion = kink(0.81)
    limit = torch.tensor([frozen - p, 0.0]) + motion
    assert frozen == pytest.approx(-0.3186, abs=1e-4)
    assert limit.tolist() == pytest.approx([-0.8298, -0.1943], abs=1e-4)
    errors = [(one_step(energy, e, grid) - limit).norm() for e in (0.4, 0.2, 0.1)]
    assert errors[-1] < 0.04 and all(0.6 < order < 1.3 for order in orders(errors))
    # The trace of the Hessian is 0 but for the kink, so that the rest is reconstruction.
    seen = reconstruction(energy, grid, 0)
    assert (seen - torch.tensor([frozen, 0.0])).abs().max() < 1e-4
    assert (seen - limit).norm() > 10 * errors[-1]


def test_denoising_sees_a_kink_and_holds_it_still():
    """For blurred data it has the density at the kink, but no gradient moves a bias."""
    energy, g, noise = OneUnit(functional.relu).double(), toys.seeded(9), 0.5
    frozen, p, motion = kink(0.81 + noise**2)
    y, rows = torch.zeros(4000, dtype=torch.int64), []
    for _ in range(100):
        u = 0.4 + 0.9 * torch.randn(4000, 1, generator=g, dtype=torch.float64)
        loss = denoising(energy, u, y, noise=noise, temperature=1.0, generator=g)
        rows.append(energy.gradients(loss, allow_unused=True, materialize_grads=True))
    table = torch.stack(rows)
    assert not table[:, 1].any() and motion[1] < -0.1
    stats.assert_mean(table[:, 0], p - frozen)
    # Without the density at the kink, or with its motion, it would be another number.
    for wrong in (-frozen, p - frozen - motion[0]):
        error = table[:, 0].std() / 10
        assert abs(table[:, 0].mean() - wrong) > 8 * error


def test_weighted_loss_teaches_what_steps_from_the_data_teach(monkeypatch):
    """Its gradient is that of the contrastive loss after K small steps, cross-entropy aside."""
    energy, u = smooth()
    n = cubature(monkeypatch, denoise)
    cubature(monkeypatch, langevin)
    weights = parameters_of(energy)
    many, labels = u.repeat(n, 1, 1, 1), Y.repeat(n)
    sampler = Langevin(n_steps=1, step_size=0.01, temperature=0.3)
    moved, _ = sampler(energy, many, labels, generator=toys.seeded())
    scores = [energy.tilt(u, Y) / energy.gain, energy.tilt(moved, labels) / energy.gain]
    contrast = flat(torch.autograd.grad(likelihood(*scores), weights))
    loss = denoising(energy, many, labels, noise=0.01, temperature=0.3, generator=toys.seeded())
    learned = flat(torch.autograd.grad(loss, weights))
    weight = weight_of(sampler, toys.DIM, energy.gain)
    assert (weight * learned - contrast).norm() < 0.02 * contrast.norm()
    assert weight_of(replace(sampler, n_steps=7), toys.DIM, energy.gain) == pytest.approx(
        7 * weight
    )


class Bumps(nn.Module):
    """An energy of 0, changed by weights of u^2 and u^4; confined as asked."""

    def __init__(self, confine):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.confine = confine

    def forward(self, u, y):
        return -self.weight[0] * u.square().sum(1) / 2 - self.weight[1] * u.pow(4).sum(1) / 4


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_reflected_noise_leaves_uniform_data_flat(temperature):
    """Uniform data on a box stay uniform; their energy is 0, up to the border."""
    reference = WhiteNoise(torch.full((1, 1, 1), 0.5), 0.5)
    box = ClassifierEnergy(toys.Smooth(2, 1), reference, support="reflect")
    g = toys.seeded(8)
    worst = []
    for confine in (box.confine, lambda u: box.confine(u.detach()) + u - u.detach()):
        energy = Bumps(lambda u, confine=confine: confine(u.view(-1, 1, 1, 1)).view(-1, 1))

        def loss(energy=energy):
            u = 2 * torch.rand(500, 1, generator=g) - 1
            return denoising(energy, u, Y, noise=0.4, temperature=temperature, generator=g)

        worst.append(z_scores(loss, [energy.weight]).abs().max())
    assert worst[0] < 5
    assert worst[1] > 5  # reflected pixels whose score is not turned round


def test_clamped_pixels_teach_nothing_and_the_others_all():
    """Noise stays in the box; a pixel at its border is judged on the inner side alone."""
    reference = WhiteNoise(torch.full(toys.SHAPE, 0.5), 0.25)
    energy = ClassifierEnergy(toys.Smooth(), reference, support="clamp")
    seen = []
    energy.classifier.register_forward_hook(lambda m, i, o: seen.append(i[0].detach()))
    x = torch.rand(3, *toys.SHAPE, generator=toys.seeded(9)).round()
    u = reference.encode(x)
    found = denoising(energy, u, Y, noise=0.4, temperature=0.16, generator=toys.seeded(7))
    assert seen[0].min() > -1e-6 and seen[0].max() < 1 + 1e-6
    away = u + 0.4 * torch.randn(u.shape, generator=toys.seeded(7))
    inside = (away.abs() <= 2).float()
    b = reference.encode(energy.reconstruct(reference.decode(away.clamp(-2, 2)), Y))
    expected = (inside * (b - u)).square().mean() / 2
    assert 0.3 < inside.mean() < 0.7
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_joint_scores_have_one_energy_for_all_classes():
    energy, u = toys.smooth(), torch.randn(3, *toys.SHAPE, generator=toys.seeded(4))
    options = dict(noise=0.5, temperature=1.0)
    found = [
        denoising(Marginal(energy), u, y, **options, generator=toys.seeded(5))
        for y in (Y, Y.flip(0))
    ]
    assert torch.equal(*found)
    assert found[0] != denoising(energy, u, Y, **options, generator=toys.seeded(5))


# What cannot be done.

SPACE = PixelSpace([0.5] * 3, [0.5] * 3, (32, 32))
NETWORKS = {
    "vit": (
        dict(model_name="vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24),
        "fused attention.*set_fused_attn.*TIMM_FUSED_ATTN=0.*SDPBackend.MATH",
    ),
    "hard-sigmoid": (
        dict(model_name="mobilenetv3_small_050"),
        "hard sigmoid.*no switch.*`updates` of `warm_start` to 0",
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_cannot_be_differentiated_twice_is_refused_with_its_remedy(kind):
    """Whether it can be depends on the version of torch; the check must agree with it."""
    options, message = NETWORKS[kind]
    with torch.random.fork_rng():
        classifier = timm.create_model(**options, num_classes=3).eval()
    x = torch.rand(1, 3, 32, 32, generator=toys.seeded()).requires_grad_()
    (g,) = torch.autograd.grad(classifier(x)[:, 0].sum(), x, create_graph=True)
    try:
        g.square().sum().backward()
    except RuntimeError:
        with pytest.raises(UsageError, match=f"differentiate the classifier twice.*{message}"):
            check_twice(classifier, SPACE)
    else:
        check_twice(classifier, SPACE)


def test_the_remedy_for_attention_works():
    options, _ = NETWORKS["vit"]
    fused = timm.layers.use_fused_attn()
    try:
        timm.layers.set_fused_attn(False)
        with torch.random.fork_rng():
            classifier = timm.create_model(**options, num_classes=3)
    finally:
        timm.layers.set_fused_attn(fused)
    check_twice(classifier, SPACE)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("derivative for aten::_scaled_dot_product_x is not implemented", "fused attention"),
        ("derivative for aten::hardsigmoid_backward is not implemented", "hard sigmoid"),
        ("torch.compile with aot_autograd does not support double backward", "before torch.comp"),
        ("derivative for aten::other_backward is not implemented", "an operation.*other_backward"),
    ],
)
def test_each_cause_has_its_text(monkeypatch, reason, message):
    def fail(*args, **kwargs):
        raise RuntimeError(reason)

    monkeypatch.setattr(denoise, "denoising", fail)
    with pytest.raises(UsageError, match=message) as error:
        check_twice(toys.Smooth(), toys.space())
    assert "\n" not in str(error.value)


def test_other_errors_pass_through(monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(denoise, "denoising", fail)
    with pytest.raises(torch.OutOfMemoryError):
        check_twice(toys.Smooth(), toys.space())


def test_a_head_of_zeros_is_taught_all_the_same():
    """Its B is 0, but not the gradient of B in the head."""
    energy = toys.smooth()
    head = energy.classifier.body[-1]
    nn.init.zeros_(head.weight)
    u = torch.randn(3, *toys.SHAPE, generator=toys.seeded(4))
    denoising(energy, u, Y, noise=1.0, temperature=1.0, generator=toys.seeded()).backward()
    assert head.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"updates": -1}, {"noise": 0.0}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="WarmStart"):
        WarmStart(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(updates=5), "5 of 5 updates"),
        (dict(sampler=Langevin(temperature=0.0)), "the energy is descended"),
        (dict(sampler=Langevin(tilt_norm=1.0)), "norm of the drift is fixed"),
    ],
)
def test_settings_without_a_score_to_match_are_refused(options, message):
    Settings(**({"updates": 6} | options))
    with pytest.raises(ValueError, match=message):
        Settings(**({"updates": 6} | options), warm_start=WarmStart(5))


# The stage in a run.

SIZE = (16, 16)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits8x8", "train", size=SIZE, channels=1)


def energy_of(digits, gain=600.0):
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        network = timm.create_model(
            "resnet18",
            in_chans=1,
            num_classes=10,
            layers=(1, 1, 0, 0),
            channels=(16, 32, 32, 32),
            stem_type="deep",
            stem_width=8,
            replace_stem_pool=True,
            pretrained_cfg_overlay=dict(input_size=(1, *SIZE), mean=(0.5,), std=(0.5,)),
        )
    reference = FittedGaussian.fit(gather(digits)[0], floor=0.05)
    return convert(network, reference=reference, gain=gain, support="clamp")


def tuner_of(digits, updates=6, warm=3, **options):
    settings = Settings(
        updates=updates,
        warm_start=WarmStart(warm),
        **dict(
            batch_size=16,
            clean_batch_size=16,
            sampler=Langevin(n_steps=2, step_size=0.1, temperature=0.03),
            start=StartSettings(rank=4),
            chains=ChainSettings(per_class=20),
            grid_every=0,
        )
        | options,
    )
    return Finetuner(energy_of(digits), digits, settings)


def advance(tuner, n):
    for batch in tuner.batches():
        tuner.step(*batch)
        if tuner.update == n:
            return


@pytest.mark.parametrize("interrupted", [2, 4])
def test_resumed_equals_uninterrupted_bit_for_bit(digits, interrupted):
    whole, first, second = (tuner_of(digits) for _ in range(3))
    whole.run()
    advance(first, interrupted)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.run()
    lines = [[line | {"seconds": 0} for line in t.journal.lines] for t in (whole, second)]
    assert lines[0][-1] == lines[1][-1] and lines[0][-1]["update"] == 6
    assert torch.equal(second.chains.state, whole.chains.state)
    kept = zip(
        second.energy.classifier.parameters(), whole.energy.classifier.parameters(), strict=True
    )
    assert all(torch.equal(p, q) for p, q in kept)


def test_stage_descends_both_losses_with_their_weights(digits):
    tuner = tuner_of(digits, objective=Objective(cross_entropy=3.0))
    step, totals = tuner.descent.step, []
    tuner.descent.step = lambda loss, *rest: (totals.append(loss.item()), step(loss, *rest))[1]
    advance(tuner, 1)
    loss, cross_entropy, _, _ = tuner.journal._chainless[0].tolist()
    expected = 2 * 0.005 * 256 / 600 * loss + 3 * cross_entropy
    assert totals == [pytest.approx(expected, rel=1e-5)]


def test_with_momentum_the_weight_is_the_time_of_the_chain():
    """Mutant: K e^2 / 2, the time without."""
    sampler = Langevin(n_steps=5, step_size=0.1, momentum=0.8)
    weight = weight_of(sampler, 256, 600.0)
    assert weight == pytest.approx(sampler.time * 256 / 600) and weight > 2 * 5 * 0.005 * 256 / 600


def test_chains_are_begun_after_the_stage(digits):
    tuner = tuner_of(digits)
    before = tuner.chains.state.clone()
    advance(tuner, 3)
    assert torch.equal(tuner.chains.state, before) and not tuner.chains.age.any()
    advance(tuner, 4)
    assert int((tuner.chains.age == 1).sum()) == 16


def test_log_says_the_stage(digits, tmp_path):
    tuner = tuner_of(digits, updates=8, log_every=2)
    tuner.run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    stages = [(line["update"], line.get("stage")) for line in lines]
    assert stages == [(2, "warm_start"), (3, "warm_start"), (4, None), (6, None), (8, None)]
    assert all(("denoising" in line) != ("gap" in line) for line in lines)


def test_a_stage_that_goes_wrong_is_rolled_back(digits):
    tuner = tuner_of(digits, updates=12, warm=8, log_every=2)
    weight, step, done = tuner.energy.classifier.fc.weight, tuner.step, []

    def spoil(gradient):
        return torch.full_like(gradient, float("nan"))

    def faulty(*batch):
        handle = None
        if tuner.update == 5 and not done:
            handle = weight.register_hook(spoil)
            done.append(True)
        step(*batch)
        if handle is not None:
            handle.remove()

    tuner.step = faulty
    tuner.run()
    (fault,) = tuner.guard.actions
    assert "gradient is not finite" in fault["fault"]
    assert (fault["update"], fault["back_to"]) == (6, 0)
    assert tuner.update == 12
    assert all(p.isfinite().all() for p in tuner.energy.classifier.parameters())


def test_the_stage_lowers_the_denoising_loss(digits):
    options = dict(learning_rate=3e-3, warmup=5, log_every=5)
    alone = Objective(cross_entropy=0.0)
    tuner = tuner_of(digits, updates=31, warm=30, objective=alone, **options)
    tuner.run()
    losses = [line["denoising"] for line in tuner.journal.lines if "denoising" in line]
    assert 0.4 < losses[0] < 0.6  # B is about 0 at first
    assert losses[-1] < 0.8 * losses[0]
    assert tuner.guard.actions == []


def test_a_run_without_the_stage_asks_nothing_of_the_classifier(digits, monkeypatch):
    def fail(classifier, space):
        raise AssertionError

    # The package has a function of the name of the module.
    monkeypatch.setattr(sys.modules["ebm_from_clf.learner"], "check_twice", fail)
    tuner_of(digits, warm=0)
    with pytest.raises(AssertionError):
        tuner_of(digits, warm=1)


def test_refused_before_the_classifier_is_trained(tmp_path, monkeypatch):
    recipe = read_recipe(find_recipe("digits8x8"))
    recipe = replace(recipe, finetune=replace(recipe.finetune, warm_start=WarmStart(5)))

    def refuse(classifier, space):
        raise UsageError("the warm start")

    def train(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(run, "check_twice", refuse)
    monkeypatch.setattr(run, "train_classifier", train)
    with pytest.raises(UsageError, match="the warm start"):
        run.finetune_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_report_leaves_the_stage_out_of_its_curves(tmp_path):
    lines = [
        {"stage": "warm_start", "update": 1, "denoising": 0.5},
        {"update": 2, "observed": 1.0, "synthesized": 0.5},
    ]
    write_report(tmp_path / "report.html", "title", {}, history=lines)
    assert "polyline" in (tmp_path / "report.html").read_text(encoding="utf-8")
