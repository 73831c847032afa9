"""Muon: what its step is, and that a run with it resumes."""

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from ebm_from_clf import Settings
from ebm_from_clf.muon import Muon, polar


def matrix(m, n, *, condition=300.0, seed=0):
    """Returns a matrix with its singular value decomposition."""
    g = torch.Generator().manual_seed(seed)
    u, _, vt = torch.linalg.svd(torch.randn(m, n, generator=g, dtype=torch.float64), False)
    s = torch.logspace(0, -torch.log10(torch.tensor(condition)), min(m, n), dtype=torch.float64)
    return u @ torch.diag(s) @ vt, (u, s, vt)


def learned(p, gradient, **options):
    """Returns the change of a parameter in one step along a gradient."""
    before, p.grad = p.detach().clone(), gradient
    Muon([p], **options).step()
    return p.detach() - before


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_the_polar_factor_has_the_directions_of_the_matrix_and_no_lengths(shape):
    g, (u, _, vt) = matrix(*shape)
    inside = u.mT @ polar(g[None].float())[0].double() @ vt.mT
    assert (inside - inside.diag().diag()).abs().max() < 1e-4
    assert inside.diag().min() > 0.65 and inside.diag().max() < 1.25
    # The matrix itself has lengths, so that it would fail.
    assert (u.mT @ g @ vt.mT).diag().min() < 0.1


def test_polar_factors_of_several_are_those_of_each_and_zero_stays():
    several = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    several[1] = 0
    found = polar(several)
    assert torch.allclose(found, torch.cat([polar(one[None]) for one in several]), atol=1e-6)
    assert not found[1].any()
    assert torch.allclose(polar(1e12 * several), found, atol=1e-5)
    assert torch.allclose(polar(1e-12 * several), found, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (8, 5, 3, 3), (16, 16)])
def test_a_step_is_as_long_as_one_of_adam(shape):
    p = nn.Parameter(torch.zeros(shape))
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    change = learned(p, g, lr=0.5)
    # sqrt(min) singular values of about one, spread over m n entries: .2 for an entry.
    assert 0.75 < float(change.square().mean().sqrt()) / (0.2 * 0.5) < 1.15
    assert float((change * g).sum()) < 0


def test_momentum_and_decay_are_those_of_the_formula():
    g = torch.Generator().manual_seed(0)
    w, first, second = (torch.randn(6, 9, generator=g) for _ in range(3))
    p = nn.Parameter(w.clone())
    optimizer = Muon([p], lr=0.1, momentum=0.8, weight_decay=0.5)
    for gradient in (first, second):
        p.grad = gradient
        optimizer.step()
    momentum = 0.2 * first
    expected = 0.95 * w - 0.02 * 3 * polar(momentum[None])[0]
    momentum = 0.8 * momentum + 0.2 * second
    expected = 0.95 * expected - 0.02 * 3 * polar(momentum[None])[0]
    assert torch.allclose(p, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (), (12, 1, 3, 3), (1, 16, 8), (3, 40), (40, 3)], ids=str)
