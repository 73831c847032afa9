"""Persistent chains: their class, their slots, and the bias that restarts leave."""

import os
import shutil
from collections import Counter

import pytest
import stats
import torch
import toys

from ebm_from_clf import (
    ChainStore,
    ClassGaussian,
    ClassMixture,
    DataStart,
    FittedGaussian,
    Langevin,
    ReferenceStart,
    UniformStart,
    WhiteNoise,
)
from ebm_from_clf.noise import generators


def store(n_classes=3, start=None, **options):
    reference = toys.reference()
    options = {"per_class": 20, "restart_rate": 0.0} | options
    start = start or ReferenceStart(reference)
    return ChainStore(reference, start, n_classes, **options)


def test_a_batch_holds_distinct_slots_of_its_classes():
    chains, g = store(), toys.seeded(1)
    y = torch.tensor([0] * 20 + [2] * 5 + [0] * 0 + [1])[torch.randperm(26, generator=g)]
    draw = chains.draw(y, generator=g)
    assert torch.equal(draw.y, y)
    pairs = set(zip(draw.y.tolist(), draw.slot.tolist(), strict=True))
    assert len(pairs) == 26


def test_slots_are_drawn_evenly():
    chains, g = store(), toys.seeded(2)
    count = Counter()
    for _ in range(2000):
        count.update(chains.draw(torch.tensor([1, 1, 0]), generator=g).slot[:2].tolist())
    # Two of twenty slots a draw: mean 200, variance 2000 * .1 * .9.
    assert all(abs(n - 200) < 5 * 180**0.5 for n in count.values()) and len(count) == 20


def test_chains_keep_their_class_and_their_slot():
    """Every chain is pulled to its class's point; a chain of a wrong class would be seen."""
    chains, g = store(), toys.seeded(3)
    sampler = Langevin(n_steps=3, step_size=1.0, temperature=0.01, variance_corrected=True)

    def energy(u, y):
        return (u - 10 * y.view(-1, 1, 1, 1)).square().flatten(1).sum(1) / 2

    for _ in range(60):
        y = torch.randint(0, 3, (12,), generator=g)
        draw = chains.draw(y, generator=g)
        before = chains.state.clone()
        u, _ = sampler(energy, draw.u, y, generator=g)
        chains.write(draw, u)
        touched = torch.zeros(3, 20, dtype=torch.bool)
        touched[draw.y, draw.slot] = True
        assert torch.equal(chains.state[~touched], before[~touched])
    target = 10.0 * torch.arange(3)
    moved = chains.age >= 5
    means = chains.state.flatten(2).mean(2)
    assert moved.sum() > 40
    assert ((means - target[:, None]).abs() < 0.5)[moved].all()


@pytest.mark.parametrize("storage, tolerance", [("float16", 2e-3), ("uint8", 0.03)])
def test_storage_rounds_no_more_than_it_must(storage, tolerance):
    reference = WhiteNoise(torch.full((1, 4, 4), 0.5), 0.2)
    chains = ChainStore(
        reference,
        UniformStart((1, 4, 4)),
        2,
        per_class=4,
        restart_rate=0.0,
        storage=storage,
    )
    y = torch.tensor([0, 1])
    u = reference.encode(torch.rand(2, 1, 4, 4, generator=toys.seeded(1)))
    chains.write(chains.draw(y, generator=toys.seeded(2)), u)
    draw = chains.draw(y, generator=toys.seeded(2))
    assert not draw.fresh.any() and (draw.u - u).abs().max() < tolerance
    assert chains.state.element_size() == (2 if storage == "float16" else 1)


def test_first_draw_of_a_slot_begins_anew_only_once():
    chains = store(per_class=1)
    y = torch.arange(3)
    assert chains.draw(y, generator=toys.seeded()).fresh.all()
    draw = chains.draw(y, generator=toys.seeded())
    chains.write(draw, draw.u)
    assert not chains.draw(y, generator=toys.seeded()).fresh.any()


