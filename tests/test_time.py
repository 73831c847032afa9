"""A chain counts once it has gone as far as the burn-in: n steps of length e are n e^2 of time."""

import pytest
import torch
import toys
from test_stride import wells

from ebm_from_clf import Contrastive, Objective

BURN_IN, STEPS = 10, 4
Y = torch.arange(2).repeat(6)


def gen_of(burn_in=BURN_IN, factors=(0.5, 1.0), limit=None, **options):
    """Chains of two classes, those of the first with shorter steps; none begins anew."""
    energy, sampler, chains = wells(1.0, 1.0)
    chains.burn_in = burn_in
    gen = Contrastive(
        energy, sampler, chains, generator=toys.seeded(3), max_stiffness=limit, **options
    )
    gen.synthesizer.stride.factors = torch.tensor(factors, dtype=torch.float64)
    gen.synthesizer.make_steps(STEPS, 0.2)
    return gen


def counted(gen, draws):
    """Draws the same chains over and over; whether those of each class counted."""
    gen.chains.rate.zero_()
    found = []
    for _ in range(draws):
        made = gen.synthesize(torch.arange(2).repeat_interleave(gen.chains.per_class))
        found.append(made.counts.unflatten(0, (2, -1)))
        assert (found[-1].all(1) == found[-1].any(1)).all()
    return torch.stack(found)[..., 0].T.tolist()


def test_a_chain_of_shorter_steps_counts_later():
    """At half the length (10 + 4 n) / 4 after n draws, which is 10 at the eighth, not before."""
    short, full = counted(gen_of(), 10)
    assert full == [True] * 10
    assert short == [False] * 7 + [True] * 3


@pytest.mark.parametrize("options", [{"burn_in": 0}, {"factors": (1.0, 1.0)}])
def test_all_count_without_a_burn_in_or_with_the_longest_steps(options):
    assert counted(gen_of(**options), 3) == [[True] * 3] * 2


def test_a_chain_on_its_way_is_not_begun_anew():
    """Or else those of short steps, which are drawn often before they count, never would."""
    gen, found = gen_of(), []
    gen.chains.rate.fill_(1.0)
    for _ in range(17):
        made = gen.synthesize(torch.arange(2).repeat_interleave(gen.chains.per_class))
        found.append(made.draw.fresh.unflatten(0, (2, -1))[:, 0])
    short, full = torch.stack(found).T.tolist()
    assert full == [True] * 17
    assert short == [True] + [False] * 7 + [True] + [False] * 7 + [True]


def test_a_step_that_is_given_back_counts_as_long_from_there_on():
    gen = gen_of()
    short, _ = counted(gen, 3)
    gen.synthesizer.stride.factors[:] = 1.0
    gen.synthesizer.follow()
    # 5.5 so far, and 4 a draw from here on.
    assert short == [False] * 3 and counted(gen, 2)[0] == [False, True]


def test_a_chain_that_begins_anew_has_its_way_before_it():
    gen = gen_of()
    counted(gen, 8)
    gen.chains.begin_all_anew([0])
    made = gen.synthesize(Y)
    assert torch.equal(made.counts, Y == 1)
    # One that goes on from an image is where it should be.
    where = (Y == 0) & (torch.arange(len(Y)) < 6)
    gen.chains.begin_at(made.draw, where, made.draw.u)
    slots = made.draw.slot[where]
    time = gen.chains.time
    assert (time[0, slots] == BURN_IN).all() and int((time[0] == BURN_IN).sum()) == len(slots)


@pytest.mark.parametrize("kind", ["likelihood", "logistic"])
def test_pairs_that_do_not_count_have_no_gradient(kind):
    """It is that of the others, over the number of all. Mutant: all count."""
    gen = gen_of(objective=Objective(kind, data_noise=0.0))
    x = torch.rand(len(Y), 1, 4, 4, generator=toys.seeded(5))
    images = torch.rand(len(Y), 1, 4, 4, generator=toys.seeded(6))
    counts, (weight,) = Y == 1, gen.energy.classifier.parameters()

    def gradient(rows, counts=None):
        terms = gen.terms(x[rows], Y[rows], images[rows], counts=counts)
        (found,) = torch.autograd.grad(terms.contrast, weight)
        return terms, found

    terms, found = gradient(slice(None), counts)
    _, alone = gradient(counts)
    assert torch.allclose(found, alone * counts.float().mean(), atol=1e-6)
    assert not torch.allclose(found, gradient(slice(None))[1], atol=1e-3)
    gap = terms.observed - terms.synthesized
    assert (gap[~counts] == 0).all() and (gap[counts] != 0).all()


def test_an_update_of_your_own_loop_leaves_them_out():
    gen = gen_of(max_lead=None)
    x = torch.rand(len(Y), 1, 4, 4, generator=toys.seeded(5))
    gen(x, Y).backward()
    (weight,) = gen.energy.classifier.parameters()
    assert weight.grad[0] == 0 != weight.grad[1]


def test_times_are_in_the_state():
    gen, other = gen_of(), gen_of()
    counted(gen, 5)
    other.load_state_dict(gen.state_dict())
    assert torch.equal(other.chains.time, gen.chains.time)
    assert counted(other, 3) == counted(gen, 3) == [[False, False, True], [True] * 3]
