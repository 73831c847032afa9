"""Passes in reduced precision: which, that they learn alike, and under the caller's own."""

import pytest
import torch
from test_finetune import QUICK, digits, energy  # noqa: F401 (a fixture)
from torch import nn

from ebm_from_clf import learner, precision
from ebm_from_clf.denoise import WarmStart
from ebm_from_clf.finetune import Finetuner, finetune
from ebm_from_clf.precision import is_reduced, passes
from ebm_from_clf.settings import Settings

CPU = torch.device("cpu")


def learned(digits, autocast=False, **options):  # noqa: F811
    """Returns the weights after some updates, flat."""
    e = energy(digits)
    with passes(autocast, CPU):
        finetune(e, digits, Settings(**(QUICK | {"updates": 6} | options)))
    return torch.cat([p.detach().flatten() for p in e.classifier.parameters()])


def test_only_the_network_is_reduced(digits):  # noqa: F811
    e = energy(digits)
    seen = set()
    tuner = Finetuner(e, digits, Settings(updates=2, precision="bfloat16", **QUICK))
    tuner.step(*next(tuner.batches()))  # where norms are folded, which is checked in float32
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, _, out: seen.add(out.dtype) if isinstance(m, nn.Conv2d) else None
    )
    try:
        tuner.run()
    finally:
        handle.remove()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in e.classifier.parameters()} == {torch.float32}
    assert all(p.grad.any() for p in e.classifier.parameters())
    x, y, *_ = next(tuner.batches())
    assert tuner.gen.synthesize(y).images.dtype == torch.float32
    assert e.logits(x).dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("warm", [0, 3])
def test_it_learns_what_single_precision_learns(digits, warm):  # noqa: F811
    options = {"optimizer": "sgd", "warm_start": WarmStart(warm)}
    before = torch.cat([p.detach().flatten() for p in energy(digits).classifier.parameters()])
    single = learned(digits, **options) - before
    reduced = learned(digits, precision="bfloat16", **options) - before
    difference = (single - reduced).norm() / single.norm()
    assert 1e-5 < difference < 0.15


def test_weights_are_followed_under_an_autocast_of_the_caller(digits):  # noqa: F811
    """It remembers weights as they were when it first met them, unless it is told to forget."""
    reduced = learned(digits, precision="bfloat16")
    assert torch.equal(learned(digits, autocast=True), reduced)


@pytest.mark.parametrize("faster", [True, False])
def test_auto_is_what_the_network_is_faster_in(digits, monkeypatch, faster):  # noqa: F811
    times = iter([9, 0, 4, 3, 5, 3, 4, 3.3] if faster else [9, 0, 4, 3.3, 5, 3.5, 4, 3.4])
    monkeypatch.setattr(precision, "_seconds", lambda energy, reduced: next(times))
    e = energy(digits)
    assert is_reduced("auto", e) is faster
    assert is_reduced("bfloat16", e) and not is_reduced("float32", e)


def test_what_was_found_faster_stays_in_a_run_that_is_resumed(digits, monkeypatch):  # noqa: F811
    settings = Settings(**QUICK, updates=2, precision="auto")
    found = iter([True, False])
    monkeypatch.setattr(learner, "is_reduced", lambda *_: next(found))
    first, second = (Finetuner(energy(digits), digits, settings) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert second.learner.reduced


def test_the_time_of_a_pass_is_measured_and_leaves_no_trace(digits):  # noqa: F811
    e = energy(digits).train()
    state = torch.get_rng_state()
    assert all(0 < precision._seconds(e, reduced) < 60 for reduced in (False, True))
    assert e.training and all(p.requires_grad and p.grad is None for p in e.parameters())
    assert torch.equal(state, torch.get_rng_state()) and not torch.is_autocast_enabled("cpu")


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`precision` is .*bfloat16"):
        Settings(precision="half")