@pytest.mark.parametrize("restart_rate", [0.05, 0.4])
def test_restarts_leave_their_closed_form_bias(restart_rate):
    """E u = m (1 - a^K) / (1 - (1 - r) a^K) for starts around 0 and a linear tilt m."""
    energy, steps = toys.linear(), 4
    sampler = Langevin(n_steps=steps, step_size=0.5)
    n = 6000
    chains = ChainStore(
        energy.reference,
        ReferenceStart(energy.reference),
        1,
        per_class=n,
        restart_rate=restart_rate,
    )
    y, g = torch.zeros(n).long(), toys.seeded(5)
    for _ in range(12 + round(3 / restart_rate)):
        draw = chains.draw(y, generator=g)
        u, _ = sampler(energy, draw.u, y, generator=g)
        chains.write(draw, u)
    tilt = toys.linear_tilt(energy, y[:1])[0]
    decay = (1 - 0.125) ** steps
    bias = (1 - decay) / (1 - (1 - restart_rate) * decay)
    # Project on the tilt: one number a chain, a mixture over ages, its own spread as error.
    along = chains.state[0].flatten(1).double() @ tilt / tilt.square().sum()
    stats.assert_mean(along, bias)
    with pytest.raises(AssertionError):
        stats.assert_mean(along, 1.0)


def test_each_slot_is_begun_anew_at_its_own_rate():
    chains, g, many = store(1, restart_rate=(0.5, 0.02)), toys.seeded(7), 4000
    chains.age += 1
    y, n = torch.zeros(10).long(), torch.zeros(2, 20)
    for _ in range(many):
        draw = chains.draw(y, generator=g)
        n[0, draw.slot] += 1
        n[1, draw.slot[draw.fresh]] += 1
    rate = 0.5 * (0.02 / 0.5) ** (torch.arange(20) / 19)

    def worst(rate):
        return ((n[1] - n[0] * rate) / (n[0] * rate * (1 - rate)).sqrt()).abs().max()

    assert worst(rate) < 5
    assert worst(rate.mean()) > 5, "one rate for all is another law"
    # As many chains begin as rates say; so the mean life of one is the inverse of the mean rate.
    assert chains.lifetime == pytest.approx(1 / float(chains.rate.mean()))


def test_a_batch_of_one_rate_has_restarts_of_one_number():
    chains, g = store(1, restart_rate=0.25), toys.seeded(8)
    chains.age += 1
    y = torch.zeros(8).long()
    assert {int(chains.draw(y, generator=g).fresh.sum()) for _ in range(200)} == {2}


def test_state_dict_holds_every_chain():
    chains, other = store(), store()
    y, g = torch.tensor([0, 1, 2]), toys.seeded(6)
    draw = chains.draw(y, generator=g)
    chains.write(draw, draw.u + 1)
    other.load_state_dict(chains.state_dict())
    assert torch.equal(other.state, chains.state) and torch.equal(other.age, chains.age)


def test_a_state_of_another_storage_is_refused():
    kept, other = store(), store(storage="uint8")
    with pytest.raises(ValueError, match="as float32, this store has uint8"):
        other.load_state_dict(kept.state_dict())
    with pytest.raises(ValueError, match="as uint8, this store has float32"):
        kept.load_state_dict(other.state_dict())


def test_a_surplus_begins_at_the_start_and_is_forgotten():
    chains, g = store(restart_rate=0.0), toys.seeded(9)
    chains.age += 1
    y = torch.tensor([1] * 25 + [0] * 3 + [1] * 5)
    draw = chains.draw(y, generator=g)
    surplus = draw.slot < 0
    assert torch.equal(draw.fresh, surplus) and int(surplus.sum()) == 10
    assert draw.slot[(y == 1) & ~surplus].sort().values.tolist() == list(range(20))
    assert draw.own.tolist() == (~surplus).nonzero().flatten().tolist()
    # Stored states are 0 here; the reference draws unit variance in u.
    assert (draw.u[~surplus] == 0).all()
    assert abs(float(draw.u[surplus].var()) - 1) < 5 * (2 / (10 * toys.DIM)) ** 0.5
    u = torch.arange(len(y)).view(-1, 1, 1, 1) + torch.zeros_like(draw.u)
    chains.write(draw, u)
    assert torch.equal(chains.state[y[draw.own], draw.slot[draw.own]], u[draw.own])
    chains.begin_anew(draw, surplus)
    assert (chains.age > 0).all()
    chains.begin_anew(draw, ~surplus)
    assert (chains.age == 0).sum() == 23 and (chains.state[2] == 0).all()


