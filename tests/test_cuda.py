"""The same on a GPU: energies, chains, samples, learning, and what looks into a network.

CUDA_VISIBLE_DEVICES=0 pytest tests/test_cuda.py
"""

import copy
import json

import pytest
import timm
import torch
import toys
from torch import nn

from ebm_from_clf import (
    FittedGaussian,
    Langevin,
    Settings,
    SpectralNoise,
    convert,
    edit,
    load,
    sample,
    save,
    units,
)
from ebm_from_clf.adversarial import Adversarial
from ebm_from_clf.chain_settings import ChainSettings, StartSettings
from ebm_from_clf.cli import main
from ebm_from_clf.curriculum import Curriculum
from ebm_from_clf.data import Images, gather, load_data
from ebm_from_clf.drift import energy_and_score
from ebm_from_clf.energy import ClassifierEnergy
from ebm_from_clf.finetune import Finetuner
from ebm_from_clf.judge import Judge
from ebm_from_clf.objective import Objective
from ebm_from_clf.smooth import Smoothing
from ebm_from_clf.theory import examine_theory

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU, or CUDA_VISIBLE_DEVICES does not name one"
)
SIZE = (16, 16)


@pytest.fixture(autouse=True)
def exact():
    """Products and convolutions in single precision proper, so that both devices agree."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic
    products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic = False, False, True
    yield
    products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic = before


@pytest.fixture(scope="module")
def digits():
    return load_data("digits8x8", "train", size=SIZE, channels=1)


def network(channels=1, num_classes=10):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        return timm.create_model(
            "resnet18",
            in_chans=channels,
            num_classes=num_classes,
            layers=(1, 1, 0, 0),
            channels=(16, 32, 32, 32),
            stem_type="deep",
            stem_width=8,
            replace_stem_pool=True,
            pretrained_cfg_overlay=dict(
                input_size=(channels, *SIZE), mean=(0.5,) * channels, std=(0.5,) * channels
            ),
        ).eval()


def settings(**options):
    return Settings(
        **dict(
            updates=30,
            batch_size=16,
            clean_batch_size=16,
            sampler=Langevin(n_steps=3, step_size=0.1, temperature=0.03),
            curriculum=Curriculum(growth=2.0),
            start=StartSettings(rank=4, modes=2),
            chains=ChainSettings(per_class=20, restart_rate=(0.5, 0.05)),
            channels_last=True,
            grid_every=0,
        )
        | options
    )


def energy(digits, device="cuda"):
    reference = FittedGaussian.fit(gather(digits)[0], floor=0.05)
    return convert(network(), reference=reference, gain=600.0, support="clamp").to(device)


def spectral(channels=3, **options):
    reference = SpectralNoise(torch.full((channels, *SIZE), 0.5))
    return convert(network(channels, 5), reference=reference, **options)


def close(a, b, tolerance):
    return (a.cpu() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("make", [toys.linear, toys.smooth])
def test_energies_and_scores_agree_with_the_cpu(make):
    here, there = make(), make().to("cuda")
    u, y = torch.randn(6, *toys.SHAPE, generator=toys.seeded()), torch.arange(6) % 3
    found = energy_and_score(there, u.cuda(), y.cuda())
    for a, b in zip(found, energy_and_score(here, u, y), strict=True):
        assert a.is_cuda and close(a, b, 1e-5)
    x = here.reference.decode(u)
    assert close(there.posterior(x.cuda()), here.posterior(x), 1e-5)


def test_samples_are_those_of_the_cpu(digits):
    # Noise is drawn on the CPU, one generator an image: a seed is the same image anywhere.
    sampler = Langevin(n_steps=10, step_size=0.1, temperature=0.03)
    here, there = (energy(digits, d) for d in ("cpu", "cuda"))
    a, b = (sample(e, [3, 7], n=2, sampler=sampler) for e in (there, here))
    assert not a.is_cuda and close(a, b, 2e-3)


def test_smoothed_scores_and_edits_run_where_the_energy_is():
    there = spectral(gain=50.0, smoothing=Smoothing()).to("cuda")
    sampler = Langevin(n_steps=3, step_size=0.1, temperature=0.05)
    x = sample(there, [1], n=2, sampler=sampler)
    assert x.isfinite().all()
    changed = edit(there, x[0], strength=0.4)
    assert sample(changed, [2], sampler=sampler).isfinite().all()


def test_units_read_the_same_channel():
    here = spectral(gain=10.0)
    there = copy.deepcopy(here).to("cuda")
    u = torch.randn(2, 3, *SIZE, generator=toys.seeded())
    name = "layer1.0.conv1:4"
    # Its network alone: the energy averages over views, which are random.
    a, b = units(there, [name]), units(here, [name])
    x = here.reference.decode(u)
    assert a.reference.mean.is_cuda and close(a.classify(x.cuda()), b.classify(x), 1e-4)


def test_theory_holds_in_double_precision():
    here = spectral(gain=10.0)
    on_cpu = examine_theory(here)
    on_gpu = examine_theory(copy.deepcopy(here).to("cuda"))
    for a, b in zip(on_gpu.checks, on_cpu.checks, strict=True):
        assert a.statement == b.statement and a.status == b.status
        if b.error is not None and b.error < 1e-12:
            assert a.error < 1e-11


@pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
def test_learning_lowers_the_gap_and_is_finite(digits, storage):
    chains = ChainSettings(per_class=20, restart_rate=(0.5, 0.05), storage=storage)
    tuner = Finetuner(energy(digits), digits, settings(chains=chains))
    tuner.run()
    assert tuner.chains.age.is_cuda and next(tuner.energy.classifier.parameters()).is_cuda
    assert all(line["worst"] < 1e3 for line in tuner.journal.lines)


def test_an_interrupted_run_goes_on_where_it_was(digits):
    def run(state=None, updates=8):
        tuner = Finetuner(energy(digits), digits, settings(warmup=5))
        if state is not None:
            tuner.load_state_dict(state)
        batches = tuner.batches()
        while tuner.update < updates:
            tuner.step(*next(batches))
        return tuner

    whole = run()
    half = run(copy.deepcopy(run(updates=4).state_dict()))
    weights = (t.energy.classifier.parameters() for t in (whole, half))
    assert all(close(a.detach(), b.detach().cpu(), 1e-4) for a, b in zip(*weights, strict=True))
    assert torch.equal(whole.chains.age, half.chains.age)


def test_mapped_chains_stay_in_their_file(digits, tmp_path):
    chains = ChainSettings(per_class=20, storage="uint8", mapped=True)
    tuner = Finetuner(energy(digits), digits, settings(chains=chains, updates=5), tmp_path)
    tuner.run()
    assert not tuner.chains.state.is_cuda and int((tuner.chains.age > 0).sum()) > 20


@pytest.mark.parametrize(
    "objective",
    [
        Objective(kind="logistic"),
        Objective(scores="joint"),
        Objective(trim=0.1, clamp=0.02, square=0.01),
        Objective(adversarial=Adversarial(radius=0.5), label_smoothing=0.1),
    ],
)
def test_objectives_run_on_the_gpu(digits, objective):
    tuner = Finetuner(energy(digits), digits, settings(objective=objective, updates=3))
    tuner.run()
    assert torch.cat([p.flatten() for p in tuner.energy.classifier.parameters()]).isfinite().all()


def test_a_folder_written_on_the_gpu_opens_on_the_cpu(digits, tmp_path):
    there = energy(digits)
    save(there, tmp_path / "model")
    here = load(tmp_path / "model")
    u, y = torch.randn(2, 1, *SIZE, generator=toys.seeded()), torch.tensor([1, 5])
    assert close(there(u.cuda(), y.cuda()), here(u, y), 1e-5)


def test_a_judge_on_the_gpu_scores_images_of_the_cpu(digits):
    there = energy(digits)
    few = Images(digits.images[:200], digits.labels[:200], digits.class_names)
    judge = Judge(there.classifier, there.space, few, few)
    x, y = gather(few)
    assert judge.score(x, y)["frechet"] < 1e-6


def run(line):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 0


def test_the_command_line_takes_the_gpu(tmp_path):
    run(
        f"quickstart --output {tmp_path}/quick --n 2 --judge_epochs 1 --classifier.epochs 1 "
        "--finetune.updates 5"
    )
    metrics = json.loads((tmp_path / "quick" / "metrics.json").read_text())
    assert metrics["device"] == torch.cuda.get_device_name()
    run(f"sample {tmp_path}/quick/model --classes 3 --n 2 --output {tmp_path}/three")
    run(f"evaluate {tmp_path}/quick/model --data mnist5k --output {tmp_path}/scores")


class Waiting(nn.Module):
    """A network that waits for the GPU, which no graph can hold."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.num_classes = network.num_classes

    def forward(self, x):
        return self.network(x) if float(x.detach().sum()) < 1e9 else x