def test_what_is_no_matrix_is_learned_by_adamw(shape):
    g = torch.Generator().manual_seed(0)
    w, gradients = torch.randn(shape, generator=g), torch.randn(3, *shape, generator=g)
    pair = [nn.Parameter(w.clone()) for _ in range(2)]
    ours, theirs = (
        Muon([pair[0]], 0.1, weight_decay=0.1),
        torch.optim.AdamW([pair[1]], 0.1, weight_decay=0.1),
    )
    for gradient in gradients:
        for p, optimizer in zip(pair, (ours, theirs), strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(*pair)


def test_all_directions_are_learned_at_one_pace():
    # A loss that hardly depends on some directions: descent of it hardly gets there.
    g = torch.Generator().manual_seed(0)
    steep, aim = matrix(8, 8, condition=10.0)[0].float(), torch.randn(8, 8, generator=g)
    left = {}
    for name, make in (("muon", Muon), ("sgd", torch.optim.SGD)):
        p = nn.Parameter(torch.zeros(8, 8))
        optimizer = make([p], lr=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 300)
        for _ in range(300):
            optimizer.zero_grad()
            (steep @ (p - aim)).square().sum().backward()
            optimizer.step()
            schedule.step()
        left[name] = float((p.detach() - aim).norm() / aim.norm())
    assert left["muon"] < 0.15 and left["sgd"] > 0.3


def test_parameters_that_have_no_gradient_stay_and_the_layout_does_not_matter():
    g = torch.Generator().manual_seed(0)
    w, gradient = (torch.randn(8, 8, 3, 3, generator=g) for _ in range(2))
    held, plain, last = (nn.Parameter(w.clone()) for _ in range(3))
    last.data = last.data.to(memory_format=torch.channels_last)
    plain.grad, last.grad = gradient, gradient.to(memory_format=torch.channels_last)
    Muon([held, plain, last], lr=0.1).step()
    assert torch.equal(held, w) and not torch.equal(plain, w)
    assert torch.allclose(plain, last, atol=1e-6)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_it_goes_on_from_its_state():
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8, 5))
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def go(network, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()

    optimizer = Muon(network.parameters(), 0.01)
    go(network, optimizer, 3)
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    state = deepcopy(optimizer.state_dict())
    go(network, optimizer, 3)
    ended = [p.detach().clone() for p in network.parameters()]
    network.load_state_dict(weights)
    again = Muon(network.parameters(), 0.7)
    again.load_state_dict(state)
    go(network, again, 3)
    assert all(torch.equal(p, q) for p, q in zip(ended, network.parameters(), strict=True))


@pytest.mark.parametrize(
    "bad",
    [{"lr": -1.0}, {"lr": float("nan")}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"Muon: `{next(iter(bad))}` must be 0 or more"):
        Muon([nn.Parameter(torch.zeros(4, 4))], **bad)
    with pytest.raises(ValueError, match=f"Muon: `{next(iter(bad))}` must be 0 or more"):
        Muon([{"params": [nn.Parameter(torch.zeros(4, 4))], **bad}])


def test_betas_are_two_numbers():
    with pytest.raises(ValueError, match="`betas` are two numbers"):
        Muon([nn.Parameter(torch.zeros(4, 4))], betas=(0.9, 0.99, 0.99))


def test_the_state_of_another_optimiser_is_refused_and_nothing_lost():
    parameters = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    ours, other = Muon(parameters, 0.1), torch.optim.SGD(parameters, 0.3, momentum=0.9)
    adam = torch.optim.Adam(parameters, 0.3)
    for p in parameters:
        p.grad = torch.ones_like(p)
    for optimizer in (ours, other, adam):
        optimizer.step()
    held = {p: set(state) for p, state in ours.state.items()}
    for optimizer in (other, adam):
        with pytest.raises(ValueError, match="another optimiser"):
            ours.load_state_dict(optimizer.state_dict())
    assert {p: set(state) for p, state in ours.state.items()} == held
    assert ours.param_groups[0]["lr"] == 0.1


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(30, 8, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        Muon(embedding.parameters()).step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_keep_theirs(dtype):
    p = nn.Parameter(torch.randn(8, 9, generator=torch.Generator().manual_seed(0)).to(dtype))
    change = learned(p, p.detach().clone(), lr=0.5)
    assert p.dtype == dtype and p.isfinite().all()
    assert 0.75 < float(change.double().square().mean().sqrt()) / 0.1 < 1.15


def test_polar_factors_of_any_scale_are_finite_and_alike():
    one = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    for power in range(-11, 37):
        assert torch.allclose(polar(10.0**power * one), polar(one), atol=1e-4), power
    assert all(polar(10.0**power * one).isfinite().all() for power in range(-45, -11))
    assert polar(1e-20 * one).abs().max() < 1e-4
    assert not polar(torch.zeros(1, 6, 9, dtype=torch.float16)).any()


def test_a_layer_whose_gradient_has_become_zero_stays_finite():
    p = nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([p])
    p.grad = 1e-3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2500):
        optimizer.step()
        p.grad = torch.zeros_like(p)
    assert p.isfinite().all()
    # It goes on by its momentum, for some hundreds of steps of .0002 an entry; not for all.
    assert p.abs().mean() < 0.12


def test_low_precision_and_autocast_do_not_reach_the_iterations():
    one = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = polar(one.float())
    assert (polar(one).float() - exact).abs().max() < 1 / 256
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(polar(one.float()), exact)


def test_each_parameter_has_its_own_update_and_each_group_its_numbers():
    g = torch.Generator().manual_seed(0)
    pair = [nn.Parameter(torch.zeros(8, 8)) for _ in range(2)]
    other, vector = nn.Parameter(torch.zeros(4, 40)), nn.Parameter(torch.zeros(5))
    optimizer = Muon([{"params": pair, "lr": 0.1}, {"params": [other, vector], "lr": 0.3}])
    for p in (*pair, other, vector):
        p.grad = torch.randn(p.shape, generator=g)
    assert optimizer.step(lambda: 3.0) == 3.0
    for p, rate, length in ((pair[0], 0.1, 8), (pair[1], 0.1, 8), (other, 0.3, 40)):
        expected = -0.2 * rate * length**0.5 * polar(p.grad[None])[0]
        assert torch.allclose(p, expected, atol=1e-6)
    assert torch.allclose(vector, -0.3 * vector.grad.sign(), atol=1e-5)


@pytest.mark.parametrize("name", ["muon", "Muon"])
def test_settings_make_it_and_decay_what_decays(name):
    options = dict(optimizer=name, betas=(0.8, 0.99), weight_decay=0.1, learning_rate=0.01)
    network = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=4)
    optimizer = Settings(**options).create_optimizer(network)
    assert type(optimizer) is Muon
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decays) == len(list(network.parameters()))
    assert {g["lr"] for g in optimizer.param_groups} == {0.01}
    assert {g["betas"] for g in optimizer.param_groups} == {(0.8, 0.99)}
    for key, p in network.named_parameters():
        held = p.ndim < 2 or key in network.no_weight_decay()
        assert decays[id(p)] == (0 if held else 0.1), key


def test_settings_refuse_its_numbers_at_once():
    with pytest.raises(ValueError, match="`betas` must be 0 or more"):
        Settings(optimizer="muon", betas=(0.9, 1.0))
