"""The loop: what it learns, what it keeps, how it stops."""

import copy
import json
import math
import re
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import timm
import torch

from ebm_from_clf import (
    Diverged,
    FittedGaussian,
    Objective,
    Settings,
    UsageError,
    WhiteNoise,
    convert,
    finetune,
)
from ebm_from_clf.chain_settings import ChainSettings, StartSettings
from ebm_from_clf.classify import train_classifier
from ebm_from_clf.curriculum import Curriculum
from ebm_from_clf.data import Augment, Images, gather, load_data
from ebm_from_clf.descent import Descent
from ebm_from_clf.evaluate import accuracy
from ebm_from_clf.fault import Fault, GuardSettings, find_fault
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.guard import Guard
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.sample import draw
from ebm_from_clf.trail import CHAINS

SIZE = (16, 16)
QUICK = dict(
    batch_size=16,
    clean_batch_size=16,
    sampler=Langevin(n_steps=2, step_size=0.1, temperature=0.03),
    start=StartSettings(rank=4),
    chains=ChainSettings(per_class=20),
    grid_every=0,
)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits8x8", "train", size=SIZE, channels=1)


def network(num_classes=10, seed=0, width=16):
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return timm.create_model(
            "resnet18",
            in_chans=1,
            num_classes=num_classes,
            layers=(1, 1, 0, 0),
            channels=(width, 2 * width, 2 * width, 2 * width),
            stem_type="deep",
            stem_width=width // 2,
            replace_stem_pool=True,
            pretrained_cfg_overlay=dict(input_size=(1, *SIZE), mean=(0.5,), std=(0.5,)),
        )


def energy(digits, num_classes=10):
    reference = FittedGaussian.fit(gather(digits)[0], floor=0.05)
    return convert(network(num_classes), reference=reference, gain=600.0, support="clamp")