def test_chains_that_have_not_begun_are_shown_as_the_mean():
    chains = store()
    draw = chains.draw(torch.tensor([1]), generator=toys.seeded())
    chains.write(draw, draw.u)
    x = chains.pixels([0, 1], 20).view(2, 20, *toys.SHAPE)
    mean = chains.pixels([2], 1)[0]
    assert torch.equal(mean, toys.reference().mean)
    assert ((x == mean).flatten(2).all(2) == (chains.age[:2] == 0)).all()


def moved(chains, times, g):
    """Draws and writes so many times; the classes are drawn as well."""
    for _ in range(times):
        draw = chains.draw(torch.randint(0, 3, (30,), generator=g), generator=g)
        chains.write(draw, 0.9 * draw.u)
        chains.begin_anew(draw, torch.rand(30, generator=g) < 0.1)
    return draw


@pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
def test_mapped_chains_are_those_in_memory_bit_for_bit(storage, tmp_path):
    options = {"storage": storage, "restart_rate": 0.2, "per_class": 12}
    kept = store(**options)
    mapped = store(**options, file=str(tmp_path / "chains"))
    draws = [moved(chains, 8, toys.seeded(1)) for chains in (kept, mapped)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True) if a is not None)
    assert torch.equal(kept.state, mapped.state) and torch.equal(kept.age, mapped.age)
    assert torch.equal(kept.pixels([0, 2], 5), mapped.pixels([0, 2], 5))
    assert "state" in kept.state_dict() and "state" not in mapped.state_dict()


@pytest.mark.parametrize("again", [True, False])
def test_mapped_chains_written_since_a_state_begin_anew(again, tmp_path):
    """In the same process, as the guard goes back, and in another, as a run is resumed."""
    file, g = str(tmp_path / "chains"), toys.seeded(2)
    chains = store(file=file)
    moved(chains, 2, g)
    state = {k: v.clone() for k, v in chains.state_dict().items()}
    states = chains.state.clone()
    last = moved(chains, 1, g)
    touched = torch.zeros(3, 20, dtype=torch.bool)
    touched[last.y[last.slot >= 0], last.slot[last.slot >= 0]] = True
    there = store(file=file) if again else chains
    assert (there.age == 0).all() == again
    there.load_state_dict(state)
    assert (there.age[touched] == 0).all() and 0 < touched.sum() < 60
    assert torch.equal(there.age[~touched], state["age"][~touched])
    assert torch.equal(there.state[~touched], states[~touched])
    # What goes on from there is told from what was written before, as often as it is gone back.
    before = there.state.clone()
    moved(there, 2, g)
    later = {k: v.clone() for k, v in there.state_dict().items()}
    there.load_state_dict(later)
    assert torch.equal(there.age, later["age"])
    there.load_state_dict(state)
    assert (there.age[(there.state != before).flatten(2).any(2)] == 0).all()


def test_a_state_without_its_file_begins_all_chains_anew(tmp_path):
    chains = store(file=str(tmp_path / "a"))
    moved(chains, 3, toys.seeded(3))
    other = store(file=str(tmp_path / "b"))
    other.load_state_dict(chains.state_dict())
    assert (other.age == 0).all()


