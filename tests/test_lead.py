"""Images that no chain gets to: who they are, and what becomes of their scores."""

import copy
import math

import pytest
import torch
import toys
from torch import nn
from torch.utils.data import TensorDataset

from ebm_from_clf import (
    ChainStore,
    ClassifierEnergy,
    Contrastive,
    Langevin,
    Objective,
    PixelSpace,
    ReferenceStart,
    WhiteNoise,
)
from ebm_from_clf.chain_settings import ChainSettings
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.lead import MEMORY, Lead
from ebm_from_clf.settings import Settings

EVEN = torch.linspace(-1, 1, 16)


def test_an_image_leads_if_no_chain_ever_led_by_nearly_as_much():
    lead = Lead(1.5)
    assert not lead(EVEN).any()
    assert lead(torch.cat([EVEN, torch.tensor([1.4, 1.6])])).nonzero().flatten().tolist() == [17]
    # A chain that led by 3 is remembered, and forgotten.
    lead(-3 * torch.ones(8))
    far = torch.cat([EVEN, torch.tensor([4.0])])
    assert not lead(far).any()
    count = next(n for n in range(99) if lead(far).any())
    # 1.5 x 3 e^{-17 k / 512} < 4 from the k-th batch on, counted from the first one after it.
    assert count == int(MEMORY / 17 * torch.tensor(4.5 / 4).log()) - 1
    assert not Lead(None)(far).any()


def test_chains_that_are_all_behind_are_not_begun_at_data():
    lead = Lead(1.5)
    assert not lead(torch.rand(64, generator=toys.seeded()) + 1).any()
    few = torch.cat([EVEN, torch.full((5,), 9.0)])
    assert int(lead(few).sum()) == 5  # of 21
    assert not lead(torch.cat([few, torch.full((1,), 9.0)])).any()  # 6 of 22 are too many
    # One or two pairs say nothing about what is rare.
    assert not Lead(1.5)(torch.tensor([5.0])).any()
    assert Lead(1.5)(torch.zeros(0)).shape == (0,)


def test_scores_that_are_not_finite_do_not_stay():
    lead = Lead(1.5)
    assert not lead(torch.cat([EVEN, torch.tensor([float("nan"), float("-inf")])]))[:-2].any()
    found = lead(torch.cat([EVEN, torch.tensor([1.6])]))
    assert found.nonzero().flatten().tolist() == [16]


def test_the_memory_is_a_state():
    first, second = Lead(1.5), Lead(1.5)
    first(-3 * torch.ones(8))
    second.load_state_dict(first.state_dict())
    far = torch.cat([EVEN, torch.tensor([4.0])])
    assert not first(far).any() and not second(far).any() and Lead(1.5)(far).any()


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_limits_are_refused(limit):
    for make in (Lead, lambda limit: ChainSettings(max_lead=limit)):
        with pytest.raises(ValueError, match="max_lead"):
            make(limit)


@pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
def test_the_chain_goes_on_from_the_image(storage, tmp_path):
    white = WhiteNoise(torch.full(toys.SHAPE, 0.5))
    energy = ClassifierEnergy(toys.smooth().classifier, white, toys.space(), support="clamp")
    for file in (None, str(tmp_path / "chains")):
        chains = ChainStore(
            energy.reference,
            ReferenceStart(energy.reference),
            3,
            per_class=2,
            storage=storage,
            file=file,
        )
        gen = Contrastive(energy, Langevin(2, 0.1), chains, generator=toys.seeded())
        y = torch.tensor([0, 0, 0, 1, 2])  # one more of class 0 than it has chains
        x = torch.rand(5, *toys.SHAPE, generator=toys.seeded(1))
        draw = gen.synthesize(y).draw
        before = chains.state.clone()
        chains.begin_at(
            draw,
            torch.tensor([True, True, True, False, True]),
            energy.reference.encode(x),
        )
        for j in range(5):
            if draw.slot[j] < 0:
                continue
            now, then = chains.state[y[j], draw.slot[j]], before[y[j], draw.slot[j]]
            pixels = chains.pixels([int(y[j])], 2)[draw.slot[j]]
            assert torch.allclose(pixels, x[j], atol=0.005) == (j != 3)
            assert torch.equal(now, then) == (j == 3)
        assert (chains.age[draw.y[draw.slot >= 0], draw.slot[draw.slot >= 0]] == 1).all()
        assert file is None or torch.equal(chains.stamp, chains.written)