@pytest.mark.parametrize("precision, error", [(None, 1e-5), (torch.bfloat16, 0.1)])
def test_passes_that_are_played_are_those_of_the_energy(digits, precision, error):
    tuner = Finetuner(energy(digits), digits, settings(updates=20))
    tuner.energy.precision = precision
    batches, known = tuner.batches(), None
    for n, gain in ((7, 1.0), (7, 1.0), (8, 1.0), (7, 1.5)):
        tuner.energy.gain *= gain
        u = torch.randn(n, *SIZE, device="cuda")[:, None]
        y = torch.arange(n, device="cuda")
        synthesizer = tuner.gen.synthesizer
        played, plain = synthesizer.chain_energy(), synthesizer.swift_energy()
        assert not isinstance(played, ClassifierEnergy)
        for found, expected in zip(
            energy_and_score(played, u, y), energy_and_score(plain, u, y), strict=True
        ):
            assert close(found, expected.cpu(), error)
        # The same recording follows the weights; another gain needs another one.
        passes = synthesizer._recorder._passes
        last, known = known, passes[next(k for k in passes if k[0] == 7)]
        assert last is None or (last is known) == (gain == 1.0)
        tuner.step(*next(batches))
    tuner.descent.finish()
    played, plain = synthesizer.chain_energy(), synthesizer.swift_energy()
    assert close(energy_and_score(played, u, y)[1], energy_and_score(plain, u, y)[1].cpu(), error)


def test_a_network_that_no_graph_can_hold_learns_without(digits):
    given = energy(digits)
    given.classifier = Waiting(given.classifier)
    tuner = Finetuner(given, digits, settings(updates=4))
    tuner.run()
    assert isinstance(tuner.gen.synthesizer.chain_energy(), ClassifierEnergy)
    assert all(line["worst"] < 1e3 for line in tuner.journal.lines)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").isfinite().all()


def test_a_loss_with_recorded_passes_can_be_copied(digits):
    tuner = Finetuner(energy(digits), digits, settings(updates=2))
    tuner.run()
    other = copy.deepcopy(tuner.gen)
    x, y = (t.cuda() for t in next(iter(tuner.batches()))[:2])
    assert other(x, y).isfinite()