def test_a_thousand_classes_of_photographs_fit(tmp_path):
    """Chains as numbers on a disk that holds what was written; starts in 100 MB."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)
    full = os.stat(file.name).st_blocks * 512 > 2**20
    if full or shutil.disk_usage(tmp_path).free < 2**32:
        pytest.skip("the disk has no sparse files, or no room")
    n, low = 1000, torch.zeros(1, 3, 28, 28)
    mean, components = low.expand(1000, -1, -1, -1) + 0.5, low.repeat(n, 8, 1, 1, 1)
    start = ClassGaussian(mean, components, torch.zeros_like(mean), size=(224, 224))
    assert sum(b.nbytes for b in start.buffers()) <= 100e6
    reference = WhiteNoise(torch.full((3, 224, 224), 0.5))
    chains = ChainStore(
        reference, start, n, per_class=10, storage="uint8", file=str(tmp_path / "chains")
    )
    draw = chains.draw(torch.arange(0, n, 125), generator=toys.seeded())
    chains.write(draw, draw.u)
    # Eight images are 1.2 MB; a page that was touched takes up room in the file.
    assert chains.state.nbytes > 1.5e9
    assert os.stat(tmp_path / "chains").st_blocks * 512 < 10e6
    assert set(chains.state_dict()) == {"age", "written"}


def test_a_file_of_something_else_is_refused_and_kept(tmp_path):
    place = tmp_path / "photo.jpg"
    place.write_bytes(b"precious data" * 100)
    with pytest.raises(ValueError, match="photo.jpg holds something else.*1300 bytes"):
        store(file=str(place))
    assert place.read_bytes() == b"precious data" * 100


def test_bad_numbers_are_refused():
    bad = ({"per_class": 0}, {"restart_rate": 1.5}, {"burn_in": -1}, {"storage": "int4"})
    for options in (*bad, {"restart_rate": (0.5, 0.0)}, {"restart_rate": (0.5, 2.0)}):
        with pytest.raises(ValueError, match="ChainStore"):
            store(**options)
    with pytest.raises(ValueError, match="classes are 0 to 2"):
        store().draw(torch.tensor([3]), generator=toys.seeded())


IMAGES = torch.rand(90, 1, 4, 4, generator=toys.seeded(7))
LABELS = torch.arange(90) % 3


@pytest.mark.parametrize(
    "images", [255 * IMAGES, (255 * IMAGES).byte(), IMAGES / 0.2 - 2, IMAGES * float("nan")]
)
def test_images_on_another_scale_are_refused(images):
    fits = (
        lambda: ClassGaussian.fit(images, LABELS, 3),
        lambda: DataStart(images, LABELS, 3),
        lambda: FittedGaussian.fit(images),
    )
    for fit in fits:
        with pytest.raises(ValueError, match=r"must be floats in \[0, 1\], got .* Divide 8-bit"):
            fit()


def test_class_gaussian_has_the_moments_of_its_class():
    """Rank and residual together keep the mean and the variance of every pixel."""
    start = ClassGaussian.fit(0.25 + IMAGES / 2, LABELS, 3, rank=5)
    components, residual = start.components[1].flatten(1), start.residual[1].flatten()
    variance = components.square().sum(0) + residual.square()
    expected = (0.25 + IMAGES[LABELS == 1] / 2).var(0).flatten()
    assert (variance - expected).abs().max() < 1e-6
    x = start(torch.ones(40_000).long(), generator=toys.seeded(8))
    # Clipping to [0, 1] cuts beyond 3 standard deviations here and moves the mean by < 1e-3.
    assert (x.mean(0) - start.mean[1]).abs().max() < 5 * 0.15 / 200 + 1e-3
    low = ClassGaussian.fit(IMAGES, LABELS, 3, rank=5, residual=False)
    assert low.residual.abs().max() == 0


def enlarging(weights, n):
    """A matrix that enlarges a line of n pixels twofold: of each, what is its own, then beside."""
    line = torch.zeros(2 * n, n, dtype=torch.float64)
    for i in range(2 * n):
        beside = i // 2 + (1 if i % 2 else -1)
        line[i, i // 2] += weights[0]
        line[i, min(max(beside, 0), n - 1)] += weights[1]
    return line


def test_a_start_of_low_resolution_has_the_moments_of_its_enlargement():
    """x = E (m + V z + s z'): mean E m, covariance E (V V' + s s') E', for a linear E."""
    g, n = toys.seeded(9), 30_000
    mean = 0.5 + 0.1 * torch.rand(1, 1, 4, 3, generator=g)
    components = 0.05 * torch.randn(1, 2, 1, 4, 3, generator=g)
    residual = 0.02 + 0.02 * torch.rand(1, 1, 4, 3, generator=g)
    start = ClassGaussian(mean, components, residual, size=(8, 6))
    # No pixel is within 4 standard deviations of black or white.
    x = start(torch.zeros(n).long(), generator=g).flatten(1).double()

    def worst(weights):
        e = torch.kron(enlarging(weights, 4), enlarging(weights, 3))
        v = components.view(2, 12).double()
        c = e @ (v.T @ v + residual.double().flatten().square().diag()) @ e.T
        centered = x - e @ mean.double().flatten()
        error = (centered.T @ centered / n - c) / ((c.diag().outer(c.diag()) + c**2) / n).sqrt()
        return torch.cat([error.flatten(), centered.mean(0) / (c.diag() / n).sqrt()]).abs().max()

    assert worst((0.75, 0.25)) < 5
    assert worst((1.0, 0.0)) > 5, "the nearest pixel is another law"
    small = ClassGaussian.fit(IMAGES, LABELS, 3, size=(8, 8))
    assert small.mean.shape[2:] == (4, 4) and small.shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"`size` must be at least \(4, 3\), .* got \(8, 2\)"):
        ClassGaussian(mean, components, residual, size=(8, 2))


def test_class_gaussian_keeps_the_covariance_in_its_components():
    x = 0.25 + IMAGES / 2
    start = ClassGaussian.fit(x, LABELS, 3, rank=16)
    c = start.components[0].flatten(1)
    centered = (x - x[LABELS == 0].mean(0)).flatten(1)[LABELS == 0]
    assert (c.T @ c - centered.T @ centered / 29).abs().max() < 1e-5


def test_data_start_draws_data_of_the_class():
    start = DataStart(IMAGES, LABELS, 3)
    y = torch.tensor([2, 0, 1, 2])
    x = start(y, generator=toys.seeded())
    for image, c in zip(x, y, strict=True):
        assert any(torch.equal(image, other) for other in IMAGES[LABELS == c])


@pytest.mark.parametrize(
    "start",
    [
        ReferenceStart(toys.reference()),
        UniformStart((1, 4, 4)),
        DataStart(IMAGES, LABELS, 3),
        ClassGaussian.fit(IMAGES, LABELS, 3, rank=4),
        ClassMixture.fit(IMAGES.repeat(2, 1, 1, 1), LABELS.repeat(2), 3, modes=2, rank=4),
        ClassGaussian.fit(IMAGES, LABELS, 3, rank=4, size=(9, 7)),
        DataStart(IMAGES, LABELS, 3, size=(8, 8)),
    ],
)
def test_starts_do_not_depend_on_the_batch(start):
    y = torch.tensor([0, 1, 2, 1])
    whole = start(y, generator=generators(range(4)))
    parts = [start(y[i : i + 1], generator=generators([i])) for i in range(4)]
    assert (whole - torch.cat(parts)).abs().max() < 1e-6
    assert not torch.equal(whole[1], whole[3])


def test_labels_are_checked():
    with pytest.raises(ValueError, match="no image of class 3"):
        DataStart(IMAGES, LABELS, 4)
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        ClassGaussian.fit(IMAGES, LABELS, 2)
    with pytest.raises(ValueError, match="lower rank"):
        ClassGaussian.fit(IMAGES, LABELS, 3, rank=30)