def test_on_a_torus_no_chain_goes_on_from_an_image():
    """The border of a crop would be a seam."""
    for on_torus in (False, True):
        energy = toys.smooth()
        if on_torus:
            energy.classifier.on_torus = lambda energy=energy: energy.classifier
        chains = ChainStore(energy.reference, ReferenceStart(energy.reference), 3, per_class=99)
        gen = Contrastive(energy, Langevin(2, 0.1), chains, generator=toys.seeded())
        y = torch.arange(30) % 3
        x = torch.rand(30, *toys.SHAPE, generator=toys.seeded(1))
        made = gen.synthesize(y)
        terms = gen.terms(x, y, made.images)
        gap = torch.cat([torch.linspace(-1, 1, 29), torch.tensor([9.0])])
        terms = terms._replace(observed=terms.synthesized + gap)
        before = chains.state.clone()
        found = gen.begin_at_data(x, made.draw, terms).nonzero().flatten()
        assert found.tolist() == [29] * (not on_torus)
        assert torch.equal(chains.state, before) == on_torus


class Marked:
    """Says of the same images every time that they lead."""

    limit = 1.5

    def __init__(self, where):
        self.where = where

    def __call__(self, gap):
        return self.where


def test_no_graph_stays_in_the_store():
    energy = toys.smooth()
    chains = ChainStore(energy.reference, ReferenceStart(energy.reference), 3, per_class=9)
    gen = Contrastive(energy, Langevin(2, 0.1), chains, generator=toys.seeded())
    x = torch.rand(6, *toys.SHAPE, generator=toys.seeded(1)).requires_grad_()
    gen(x, torch.arange(6) % 3).backward()
    assert x.grad is not None and not chains.state.requires_grad
    copy.deepcopy(gen)


def test_chains_without_a_slot_do_not_go_on():
    energy = toys.smooth()
    chains = ChainStore(energy.reference, ReferenceStart(energy.reference), 3, per_class=1)
    gen = Contrastive(energy, Langevin(2, 0.1), chains, generator=toys.seeded())
    gen.lead = Marked(torch.ones(3, dtype=torch.bool))
    y, x = torch.tensor([0, 0, 1]), torch.rand(3, *toys.SHAPE, generator=toys.seeded(1))
    made = gen.synthesize(y)
    found = gen.begin_at_data(x, made.draw, gen.terms(x, y, made.images))
    assert torch.equal(found, made.draw.slot >= 0) and int(found.sum()) == 2


def test_the_memory_belongs_to_the_state_of_the_drop_in():
    made = []
    for _ in range(2):
        energy = toys.smooth()
        chains = ChainStore(energy.reference, ReferenceStart(energy.reference), 3)
        made.append(Contrastive(energy, Langevin(2, 0.1), chains))
    made[0].lead(-3 * torch.ones(8))
    made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
    assert made[1].lead.state_dict()["largest"] == 3


