"""The worst image near an image, against closed forms, and what it leaves untouched."""

import pytest
import torch
import toys
from torch.nn import functional

from ebm_from_clf import ChainStore, Contrastive, Langevin, Objective, ReferenceStart
from ebm_from_clf.adversarial import Adversarial, _ascent, _unit
from ebm_from_clf.data import Images
from ebm_from_clf.evaluate import accuracy, evaluate, robust_accuracy

X = torch.rand(12, *toys.SHAPE, generator=toys.seeded(2))
Y = torch.arange(12) % 3


def slope(energy, y):
    """What a linear classifier of two classes gains in the margin against y per pixel."""
    w = energy.classifier.weight.detach()
    return ((w[1 - y] - w[y]).view(-1, *toys.SHAPE) / energy.space.std).flatten(1)


def loss(energy, x, y):
    return functional.cross_entropy(energy.logits(x), y, reduction="none")


@pytest.mark.parametrize(
    "options, moved",
    [
        ({"n_steps": 1, "step": 0.3}, 0.2),
        ({"n_steps": 3}, 0.2),
        ({"n_steps": 10, "step": 0.04}, 0.2),
        ({"n_steps": 2, "step": 0.03}, 0.06),
    ],
)
def test_worst_point_of_a_linear_classifier_is_its_closed_form(options, moved):
    """x + r (w_other - w_y) / |w_other - w_y|, where pixels are far from black and white."""
    energy, y = toys.linear(n_classes=2), Y % 2
    x = 0.3 + 0.4 * X
    found = Adversarial(0.2, **options)(energy, x, y) - x
    direction = slope(energy, y)
    expected = moved * direction / direction.norm(dim=1, keepdim=True)
    assert (found.flatten(1) - expected).abs().max() < 1e-6
    weight = (direction.view(-1, *toys.SHAPE) * energy.space.std).flatten(1)
    mutants = (-expected, 0.9 * expected, moved * weight / weight.norm(dim=1, keepdim=True))
    assert all((found.flatten(1) - mutant).abs().max() > 1e-3 for mutant in mutants)


def test_box_cuts_the_closed_form():
    """One step goes there in a straight line; what would leave the range stays at its border."""
    energy, y = toys.linear(n_classes=2), Y % 2
    x = X.round()
    direction = slope(energy, y)
    straight = x.flatten(1) + 0.5 * direction / direction.norm(dim=1, keepdim=True)
    found = Adversarial(0.5, n_steps=1)(energy, x, y).flatten(1)
    assert (found - straight.clamp(0, 1)).abs().max() < 1e-6
    assert (straight - straight.clamp(0, 1)).abs().max() > 0.05


def test_ascent_is_that_of_the_cross_entropy_and_outlasts_it():
    energy = toys.smooth().double()
    x = X.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(energy, x, Y).sum(), x)
    assert (_unit(gradient) - _unit(_ascent(energy, x, Y))).abs().max() < 1e-9
    # 200 times the logits: p_y is 1 to rounding, and the cross-entropy is flat.
    energy = toys.smooth()
    with torch.no_grad():
        energy.classifier.body[-1].weight.mul_(200)
    x = X.clone().requires_grad_()
    y = energy.logits(x).argmax(1)
    (gradient,) = torch.autograd.grad(loss(energy, x, y).sum(), x)
    sure = gradient.flatten(1).norm(dim=1) == 0
    assert sure.any() and _ascent(energy, x, y).flatten(1).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("options", [{}, {"n_steps": 10}, {"n_steps": 4, "step": 5.0}])
@pytest.mark.parametrize("radius", [0.1, 1.5])
def test_worst_images_stay_in_ball_and_box_and_are_worse(radius, options):
    energy = toys.smooth()
    x = torch.cat([X, X.round()])
    y = Y.repeat(2)
    found = Adversarial(radius, **options)(energy, x, y)
    distance = (found - x).flatten(1).norm(dim=1)
    assert distance.max() <= radius + 1e-5 and distance.max() > 0.5 * radius
    assert found.min() >= 0 and found.max() <= 1
    before, after = loss(energy, x, y).detach(), loss(energy, found, y).detach()
    assert after.mean() > before.mean()
    random = torch.randn(x.shape, generator=toys.seeded(7))
    step = distance.view(-1, 1, 1, 1) * _unit(random)
    assert after.mean() > loss(energy, (x + step).clamp(0, 1), y).mean()


def test_more_radius_is_worse():
    energy = toys.smooth()
    worse = [
        loss(energy, Adversarial(r, n_steps=10)(energy, X, Y), Y).mean() for r in (0, 0.1, 0.5)
    ]
    assert worse[0] < worse[1] < worse[2]


