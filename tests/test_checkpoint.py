"""A saved energy: timm reads the classifier, `load` the rest, and nothing is half-written."""

import json
import os

import pytest
import timm
import torch
import toys
from safetensors.torch import load_file, save_file

from ebm_from_clf import (
    ClassGaussian,
    ClassMixture,
    DataStart,
    FittedGaussian,
    Langevin,
    ReferenceStart,
    SpectralNoise,
    UniformStart,
    UsageError,
    WhiteNoise,
    convert,
    load,
    sample,
    save,
)

SHAPE = (3, 16, 16)
NAMES = ["tabby, tabby cat", "naïve", ""]


def images(n=12, seed=1):
    return torch.rand(n, *SHAPE, generator=toys.seeded(seed))


def create(name="test_resnet", **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        return timm.create_model(name, num_classes=3, **kwargs)


def energy(reference=None, start=None, **options):
    found = convert(create(), size=16, reference=reference, **options)
    found.start = start
    return found


def gaussian(rank=2):
    return ClassGaussian.fit(images(), torch.arange(12) % 3, 3, rank=rank)


def small(start):
    """The start kept at half of the size, and drawn at the whole."""
    found = {k: v[..., ::2, ::2].clone() for k, v in start.named_buffers() if k != "weight"}
    weight = {"weight": start.weight} if isinstance(start, ClassMixture) else {}
    return type(start)(**found, **weight, size=SHAPE[1:])


def mixture():
    x, y = images(150), torch.arange(150) % 3
    return ClassMixture.fit(x, y, 3, modes=2, rank=2)


def timm_logits(place, x):
    classifier = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    with torch.no_grad():
        return classifier(x)


REFERENCES = {
    "white": lambda: WhiteNoise(images()[0], 0.167),
    "white per pixel": lambda: WhiteNoise(images()[0], 0.1 + images(seed=2)[0]),
    "spectral": lambda: SpectralNoise(images()[0], 0.167),
    "spectral, alpha": lambda: SpectralNoise(images()[0], 0.167, 1.7),
    "fitted": lambda: FittedGaussian.fit(images()),
    "fitted spectral": lambda: FittedGaussian.fit(images(), "spectral"),
    "fitted, all parts": lambda: FittedGaussian(
        images()[0], 0.1 + images(seed=2)[0], amplitude(), 0.02 * torch.eye(3) + 0.01
    ),
}


def amplitude():
    k = torch.fft.fftfreq(16).abs()
    return 1 / (0.3 + k[:, None] + 2 * k[None])


KINDS = list(REFERENCES)


@pytest.mark.parametrize("kind", KINDS)
def test_energies_come_back_bit_for_bit(kind, tmp_path):
    old = energy(REFERENCES[kind](), gain=1 / 3, gauge="centered")
    save(old, tmp_path / "model")
    new = load(tmp_path / "model")
    assert type(new.reference) is type(old.reference)
    assert (new.gain, new.gauge, new.support) == (1 / 3, "centered", "unbounded")
    y = torch.arange(12) % 3
    with torch.no_grad():
        assert torch.equal(new.logits(images()), old.logits(images()))
        assert torch.equal(new.energy(images(), y), old.energy(images(), y))
    u = old.reference.encode(images())
    assert torch.equal(new.reference.decode(u), old.reference.decode(u))
    # log |det A| is a float64 sum over float32 tensors.
    expected = old.reference.log_prob(images())
    assert new.reference.log_prob(images()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("support", ["unbounded", "reflect", "clamp"])
@pytest.mark.parametrize("gauge", ["raw", "log_softmax", "centered"])
def test_options_come_back(gauge, support, tmp_path):
    old = energy(WhiteNoise(images()[0]), gauge=gauge, support=support, gain=555.0)
    old.sampler = Langevin(7, 0.123, 0.028, True, tilt_norm=0.3, step_factors=(1.0, 0.3, 0.5))
    old.class_names = NAMES
    save(old, tmp_path / "model")
    new = load(tmp_path / "model")
    assert (new.gauge, new.support, new.gain) == (gauge, support, 555.0)
    assert new.sampler == old.sampler
    assert new.class_names == NAMES
    assert new.space.size == (16, 16)
    assert torch.equal(new.space.mean, old.space.mean)
    assert torch.equal(new.space.std, old.space.std)


STARTS = {
    "gaussian": lambda reference: gaussian(),
    "mixture": lambda reference: mixture(),
    "rank 0": lambda reference: gaussian(rank=0),
    "low resolution": lambda reference: small(gaussian()),
    "mixture of low resolution": lambda reference: small(mixture()),
    "reference": ReferenceStart,
    "uniform": lambda reference: UniformStart(SHAPE),
    "none": lambda reference: None,
}


@pytest.mark.parametrize("kind", STARTS)
def test_starts_and_samples_come_back_bit_for_bit(kind, tmp_path):
    old = energy(WhiteNoise(images()[0]))
    old.start = STARTS[kind](old.reference)
    old.sampler = Langevin(n_steps=3)
    save(old, tmp_path / "model")
    new = load(tmp_path / "model")
    assert type(new.start) is type(old.start)
    assert torch.equal(sample(new, [0, 2], n=2), sample(old, [0, 2], n=2))
    if old.start is not None:
        y = torch.tensor([0, 1, 2, 0])
        drawn = [e.start(y, generator=toys.seeded(3)) for e in (old, new)]
        assert torch.equal(*drawn)


def test_a_start_saved_without_its_size_has_that_of_its_mean(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["ebm"]["start_size"]
    (copy / "config.json").write_text(json.dumps(config))
    y = torch.tensor([0, 1, 2])
    old, new = (s(y, generator=toys.seeded(3)) for s in (gaussian(), load(copy).start))
    assert torch.equal(old, new)


def test_a_reference_start_shares_the_reference_of_its_energy(tmp_path):
    old = energy(WhiteNoise(images()[0]))
    old.start = ReferenceStart(old.reference)
    save(old, tmp_path / "model")
    new = load(tmp_path / "model")
    assert new.start.reference is new.reference


def test_data_are_not_saved(tmp_path):
    old = energy(WhiteNoise(images()[0]), DataStart(images(), torch.arange(12) % 3, 3))
    with pytest.warns(UserWarning, match="DataStart is not kept; set energy.start"):
        save(old, tmp_path / "model")
    assert load(tmp_path / "model").start is None
    stored = load_file(tmp_path / "model" / "ebm.safetensors")
    assert set(stored) == {"reference.mean", "reference.scale"}


ARCHITECTURES = [
    ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}),
    ("swin_tiny_patch4_window7_224", {"img_size": 32, "depths": (1, 1, 1, 1)}),
    ("resnet18", {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8], "in_chans": 1}),
    ("test_efficientnet", {"act_layer": "gelu"}),
]