def test_fine_tuning_lets_chains_go_on_and_counts_them():
    """Those that are lost as well begin at their start, and do not count."""
    energy = toys.smooth()
    x = torch.rand(12, *toys.SHAPE, generator=toys.seeded(1))
    data = TensorDataset(x, torch.arange(12) % 3)
    settings = Settings(
        batch_size=12, clean_batch_size=0, objective=Objective(data_noise=0.0, cross_entropy=0.0)
    )
    tuner = Finetuner(energy, data, settings)
    where = torch.arange(12) < 3
    tuner.gen.lead = Marked(where)
    tuner.guard.lost = lambda observed, synthesized: torch.arange(12) < 1
    y = torch.arange(12) % 3
    tuner.step(x, y, x[:0], y[:0])
    line = tuner.journal.line()
    assert (line["begun_anew"], line["begun_at_data"]) == (1, 2)
    u = energy.reference.encode(x)
    kept = tuner.chains.state[tuner.chains.age == 1]
    near = torch.cdist(u.flatten(1), kept.flatten(1)).amin(1) < 1e-4
    assert near.tolist() == [False, True, True] + 9 * [False]


class Bumps(nn.Module):
    """f(x) = a bump(x - .5) + b bump(x - .9), images of one pixel."""

    num_classes = 1

    def __init__(self):
        super().__init__()
        self.height = nn.Parameter(torch.zeros(2))

    def features(self, x):
        return torch.exp(-(((x.flatten(1) - torch.tensor([0.5, 0.9])) / 0.05) ** 2) / 2)

    def forward(self, x):
        return (self.features(x) @ self.height)[:, None]


def batch(generator):
    """One of 32 pixels is rare: at .9, four standard deviations of the reference away."""
    common = 0.5 + 0.04 * torch.randn(31, generator=generator)
    return torch.cat([common, torch.tensor([0.9])]).view(-1, 1, 1, 1)


def most_likely():
    """The heights of the largest likelihood, by quadrature and Newton's method."""
    u = torch.linspace(-6, 8, 4001, dtype=torch.float64)
    features = Bumps().features((0.5 + 0.1 * u)[:, None])
    observed = torch.stack([Bumps().features(batch(toys.seeded(i))) for i in range(999)])
    observed, height = observed.double().mean((0, 1)), torch.zeros(2, dtype=torch.float64)
    for _ in range(40):
        p = (features @ height - u**2 / 2).softmax(0)
        mean = p @ features
        hessian = (features * p[:, None]).T @ features - mean.outer(mean)
        height += torch.linalg.solve(hessian, observed - mean).clamp(-1, 1)
    return height


def heights(max_lead, n):
    """Heights after each update of a rare mode that chains can only get to by chance."""
    reference = WhiteNoise(torch.full((1, 1, 1), 0.5), 0.1)
    energy = ClassifierEnergy(Bumps(), reference, PixelSpace([0.0], [1.0], (1, 1)))
    start = ReferenceStart(reference)
    chains = ChainStore(reference, start, 1, per_class=64, restart_rate=0.02, burn_in=0)
    g = toys.seeded(1)
    gen = Contrastive(
        energy,
        Langevin(n_steps=5, step_size=0.2),
        chains,
        Objective(data_noise=0.0),
        generator=g,
        max_lead=max_lead,
    )
    optimizer = torch.optim.SGD(energy.classifier.parameters(), 1.0)
    found = []
    for _ in range(n):
        optimizer.zero_grad()
        gen(batch(g), torch.zeros(32, dtype=torch.int64)).backward()
        optimizer.step()
        found.append(energy.classifier.height.detach().clone())
    return torch.stack(found)


def test_a_rare_image_that_chains_do_not_get_to_is_not_raised_without_end():
    """With chains that go on from it, its height stays below that of the largest likelihood.

    It ends lower, where chains of 5 steps stay, but above what holds them at all: the bump pulls
    by b e^{-1/2} / s at most, s = 1/2, and the reference by 4. Without them each update raises it
    by its share of the data, 1/32, past any height.
    """
    best, holds = most_likely()[1], 4 * 0.5 * math.exp(0.5)
    found = heights(1.5, 600)[200:, 1]
    assert holds < found.min() and found.max() < best
    endless = heights(None, 600)[:, 1]
    assert endless[-1] - endless[299] > 0.7 * 300 / 32
    assert endless[-1] > best + 5