def test_an_image_outside_the_range_is_moved_by_the_radius_at_most():
    energy, x = toys.smooth(), 1.6 * X - 0.3
    found = Adversarial(0.1)(energy, x, Y)
    assert (found - x).flatten(1).norm(dim=1).max() < 0.1 + 1e-6
    assert (found <= x.clamp(min=1)).all() and (found >= x.clamp(max=0)).all()


def test_modes_flags_and_gradients_are_left_alone():
    energy = toys.smooth()
    energy.classifier.train()
    energy.classifier.body[1].bias.requires_grad_(False)
    flags = [p.requires_grad for p in energy.parameters()]
    inside = []
    energy.classifier.register_forward_hook(
        lambda m, i, o: inside.append(m.training or any(p.requires_grad for p in m.parameters()))
    )
    found = Adversarial(0.3)(energy, X, Y)
    assert inside == [False] * 3 and not found.requires_grad
    with pytest.raises(RuntimeError):
        Adversarial(0.3)(energy, X[..., :2], Y)
    assert energy.classifier.training
    assert [p.requires_grad for p in energy.parameters()] == flags
    assert all(p.grad is None for p in energy.parameters())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(Adversarial(0.3)(energy, X.clone(), Y.clone()), found)
    with torch.autocast("cpu", torch.bfloat16):
        near = Adversarial(0.3)(energy, X, Y)
    assert near.dtype == torch.float32 and 0 < (near - found).abs().max() < 0.05
    assert Adversarial()(energy, X, Y) is X


def test_one_class_has_no_worst_image():
    with pytest.raises(ValueError, match="2 classes or more"):
        Adversarial(0.1)(toys.linear(n_classes=1), X, torch.zeros(12).long())


@pytest.mark.parametrize(
    "options",
    [{"radius": -1.0}, {"radius": float("inf")}, {"n_steps": 0}, {"step": 0.0}],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="Adversarial"):
        Adversarial(**options)


def test_the_objective_moves_clean_images_and_nothing_else():
    energy = toys.smooth()
    terms, sizes = [], []
    energy.classifier.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    for adversarial in (Adversarial(), Adversarial(0.4, n_steps=2)):
        chains = ChainStore(energy.reference, ReferenceStart(energy.reference), 3)
        objective = Objective(adversarial=adversarial, label_smoothing=0.1)
        gen = Contrastive(energy, Langevin(n_steps=2), chains, objective)
        terms.append(gen.terms(X[:6], Y[:6], X[6:], (X, Y)))
    # Two steps with the clean images alone, and then one pass of all images together.
    assert sizes == [24, 12, 12, 24]
    clean, moved = terms
    assert torch.equal(clean.contrast, moved.contrast)
    worst = Adversarial(0.4, n_steps=2)(energy, X, Y)
    for found, x in ((clean, X), (moved, worst)):
        expected = functional.cross_entropy(energy.logits(x), Y, label_smoothing=0.1)
        assert found.cross_entropy.item() == pytest.approx(expected.item(), rel=1e-5)
        assert found.hits == (energy.logits(x).argmax(1) == Y).float().mean()
    assert moved.cross_entropy > clean.cross_entropy + 0.01
    moved.cross_entropy.backward()
    assert all(p.grad is not None and p.grad.any() for p in energy.classifier.parameters())


@pytest.mark.parametrize("radius", [0.02, 0.1])
def test_robust_accuracy_of_a_linear_classifier_is_counted(radius):
    """Right is an image whose margin is more than the radius times the slope's norm."""
    energy = toys.linear(n_classes=2)
    x = torch.randint(60, 196, (300, *toys.SHAPE), generator=toys.seeded(), dtype=torch.uint8)
    y = energy.logits(x / 255).argmax(1).where(torch.arange(300) < 270, torch.tensor(0))
    logits = energy.logits(x / 255).detach()
    margin = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None]))[:, 0]
    expected = float((margin > radius * slope(energy, y).norm(dim=1)).double().mean())
    data = Images(x, y, "ab")
    found = robust_accuracy(energy, data, Adversarial(radius))
    assert found == pytest.approx(expected)
    assert 0.05 < found < accuracy(energy, data)
    numbers = evaluate(energy, data, Adversarial(radius))
    assert numbers["robust_accuracy"] == found
    assert numbers["adversarial"] == {"radius": radius, "n_steps": 3, "step": 2.5 * radius / 3}
    assert evaluate(energy, data, Adversarial()) == evaluate(energy, data)
    assert "robust_accuracy" not in evaluate(energy, data)