@pytest.mark.parametrize("name, options", ARCHITECTURES)
def test_timm_reads_the_classifier_with_its_options(name, options, tmp_path):
    old = convert(create(name, **options), size=32)
    save(old, tmp_path / "model")
    x = torch.rand(2, *old.space.shape, generator=toys.seeded())
    with torch.no_grad():
        expected = old.classifier.eval()(old.space(x))
    assert torch.equal(timm_logits(tmp_path / "model", old.space(x)), expected)
    new = load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(new.logits(x), expected)
    assert new.space.size == (32, 32)


def test_a_classifier_with_another_head_than_it_was_created_with_is_saved(tmp_path):
    classifier = create()
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(1)
        classifier.reset_classifier(7)
    save(convert(classifier, size=16), tmp_path / "model")
    assert load(tmp_path / "model").n_classes == 7


def test_a_classifier_in_channels_last_is_saved_and_left_so(tmp_path):
    old = energy()
    old.classifier.to(memory_format=torch.channels_last)
    save(old, tmp_path / "model")
    weight = old.classifier.layer1[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    saved = load(tmp_path / "model").classifier.layer1[0].conv2.weight
    assert torch.equal(saved, weight)


@pytest.mark.parametrize("name", ["run #1?", "a@b", "sp ace", "ünï", "c:d", "a%20b", "-x", "a.b"])
def test_any_name_of_a_folder_works(name, tmp_path):
    save(energy(WhiteNoise(images()[0])), tmp_path / name)
    assert load(tmp_path / name).n_classes == 3


def test_relative_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(energy(), "runs/model")
    assert load("runs/model").n_classes == 3
    assert os.listdir(tmp_path / "runs") == ["model"]


def test_the_folder_holds_no_pickle(tmp_path):
    save(energy(start=gaussian()), tmp_path / "model")
    assert {p.name for p in tmp_path.rglob("*")} == {
        "model", "config.json", "model.safetensors", "ebm.safetensors"
    }  # fmt: skip
    assert json.loads((tmp_path / "model" / "config.json").read_text())["ebm"]["format"] == 1


def test_file_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(energy(), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes.pop("model") == 0o750
    assert set(modes.values()) == {0o640}


def test_a_folder_in_use_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds something already"):
        save(energy(), tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine.txt"]
    with pytest.raises(UsageError, match="mine.txt: holds something already"):
        save(energy(), tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_present_folder_and_a_link_to_an_empty_one_are_filled(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    save(energy(), tmp_path / "link")
    assert (tmp_path / "here" / "ebm.safetensors").is_file() and (tmp_path / "link").is_symlink()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    save(energy(), ".")
    assert sorted(p.name for p in tmp_path.joinpath("there").iterdir()) == sorted(
        p.name for p in tmp_path.joinpath("here").iterdir()
    )


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    save(energy(), tmp_path / "model")
    assert load(tmp_path / "model").n_classes == 3


@pytest.mark.parametrize("writer", ["save_for_hf", "save_file"])
def test_an_error_while_saving_leaves_nothing(writer, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"ebm_from_clf.checkpoint.{writer}", full)
    with pytest.raises(OSError, match="No space left"):
        save(energy(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_module_timm_did_not_make_is_not_saved(tmp_path):
    with pytest.raises(UsageError, match="not a timm model.*timm.create_model"):
        save(toys.smooth(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="'act_layer' is not serializable"):
        save(convert(create(act_layer=torch.nn.SiLU), size=16), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved") / "model"
    save(energy(WhiteNoise(images()[0]), gaussian()), place)
    return place


@pytest.fixture
def copy(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def refused(place, match):
    with pytest.raises(UsageError, match=match) as refusal:
        load(place)
    assert "\n" not in str(refusal.value)


FILES = ["config.json", "model.safetensors", "ebm.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name, copy):
    assert load(copy).n_classes == 3
    (copy / name).unlink()
    refused(copy, str(copy))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0, 7, 0.5, -1])
def test_a_truncated_file_is_refused(name, part, copy):
    data = (copy / name).read_bytes()
    end = int(part * len(data)) if isinstance(part, float) else part
    # JSON ends in a line feed or a brace; both count as one byte too few here.
    (copy / name).write_bytes(data.rstrip()[:end])
    refused(copy, str(copy))


@pytest.mark.parametrize("name", FILES)
def test_a_garbled_file_is_refused(name, copy):
    garbage = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=toys.seeded())
    (copy / name).write_bytes(garbage.numpy().tobytes())
    refused(copy, str(copy))


@pytest.mark.parametrize("name, key", [("model", "fc.weight"), ("ebm", "reference.mean")])
def test_numbers_that_are_not_finite_are_refused_by_name(name, key, copy):
    tensors = load_file(copy / f"{name}.safetensors")
    tensors[key].view(-1)[-1] = float("nan")
    save_file(tensors, copy / f"{name}.safetensors")
    refused(copy, f"{key} is not finite")


DAMAGED = "not a saved energy, or damaged"
WRONG = {
    "no ebm": (lambda config: config.pop("ebm"), DAMAGED),
    "ebm is text": (lambda config: config.update(ebm="yes"), DAMAGED),
    "newer format": (lambda config: config["ebm"].update(format=2), "newer version; upgrade"),
    "unknown reference": (lambda config: config["ebm"].update(reference="os.system"), DAMAGED),
    "missing gain": (lambda config: config["ebm"].pop("gain"), DAMAGED),
    "gain is NaN": (lambda config: config["ebm"].update(gain=float("nan")), "must be positive"),
    "unknown gauge": (lambda config: config["ebm"].update(gauge="none"), "`gauge` is"),
    "short size": (lambda config: config["ebm"].update(size=[16]), DAMAGED),
    "other size": (lambda config: config["ebm"].update(size=[16, 8]), DAMAGED),
    "large start": (lambda config: config["ebm"].update(start_size=[32, 32]), DAMAGED),
    "start of no size": (lambda config: config["ebm"].update(start_size=[0, 0]), DAMAGED),
    "odd size": (lambda config: config["ebm"].update(start_size="ab"), DAMAGED),
    "mean is null": (lambda config: config["ebm"].update(mean=None), DAMAGED),
    "unknown setting": (lambda config: config["ebm"].update(sampler={"steps": 1}), "steps"),
    "steps of other classes": (
        lambda config: config["ebm"].update(sampler={"step_factors": [1.0]}),
        "1 `step_factors` for steps of 3",
    ),
    "wrong setting": (lambda config: config["ebm"].update(sampler={"step_size": 9}), "step_size"),
    "unknown classifier": (lambda config: config.update(architecture="resnt18"), "Unknown model"),
    "other classifier": (
        lambda config: config.update(architecture="test_vit"),
        "classifier 'local-dir",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_config_is_refused(fault, copy):
    config = json.loads((copy / "config.json").read_text())
    change, match = WRONG[fault]
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, match)


WRONG_TENSORS = {
    "missing": lambda tensors: tensors.pop("reference.mean"),
    "unknown": lambda tensors: tensors.update({"other.mean": torch.zeros(1)}),
    "too many": lambda tensors: tensors.update({"reference.other": torch.zeros(1)}),
    "wrong shape": lambda tensors: tensors.update({"reference.scale": torch.ones(5, 7)}),
    "no start": lambda tensors: tensors.pop("start.mean"),
    "small start": lambda t: t.update({k: v[:1].clone() for k, v in t.items() if "start" in k}),
    "odd start": lambda t: t.update({"start.residual": t["start.residual"][:1].clone()}),
}


@pytest.mark.parametrize("fault", WRONG_TENSORS)
def test_wrong_tensors_are_refused(fault, copy):
    tensors = load_file(copy / "ebm.safetensors")
    WRONG_TENSORS[fault](tensors)
    save_file(tensors, copy / "ebm.safetensors")
    refused(copy, DAMAGED)


def test_no_folder_at_all_is_refused(tmp_path):
    refused(tmp_path / "none", f"none: {DAMAGED}")
    refused(tmp_path, DAMAGED)


def test_a_folder_of_timm_alone_is_no_energy(tmp_path):
    timm.models.save_for_hf(create(), str(tmp_path), safe_serialization=True)
    refused(tmp_path, f"{DAMAGED} .KeyError: 'ebm'")


@pytest.mark.parametrize("part", ["start", "sampler"])
def test_parts_of_other_classes_are_refused_before_they_are_written(part, tmp_path):
    found = energy(start=gaussian())
    if part == "start":
        found.start = ClassGaussian.fit(images(), torch.arange(12) % 2, 2, rank=2)
    else:
        found.sampler = Langevin(5, 0.1, step_factors=(1.0, 0.5))
    with pytest.raises(UsageError, match="save: .*Set the start or sampler"):
        save(found, tmp_path / "model")
    assert not (tmp_path / "model").exists()