def test_two_runs_of_one_seed_agree_and_of_two_do_not(digits):
    weights = []
    for seed in (0, 0, 1):
        e = energy(digits)
        finetune(e, digits, Settings(updates=3, seed=seed, **QUICK))
        weights.append(torch.cat([p.detach().flatten() for p in e.classifier.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_global_randomness_is_left_alone(digits):
    e = energy(digits)
    state = torch.get_rng_state()
    finetune(e, digits, Settings(updates=2, **QUICK))
    accuracy(e, digits)
    assert torch.equal(state, torch.get_rng_state())


def test_statistics_of_normalisation_and_modes_stay(digits):
    e = energy(digits)
    before = {k: v.clone() for k, v in e.classifier.named_buffers()}
    e.classifier.train()
    finetune(e, digits, Settings(updates=2, **QUICK))
    assert all(torch.equal(v, before[k]) for k, v in e.classifier.named_buffers())
    assert e.classifier.training and all(p.requires_grad for p in e.classifier.parameters())


def test_kept_weights_are_the_moving_average(digits):
    e = energy(digits)
    tuner = Finetuner(e, digits, Settings(updates=4, **QUICK))
    tuner.run()
    kept = tuner.descent.average.module.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in e.classifier.state_dict().items())
    assert e.start is tuner.chains.start and e.sampler.n_steps == 10 + round(2 / 0.05)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resumed_equals_uninterrupted_bit_for_bit(digits, optimizer):
    # Steps that are too stiff are fitted after 10 updates and after 20.
    curriculum = Curriculum(growth=4.0, max_stiffness=1e-4)
    options = QUICK | {"optimizer": optimizer}
    settings = Settings(updates=24, curriculum=curriculum, log_every=24, **options)
    whole = Finetuner(energy(digits), digits, settings)
    whole.run()
    first = Finetuner(energy(digits), digits, settings)
    for batch in first.batches():
        first.step(*batch)
        if first.update == 13:
            break
    state = copy.deepcopy(first.state_dict())
    second = Finetuner(energy(digits), digits, settings)
    second.load_state_dict(state)
    second.run()
    assert second.update == 24 and second.gen.sampler.step_size == 0.1 / 4
    lines = [[line | {"seconds": 0} for line in t.journal.lines] for t in (whole, second)]
    assert lines[0] == lines[1]
    assert torch.equal(second.chains.state, whole.chains.state)
    pairs = zip(
        second.energy.classifier.parameters(), whole.energy.classifier.parameters(), strict=True
    )
    assert all(torch.equal(p, q) for p, q in pairs)


def test_mapped_chains_are_learned_from_bit_for_bit(digits, tmp_path):
    """More images of a class in a batch than it has chains, and starts of half the size."""
    options = QUICK | {"start": StartSettings(rank=4, size=8)}
    found = []
    for mapped, output in ((False, None), (True, None), (True, tmp_path / "run")):
        e, chains = energy(digits), ChainSettings(per_class=1, mapped=mapped)
        finetune(e, digits, Settings(updates=3, **options | {"chains": chains}), output=output)
        assert e.start.mean.shape[2:] == (8, 8) and e.start.shape == (1, *SIZE)
        found.append(torch.cat([p.detach().flatten() for p in e.classifier.parameters()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    # The file has served its time.
    assert not (tmp_path / "run" / CHAINS).exists()


def test_a_run_with_mapped_chains_is_resumed(digits, tmp_path):
    """Bit for bit where no chain was written after the state; else those begin anew."""
    options = QUICK | {"chains": ChainSettings(per_class=20, mapped=True)}
    settings = Settings(updates=4, **options)

    def tuner(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        return Finetuner(energy(digits), digits, settings, tmp_path / folder)

    whole, first = tuner("whole"), tuner("part")
    whole.run()
    batches = first.batches()
    for _ in range(2):
        first.step(*next(batches))
    state = copy.deepcopy(first.state_dict())
    assert "state" not in state["chains"]
    second = tuner("part")
    second.load_state_dict(state)
    second.run()
    assert torch.equal(second.chains.state, whole.chains.state)
    third = tuner("part")
    third.load_state_dict(state)
    assert int((third.chains.age == 0).sum()) > int((state["chains"]["age"] == 0).sum())
    third.run()
    assert third.update == 4


def test_chains_that_do_not_fit_the_disk_are_refused(digits, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("ebm_from_clf.folders.shutil.disk_usage", lambda path: usage(10**5))
    options = QUICK | {"chains": ChainSettings(per_class=20, mapped=True)}
    with pytest.raises(UsageError, match=r"chains.bin: may grow to 0.0 GB, there is room"):
        Finetuner(energy(digits), digits, Settings(**options), tmp_path)


def test_log_is_one_line_per_interval(digits, tmp_path):
    options = QUICK | {"grid_every": 4}
    finetune(energy(digits), digits, Settings(updates=5, log_every=2, **options), output=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [2, 4, 5]
    for line in lines:
        assert line["gap"] == pytest.approx(line["observed"] - line["synthesized"])
    assert sorted(p.name for p in (tmp_path / "chains").iterdir()) == ["000004.png", "000005.png"]


def test_augmentation_is_for_the_cross_entropy_alone(digits):
    """Else the model would learn the density of augmented images."""
    options = QUICK | {"clean_batch_size": 32, "augment": Augment(shift=3)}
    tuner = Finetuner(energy(digits), digits, Settings(updates=1, **options))
    x, y, clean, labels = next(tuner.batches())
    data = digits.images.flatten(1) / 255
    for images, classes in ((x, y), (clean, labels)):
        distance = (images.flatten(1)[:, None] - data).abs().amax(2)
        known = distance.min(1).values < 1e-3
        # One shift in 49 is none.
        assert known.all() if images is x else known.float().mean() < 0.3
        assert torch.equal(classes[known], digits.labels[distance.argmin(1)][known])
    assert len(clean) == 32 and len(x) == 16


@pytest.mark.parametrize("kind", ["reference", "uniform", "data"])
def test_every_start_runs(digits, kind):
    e = energy(digits)
    settings = Settings(updates=2, **(QUICK | {"start": StartSettings(kind=kind)}))
    finetune(e, digits, settings)
    assert torch.isfinite(draw(e, [0], 2, sampler=Langevin(n_steps=2)).images).all()


def test_a_run_of_the_generative_loss_moves_no_chain(digits, tmp_path):
    settings = Settings(
        updates=60, learning_rate=2e-3, objective=Objective("generative"), log_every=20, **QUICK
    )
    settings = replace(settings, objective=replace(settings.objective, cross_entropy=0.0))
    tuner = Finetuner(energy(digits), digits, settings)
    before = copy.deepcopy(tuner.chains.state_dict())
    tuner.run(tmp_path / "run")
    lines = tuner.journal.lines
    assert [line["stage"] for line in lines] == ["generative"] * 3 and "auc" not in lines[0]
    assert lines[-1]["generative"] < lines[0]["generative"] / 2
    after = tuner.chains.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if isinstance(v, torch.Tensor))
    draw(tuner.energy, [3], 2)
    with pytest.raises(ValueError, match="the gain is learned from chains"):
        Settings(objective=Objective("generative"), learn_gain=0.1)
    with pytest.raises(ValueError, match="Raise `batch_size`"):
        Settings(objective=Objective("generative"), batch_size=1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "nmuon"])
def test_optimisers_of_timm_run(digits, name):
    e = energy(digits)
    before = [p.clone() for p in e.classifier.parameters()]
    finetune(e, digits, Settings(updates=2, optimizer=name, clip_grad=1.0, **QUICK))
    pairs = zip(e.classifier.parameters(), before, strict=True)
    assert all(torch.isfinite(p).all() for p in e.classifier.parameters())
    assert any(not torch.equal(p, q) for p, q in pairs)


HEALTHY = dict(
    gradient=1.0, worst=3.0, mean_gap=0.1, class_gap=0.5, worst_class=7, auc=0.5, lost=0.0,
    gap_error=0.1, class_gap_error=0.3, moved=0.03, saturated=0.3, saturated_observed=0.3,
    update=10,
)  # fmt: skip


def run_with(digits, inject, updates=24, **options):
    """A run into which something goes wrong, once, at update 11."""
    e = energy(digits)
    guard = GuardSettings(keep_every=4)
    tuner = Finetuner(e, digits, Settings(updates=updates, log_every=2, guard=guard, **options))
    step, done = tuner.step, []

    def faulty(*batch):
        if tuner.update == 11 and not done:
            done.append(inject(tuner))
        step(*batch)

    tuner.step = faulty
    tuner.run()
    return tuner


def blow_up(tuner):
    with torch.no_grad():
        tuner.energy.classifier.fc.weight.mul_(1e5)


def spoil_gradient(tuner):
    """The next gradient of one weight is not a number."""
    weight = tuner.energy.classifier.fc.weight

    def spoil(gradient):
        handle.remove()
        return torch.full_like(gradient, float("nan"))

    handle = weight.register_hook(spoil)


def freeze_chains(tuner):
    """Steps are next to nothing until the run goes back."""
    settings, restore = tuner.settings, tuner.learner.load_state_dict
    still = replace(settings.sampler, step_size=1e-7)
    tuner.settings = replace(settings, sampler=still)

    def put_back(state):
        tuner.settings = settings
        restore(state)

    tuner.learner.load_state_dict = put_back


def raise_rate(tuner):
    """The learning rate is a thousand times what it was, until the run goes back."""
    schedule, restore = tuner.descent.schedule.step_update, tuner.learner.load_state_dict

    def explode(update):
        schedule(update)
        for group in tuner.descent.optimizer.param_groups:
            group["lr"] *= 1e3

    def put_back(state):
        tuner.descent.schedule.step_update = schedule
        restore(state)

    tuner.descent.schedule.step_update, tuner.learner.load_state_dict = explode, put_back


def spoil_chains(tuner):
    """A chain that is to be drawn is not a number."""
    tuner.chains.state[:, :, 0, 0, 0] = float("nan")
    tuner.chains.age[:] = 5


FAULTS = {
    "scores": (blow_up, "ran away|fell behind|lost"),
    "gradient": (spoil_gradient, "gradient is not finite"),
    "rate": (raise_rate, "ran away|fell behind|lost|not finite"),
    "frozen": (freeze_chains, "chains are frozen"),
    "chains": (spoil_chains, "score or loss is not finite|gradient is not finite"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_guard_goes_back_names_the_fault_and_the_run_ends_well(digits, kind):
    inject, name = FAULTS[kind]
    tuner = run_with(digits, inject, **QUICK)
    assert tuner.update == 24 and tuner.guard.rollbacks == 1 and tuner.guard.rate == 0.5
    *before, back = tuner.guard.actions
    assert re.search(name, back["fault"]) and back["update"] <= 16 and back["back_to"] <= 8
    # What chains alone may have is tried on them first.
    assert [a["action"] for a in before] == ["chains begun anew"] * (
        back["of"] in ("chains", "stuck")
    )
    line = tuner.journal.lines[-1]
    assert line["rollbacks"] == 1 and line["worst"] < 50 and line["moved"] > 0.01


def test_a_class_that_is_gone_is_begun_anew_and_the_run_goes_on(digits):
    """Chains of class 3 lag by 8 logits until they are begun anew; those of others are kept."""
    options = QUICK | {"chains": ChainSettings(per_class=20, restart_rate=0.0), "log_every": 2}
    tuner = Finetuner(energy(digits), digits, Settings(updates=40, **options))
    terms, begin_all_anew, sick, ages = tuner.gen.terms, tuner.chains.begin_all_anew, [3], []

    def lagging(x, y, *rest, **more):
        found = terms(x, y, *rest, **more)
        lag = 8 * sum((y == c).float() for c in sick)
        return found._replace(synthesized=found.synthesized - lag)

    def cure(classes):
        begin_all_anew(classes)
        ages.extend(tuner.chains.age.sum(1).tolist())
        sick.clear()

    tuner.gen.terms, tuner.chains.begin_all_anew = lagging, cure
    tuner.run()
    (action,) = tuner.guard.actions
    assert action["action"] == "chains begun anew" and "class 3 fell behind" in action["fault"]
    assert ages[3] == 0 and min(ages[:3] + ages[4:]) > 0
    # It is seen as soon as twenty of its images were, while the mean over classes is harmless.
    assert action["update"] <= 26 and all(line["mean_gap"] < 2 for line in tuner.journal.lines)
    assert tuner.journal.lines[-1]["class_gap"] < 5 and tuner.guard.rollbacks == 0


def test_guard_begins_anew_then_goes_back_with_more_and_shorter_steps_then_stops():
    guard = Guard(GuardSettings(keep_every=10, rollbacks=2, more_steps=1.5, shorter_step=0.7))
    guard.keep(0, {"state": 1})
    behind = HEALTHY | {"mean_gap": 3.0, "stiffness": 0.8}
    done = []
    for update in (20, 22, 24, 26):
        line = behind | {"update": update}
        done.append(guard.act(find_fault(line, guard.settings), line))
    assert done == [None, {"state": 1}, None, {"state": 1}]
    assert (guard.rollbacks, guard.rate, guard.steps) == (2, 0.25, 1.5**2)
    assert guard.step_size == pytest.approx(0.7**2)
    line = behind | {"update": 28}
    assert guard.act(find_fault(line, guard.settings), line) is None
    with pytest.raises(Diverged, match="at update 28 after 2 rollbacks"):
        guard.act(find_fault(line, guard.settings), line)
    assert [a["action"] for a in guard.actions] == ["chains begun anew", "went back"] * 2 + [
        "chains begun anew"
    ]
    # However often lines come: a fault again on the next line is a reason to go back; after
    # a healthy time it is not.
    guard = Guard(GuardSettings(keep_every=1))
    guard.keep(0, {"state": 1})
    done = []
    for update in (20, 40, 60, 80):
        done.append(guard.act(find_fault(behind, guard.settings), behind | {"update": update}))
        if update == 60:
            guard.settle(70)
    assert done == [None, {"state": 1}, None, None]
    # Classes are begun anew one by one; only the same one again is a reason to go back.
    guard = Guard(GuardSettings(keep_every=10))
    guard.keep(0, {"state": 1})
    done = []
    for update, worst in ((20, 3), (22, 5), (24, 3)):
        line = HEALTHY | {"class_gap": 9.0, "worst_class": worst, "update": update}
        done.append(guard.act(find_fault(line, guard.settings), line))
    assert done == [None, None, {"state": 1}]
    # A fault of the weights is none of the chains: no other steps.
    guard = Guard(GuardSettings())
    guard.keep(0, {})
    guard.act(find_fault(HEALTHY | {"worst": 1e9}, guard.settings), HEALTHY)
    assert (guard.rollbacks, guard.steps, guard.step_size) == (1, 1.0, 1.0)
    # Chains that are behind without being thrown about are too slow: shorter steps were no help.
    guard = Guard(GuardSettings())
    guard.keep(0, {})
    slow = behind | {"stiffness": 0.4}
    for _ in range(2):
        guard.act(find_fault(slow, guard.settings), slow)
    assert (guard.rollbacks, guard.steps, guard.step_size) == (1, 1.5, 1.0)
    # Scores that run away from chains far behind are too steep for their step, at once.
    guard = Guard(GuardSettings(shorter_step=0.7))
    guard.keep(0, {})
    far = HEALTHY | {"worst": 1e9, "mean_gap": 50.0}
    assert guard.act(find_fault(far, guard.settings), far) == {}
    assert (guard.rollbacks, guard.step_size) == (1, 0.7)


@pytest.mark.parametrize("auc, steps", [(0.9, [4, 5, 6, 6]), (0.1, [2, 1, 1, 1]), (0.55, [3] * 4)])
def test_steps_follow_what_chains_reach(digits, auc, steps):
    """A run whose AUC is given: one step more or less a line, within the limits."""
    curriculum = Curriculum(auc=0.6, fewest=1, most=6)
    sampler = Langevin(n_steps=3, step_size=0.1, temperature=0.03)
    options = QUICK | {"curriculum": curriculum, "sampler": sampler}
    tuner = Finetuner(energy(digits), digits, Settings(updates=4, log_every=1, **options))
    line, seen = tuner.journal.line, []
    tuner.journal.line = lambda **numbers: line(**numbers) | {"auc": auc}
    tuner.run(callback=lambda _: seen.append(tuner.gen.sampler.n_steps))
    assert seen == steps
    # Fresh chains are as long as those of the store, whatever steps the run ended with.
    assert tuner.energy.sampler.n_steps == 10 + round(steps[-1] * tuner.chains.lifetime)
    assert Curriculum().steps(7, 1.0) == Curriculum().steps(7, 0.0) == 7


def test_steps_grow_over_a_run(digits):
    """K g^((1 - cos pi t / n) / 2), whatever the log; fresh chains are those of the last K."""
    curriculum, seen = Curriculum(growth=8.0), []
    options = QUICK | {"curriculum": curriculum, "sampler": Langevin(n_steps=2, step_size=0.1)}
    tuner = Finetuner(energy(digits), digits, Settings(updates=6, log_every=4, **options))
    synthesize = tuner.gen.synthesize
    tuner.gen.synthesize = lambda *a: (seen.append(tuner.gen.sampler.n_steps), synthesize(*a))[1]
    tuner.run()
    half = math.sqrt(3) / 2
    progress = [0, (1 - half) / 2, 1 / 4, 1 / 2, 3 / 4, (1 + half) / 2]
    assert seen == [round(2 * 8**p) for p in progress] == [2, 2, 3, 6, 10, 14]
    assert tuner.energy.sampler.n_steps == 10 + round(16 * tuner.chains.lifetime)


def test_gain_is_learned_up_the_likelihood(digits):
    """d log p / d gain is the gap, observed minus synthesized; a return takes it back."""
    tuner = Finetuner(energy(digits), digits, Settings(updates=4, learn_gain=0.1, **QUICK))
    line = HEALTHY | {"mean_gap": 0.5}
    before = tuner.energy.gain
    tuner._watch(line)
    assert tuner.energy.gain == pytest.approx(before * math.exp(0.05))
    tuner._watch(line | {"update": 12, "mean_gap": -0.5})
    assert tuner.energy.gain == pytest.approx(before)
    tuner.learner.load_state_dict(tuner.guard.act(Fault("it"), line))
    assert tuner.energy.gain == pytest.approx(before * math.exp(0.05))


def test_a_healthy_run_is_left_alone(digits):
    tuner = run_with(digits, lambda tuner: None, **QUICK)
    assert tuner.guard.actions == []
    assert all(line["lost"] == 0 and 0 < line["auc"] < 1 for line in tuner.journal.lines)


@pytest.mark.parametrize("kind", ["few pairs", "wide reference"])
def test_what_only_looks_like_a_fault_is_left_alone(digits, kind):
    """Pairs that are told apart by chance; pixels beyond black and white where there is no box."""
    few = {"batch_size": 2, "log_every": 1}
    reference = FittedGaussian.fit(gather(digits)[0], floor=0.05)
    e = convert(network(), reference=reference, gain=1.0, support="clamp")
    if kind == "wide reference":
        few = {"start": StartSettings(kind="reference"), "log_every": 2}
        e = convert(network(), reference=WhiteNoise(reference.mean, 1.0))
    tuner = Finetuner(e, digits, Settings(updates=40, **(QUICK | few)))
    tuner.run()
    seen = [max(line["auc"], line["saturated"]) for line in tuner.journal.lines]
    assert max(seen) > 0.5 and tuner.guard.actions == []


def test_lost_chains_are_begun_anew(digits, monkeypatch):
    tuner = Finetuner(energy(digits), digits, Settings(updates=8, log_every=4, **QUICK))
    tuner.guard.lost = lambda observed, synthesized: synthesized < synthesized.median()
    module = sys.modules["ebm_from_clf.finetune"]
    monkeypatch.setattr(module, "find_fault", lambda line, limits: None)
    noted = []
    begin_anew = tuner.chains.begin_anew

    def note(draw, where):
        begin_anew(draw, where)
        age = tuner.chains.age[draw.y, draw.slot]
        noted.append((where.float().mean(), age[where].sum(), age[~where].min()))

    tuner.chains.begin_anew = note
    tuner.run()
    shares, lost, others = (torch.stack(column) for column in zip(*noted, strict=True))
    assert len(noted) == 8 and shares.min() > 0.3 and lost.sum() == 0 and others.min() == 1
    assert tuner.journal.lines[0]["lost"] == pytest.approx(float(shares[:4].mean()))


def test_a_chain_is_lost_behind_all_data_only():
    guard = Guard(GuardSettings(max_lag=20.0))
    scores = torch.tensor([40.0] * 20 + [4.0] * 4)
    assert not guard.lost(scores, scores).any()
    assert guard.lost(scores, scores - 30).tolist() == [False] * 20 + [True] * 4
    assert guard.lost(scores, torch.tensor([40.0, math.nan])).tolist() == [False, True]


@pytest.mark.parametrize(
    "change", [{"mean_gap": 2.5, "gap_error": 0.2}, {"class_gap": 9.0, "class_gap_error": 1.5}]
)
def test_a_gap_that_chance_may_make_is_no_fault(change):
    assert find_fault(HEALTHY | change, GuardSettings()) is None
    # Mutant: limits on the gap itself.
    sure = {name: 0.0 for name in change if name.endswith("error")}
    assert "fell behind" in find_fault(HEALTHY | change | sure, GuardSettings()).text


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"gradient": float("nan")}, "gradient is not finite"),
        ({"worst": float("inf")}, "score or loss is not finite"),
        ({"worst": 2e3}, "ran away"),
        ({"lost": 0.4}, "40% of the chains are lost"),
        ({"mean_gap": 2.5}, "fell behind the data, the gap is 2.5"),
        ({"auc": 1.0, "mean_gap": 1.0}, "100.0% of the pairs are told apart"),
        ({"class_gap": 6.0}, "chains of class 7 fell behind"),
        ({"gradient": 1e5}, "gradient ran away"),
        ({"saturated": 0.9}, "60% more of the pixels than the data"),
        ({"moved": 1e-7}, "frozen"),
        ({"moved": float("nan")}, "frozen"),
    ],
)
def test_each_fault_has_its_name(change, name):
    guard = Guard(GuardSettings(rollbacks=0))
    assert find_fault(HEALTHY, guard.settings) is None
    line = HEALTHY | change
    fault = find_fault(line, guard.settings)
    assert name in fault.text and fault.classes == ([7] if "class_gap" in change else None)
    if fault.of != "weights":
        assert guard.act(fault, line) is None
    with pytest.raises(Diverged, match="at update 10 after 0 rollbacks"):
        guard.act(fault, line)


def test_divergence_is_reported_not_masked(digits):
    options = QUICK | {"guard": GuardSettings(slow_down=1.0, rollbacks=2)}
    settings = Settings(updates=60, learning_rate=3.0, warmup=0, log_every=1, **options)
    with pytest.raises(Diverged, match="after 2 rollbacks"):
        finetune(energy(digits), digits, settings)


def test_a_weight_that_is_not_finite_stops_the_run(digits):
    e = energy(digits)
    tuner = Finetuner(e, digits, Settings(updates=20, log_every=1, **QUICK))
    with torch.no_grad():
        e.classifier.fc.bias[0] = float("nan")
    with pytest.raises(Diverged):
        tuner.run()


def test_labels_must_fit_the_classifier(digits):
    with pytest.raises(UsageError, match="num_classes=10"):
        Finetuner(energy(digits, num_classes=5), digits)
    with pytest.raises(UsageError, match="no image of class 10, 11"):
        Finetuner(energy(digits, num_classes=12), digits)


def test_images_must_fit_the_classifier(digits):
    small = Images(digits.images[:, :, ::2, ::2], digits.labels, digits.class_names)
    with pytest.raises(UsageError, match="must have shape"):
        Finetuner(energy(digits), small)


@pytest.mark.parametrize("ema", [0.999, 0.5, 0.0])
def test_the_average_weighs_late_weights_more(ema):
    """Weights of step t weigh (t + 1) (t + 2), up to the largest decay; then the decay is that."""
    network = torch.nn.Linear(1, 1, bias=False)
    settings = Settings(
        updates=40, optimizer="sgd", schedule="constant", warmup=0, learning_rate=0.1, ema=ema
    )
    descent, seen = Descent(network, settings), []
    for update in range(20):
        descent.step((network.weight - math.sin(update)).square().sum(), update)
        seen.append(network.weight.item())
    if ema == 0.999:
        weights = [(t + 1) * (t + 2) for t in range(20)]
        expected = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
    else:
        expected = seen[0]
        for t, value in enumerate(seen[1:], 1):
            decay = min(ema, t / (3 + t))
            expected = decay * expected + (1 - decay) * value
    assert descent.average.module.weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name, last", [("cosine", 1 / 50), ("tanh", 1 / 50), ("constant", 1)])
def test_rate_rises_over_the_warmup_and_falls_by_the_schedule(name, last):
    """From 1/100 at first, linearly to the whole rate, and by the schedule to about 1/50."""
    network = torch.nn.Linear(1, 1)
    settings = Settings(updates=100, warmup=10, schedule=name, learning_rate=1e-2)
    descent = Descent(network, settings)
    rates = []
    for update in range(100):
        descent.step(network(torch.zeros(1)).sum(), update)
        rates.append(descent.rate / 1e-2)
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(0.01 + 0.99 / 2, abs=1e-4)
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] == pytest.approx(last, abs=0.02)
    if name == "cosine":
        assert rates[50] == pytest.approx(0.02 + 0.98 * 0.5, abs=0.02)
    descent.step(network(torch.zeros(1)).sum(), 50, 0.5)
    assert descent.rate / 1e-2 == pytest.approx(rates[50] / 2)


@pytest.mark.parametrize(
    "options",
    [
        {"updates": 0},
        {"learning_rate": 0.0},
        {"ema": 1.0},
        {"optimizer": "adm"},
        {"schedule": "plateau"},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="Settings"):
        Settings(**options)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_digits_are_learned_in_seconds(digits):
    """Fresh chains of digits8x8 read as their class to a network that never met them."""
    test = load_data("digits8x8", "test", size=SIZE, channels=1)
    e = energy(digits)
    e.classifier = network(width=32)
    train_classifier(e.classifier, e.space, digits, epochs=16, augment=Augment(shift=1))
    before = accuracy(e, test)
    settings = Settings(
        updates=150,
        clean_batch_size=32,
        learning_rate=1.2e-3,
        sampler=Langevin(n_steps=5, step_size=0.1, temperature=0.03),
        start=StartSettings(rank=16),
        chains=ChainSettings(per_class=64, restart_rate=0.2),
        augment=Augment(shift=1),
        grid_every=0,
    )
    finetune(e, digits, settings)
    judge = train_classifier(
        network(seed=9, width=32), e.space, digits, epochs=16, augment=Augment(shift=1), seed=9
    )
    with torch.no_grad():
        samples = draw(e, range(10), 10)
        agreement = (judge(e.space(samples.images)).argmax(1) == samples.classes).float().mean()
        x = e.start(samples.classes, generator=torch.Generator().manual_seed(0))
        starts = (judge(e.space(x)).argmax(1) == samples.classes).float().mean()
    assert agreement >= 0.95 and agreement > starts
    assert accuracy(e, test) >= before - 0.01
