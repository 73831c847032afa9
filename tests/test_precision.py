"""Passes in reduced precision: which, that they learn alike, and under the caller's own."""

from contextlib import nullcontext

import pytest
import torch
import toys
from test_finetune import QUICK, digits, energy, network  # noqa: F401 (a fixture)
from torch import nn

from ebm_from_clf import Langevin, SpectralNoise, edit, learner, precision, sample
from ebm_from_clf.classify import train_classifier
from ebm_from_clf.data import Augment
from ebm_from_clf.denoise import WarmStart
from ebm_from_clf.energy import ClassifierEnergy
from ebm_from_clf.finetune import Finetuner, finetune
from ebm_from_clf.precision import is_reduced, passes
from ebm_from_clf.settings import Settings


def autocast(caller=True):
    # Not one that is disabled: under it too weights would be remembered.
    return torch.autocast("cpu", torch.bfloat16) if caller else nullcontext()


def weights(network):  # noqa: F811
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def learned(digits, caller=False, **options):  # noqa: F811
    """Returns the weights after some updates, flat."""
    e = energy(digits)
    with autocast(caller):
        finetune(e, digits, Settings(**(QUICK | {"updates": 6} | options)))
    return weights(e.classifier)


class Seen:
    """Notes the types that convolutions of a block of code give."""

    def __enter__(self):
        self.types = set()
        self._hook = nn.modules.module.register_module_forward_hook(
            lambda m, _, out: self.types.add(out.dtype) if isinstance(m, nn.Conv2d) else None
        )
        return self.types

    def __exit__(self, *_):
        self._hook.remove()


class Blind(nn.Module):
    """Creates a classifier that tells nothing, in any precision."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x):
        return self.layer(x.mean((2, 3)))


@pytest.mark.parametrize("caller", [False, True])
def test_all_but_the_network_stays_in_full_precision(caller):
    """Colours are mixed in every step; where a photograph is kept they are mixed back too."""
    generator = toys.seeded()
    reference = SpectralNoise.fit(torch.rand(40, 3, 32, 32, generator=generator).cumsum(3) / 32)
    e = ClassifierEnergy(Blind(), reference)
    kept = torch.zeros(32, 32, dtype=torch.bool)
    kept[:, :8] = True
    e = edit(e, torch.rand(3, 32, 32, generator=generator), 1.0, mask=kept)
    sampler = Langevin(n_steps=40, temperature=0.5)
    expected = sample(e, [0, 1], n=2, sampler=sampler)
    with autocast(caller), passes(not caller, e):
        found = sample(e, [0, 1], n=2, sampler=sampler)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("warm", [0, 1])
def test_every_pass_of_the_network_is_reduced(digits, warm):  # noqa: F811
    e = energy(digits)
    settings = Settings(updates=3, precision="bfloat16", warm_start=WarmStart(warm), **QUICK)
    tuner = Finetuner(e, digits, settings)
    tuner.gen.synthesizer.swift_energy()  # where norms are folded, which is checked in float32
    with Seen() as types:
        tuner.step(*next(tuner.batches()))
    assert types == {torch.bfloat16}
    assert {p.dtype for p in e.classifier.parameters()} == {torch.float32}
    with Seen() as types:
        e.logits(digits[0][0][None])
    assert types == {torch.float32}


@pytest.mark.parametrize("warm", [0, 3])
def test_it_learns_what_single_precision_learns(digits, warm):  # noqa: F811
    options = {"optimizer": "sgd", "warm_start": WarmStart(warm)}
    before = weights(energy(digits).classifier)
    single = learned(digits, **options) - before
    reduced = learned(digits, precision="bfloat16", **options) - before
    difference = (single - reduced).norm() / single.norm()
    assert 1e-5 < difference < 0.15


def test_weights_are_followed_under_an_autocast_of_the_caller(digits):  # noqa: F811
    """It remembers weights as they were when it first met them, unless it is told to forget."""
    reduced = learned(digits, precision="bfloat16")
    assert torch.equal(learned(digits, caller=True), reduced)


def test_a_run_under_an_autocast_of_the_caller_is_resumed_bit_for_bit(digits):  # noqa: F811
    settings = Settings(updates=4, warm_start=WarmStart(1), **QUICK)
    with autocast():
        whole, first = (Finetuner(energy(digits), digits, settings) for _ in range(2))
        whole.run()
        for batch in first.batches():
            first.step(*batch)
            if first.update == 2:
                break
        # It is looked at whether a new one can be denoised, and its weights are remembered.
        second = Finetuner(energy(digits), digits, settings)
        second.load_state_dict(first.state_dict())
        second.run()
    assert torch.equal(weights(second.energy.classifier), weights(whole.energy.classifier))


def test_a_classifier_is_trained_under_an_autocast_of_the_caller(digits):  # noqa: F811
    found = []
    for caller in (False, True):
        e = energy(digits)
        with autocast(caller):
            train_classifier(e.classifier, e.space, digits, epochs=1, augment=Augment())
        found.append(weights(e.classifier) - weights(network()))
    assert (found[0] - found[1]).norm() < 0.3 * found[0].norm()


@pytest.mark.parametrize("faster", [True, False])
def test_auto_is_what_the_network_is_faster_in(digits, monkeypatch, faster):  # noqa: F811
    single, reduced = iter([9, 4, 5, 4]), iter([1, 3, 3.1, 3.3] if faster else [1, 3.3, 3.5, 3.4])
    monkeypatch.setattr(precision, "_seconds", lambda _, r: next(reduced if r else single))
    e = energy(digits)
    assert is_reduced("auto", e) is faster
    assert is_reduced("bfloat16", e) and not is_reduced("float32", e)


def test_what_was_found_faster_stays_in_a_run_that_is_resumed(digits, monkeypatch):  # noqa: F811
    settings = Settings(updates=2, precision="auto", **QUICK)
    found = iter([True, False])
    monkeypatch.setattr(learner, "is_reduced", lambda *_: next(found))
    first, second = (Finetuner(energy(digits), digits, settings) for _ in range(2))
    first.step(*next(first.batches()))
    second.load_state_dict(first.state_dict())
    batch = next(second.batches())
    second.step(*batch)
    with Seen() as types:
        second.learner.contrast(*batch[:2], None, 2, 1.0)
    assert types == {torch.bfloat16}


def test_the_time_of_a_pass_is_measured_and_leaves_no_trace(digits):  # noqa: F811
    e = energy(digits).train()
    state = torch.get_rng_state()
    for reduced, expected in ((False, torch.float32), (True, torch.bfloat16)):
        with Seen() as types:
            assert 0 < precision._seconds(e, reduced) < 60
        assert types == {expected}
    assert e.training and all(p.requires_grad and p.grad is None for p in e.parameters())
    assert torch.equal(state, torch.get_rng_state()) and e.precision is None


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`precision` is .*bfloat16"):
        Settings(precision="half")
