"""Samples: one seed, one image, whatever the company; and the folder they are written to."""

import json

import pytest
import torch
import toys
from PIL import Image, ImageChops

from ebm_from_clf import Langevin, UsageError, edit, sample
from ebm_from_clf.folders import slug
from ebm_from_clf.gallery import write_samples
from ebm_from_clf.sample import draw, join

SAMPLER = Langevin(n_steps=12, step_size=0.4)


def test_an_image_depends_on_its_class_and_seed_alone():
    energy = toys.smooth(gain=3.0)
    whole = sample(energy, [0, 2], n=5, seed=3, sampler=SAMPLER)
    assert whole.shape == (10, *toys.SHAPE)
    for size in (1, 3):
        split = sample(energy, [0, 2], n=5, seed=3, sampler=SAMPLER, batch_size=size)
        assert (whole - split).abs().max() < 1e-5
    alone = sample(energy, [2], n=1, seed=4, sampler=SAMPLER)
    assert (alone[0] - whole[6]).abs().max() < 1e-5
    assert (whole[0] - whole[1]).abs().max() > 0.01


def test_frames_do_not_change_the_images():
    energy = toys.smooth(gain=3.0)
    plain = draw(energy, [1], 3, sampler=SAMPLER)
    filmed = draw(energy, [1], 3, sampler=SAMPLER, frames=5)
    assert torch.equal(plain.images, filmed.images)
    assert len(filmed.frames) >= 5
    assert (filmed.frames[-1] - filmed.images).abs().max() == 0


def test_samples_leave_global_randomness_alone():
    state = torch.get_rng_state()
    sample(toys.smooth(), [0], sampler=SAMPLER)
    assert torch.equal(state, torch.get_rng_state())


def test_out_of_memory_halves_the_batch():
    energy = toys.smooth(gain=3.0)
    expected = sample(energy, [0], n=6, sampler=SAMPLER)
    forward = energy.classifier.forward

    def small(x):
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return forward(x)

    energy.classifier.forward = small
    found = sample(energy, [0], n=6, sampler=SAMPLER)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("classes, n", [([3], 1), ([-1], 1), ([], 1), ([0], 0)])
def test_bad_requests_are_refused(classes, n):
    with pytest.raises(UsageError, match="classes are 0 to 2"):
        sample(toys.smooth(), classes, n)


class Gray(toys.Smooth):
    def __init__(self):
        super().__init__(dim=64)


def gray():
    from ebm_from_clf import ClassifierEnergy, WhiteNoise

    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return ClassifierEnergy(Gray(), WhiteNoise(torch.full((1, 8, 8), 0.5)))


def test_the_folder_holds_images_and_their_origin(tmp_path):
    out = tmp_path / "out"
    names = ["tabby, tabby cat", "../../etc/passwd", ""]
    energy = gray()
    energy.class_names = names
    parts = []
    write_samples(energy, [0, 1], 3, 5, out, sampler=SAMPLER, batch_size=2, each=parts.append)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert lines[0]["file_name"] == "00000_tabby/5.png"
    assert lines[3]["file_name"] == "00001_etc-passwd/5.png"
    assert set(lines[0]) == {
        "file_name", "class", "label", "seed", "energy", "steps", "saturated"
    }  # fmt: skip
    for line, value in zip(lines, join(parts).energies.tolist(), strict=True):
        assert (out / line["file_name"]).is_file() and line["energy"] == pytest.approx(value)
    assert (out / "grid.png").is_file() and (out / "chains.gif").is_file()
    assert len(list(tmp_path.rglob("*.png"))) == 7
    write_samples(energy, [0, 1], 3, 5, tmp_path / "at once", sampler=SAMPLER, batch_size=6)
    for name in ("grid.png", "chains.gif"):
        with Image.open(out / name) as first, Image.open(tmp_path / "at once" / name) as second:
            apart = ImageChops.difference(first.convert("L"), second.convert("L"))
        assert apart.getextrema()[1] <= 1


def test_an_interrupted_folder_goes_on_where_it_stopped(tmp_path):
    energy, ask = gray(), ([0, 2, {0: 0.5, 1: 0.5}], 2, 7)
    write_samples(energy, *ask, tmp_path / "whole", sampler=SAMPLER, batch_size=1)

    def interrupted(part):
        if int(part.classes[0]) == 2 and int(part.seeds[0]) == 8:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_samples(energy, *ask, out, sampler=SAMPLER, batch_size=1, each=interrupted)
    with (out / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "00000')  # killed within a line
    (out / ".grid.png.1.tmp").touch()
    for other in ({"sampler": Langevin(3)}, {"sampler": SAMPLER, "resume": False}):
        with pytest.raises(UsageError, match="another request|holds something already"):
            write_samples(energy, *ask, out, **{"resume": True} | other)
    drawn = []
    write_samples(energy, *ask, out, sampler=SAMPLER, batch_size=1, resume=True, each=drawn.append)
    assert len(drawn) == 2, "the four that were there are not drawn again"
    for file in (tmp_path / "whole").rglob("*"):
        if file.suffix in (".png", ".jsonl", ".json"):
            other = out / file.relative_to(tmp_path / "whole")
            assert file.read_bytes() == other.read_bytes(), file.name
    assert (out / "00000x0.5+00001x0.5_0-1" / "7.png").is_file()
    assert not list(out.glob(".*.tmp"))
    with pytest.raises(UsageError, match="all samples are there"):
        write_samples(energy, *ask, out, sampler=SAMPLER, resume=True)


@pytest.mark.parametrize("half", [b"{half\n", b"\xff\n", b"null\n"])
@pytest.mark.parametrize("name", ["settings.json", "metadata.jsonl"])
def test_a_damaged_folder_is_refused_and_kept(name, half, tmp_path):
    ask = (gray(), [0], 1, 0, tmp_path)
    write_samples(*ask, sampler=SAMPLER)
    (tmp_path / "grid.png").unlink()
    (tmp_path / name).write_bytes(half)
    with pytest.raises(UsageError, match=f"{name}: damaged|samples of another request"):
        write_samples(*ask, sampler=SAMPLER, resume=True)
    assert (tmp_path / name).read_bytes() == half


def test_what_is_left_may_have_no_part_in_the_film(tmp_path):
    def interrupted(part):
        raise KeyboardInterrupt

    out, ask = tmp_path / "out", (gray(), [0], 10, 0)
    with pytest.raises(KeyboardInterrupt):
        write_samples(*ask, out, sampler=SAMPLER, batch_size=7, each=interrupted)
    write_samples(*ask, out, sampler=SAMPLER, resume=True)
    assert (out / "grid.png").is_file() and not (out / "chains.gif").exists()


def test_a_request_that_differs_in_anything_is_another(tmp_path):
    def stop(part):
        raise KeyboardInterrupt

    def ask(energy, classes, place, **options):
        write_samples(energy, classes, 1, 0, place, sampler=SAMPLER, **options)

    keep, other = (torch.zeros(8, 8, dtype=torch.bool) for _ in range(2))
    keep[:4], other[4:] = True, True
    photo = torch.rand(1, 8, 8, generator=toys.seeded())
    changes = {
        "gain": (gray(), gray(), [0]),
        "mask": (edit(gray(), photo, mask=keep), edit(gray(), photo, mask=other), [0]),
        "strength": (edit(gray(), photo, 0.5), edit(gray(), photo, 0.52), [0]),
    }
    changes["gain"][1].gain = 2.0
    for name, (first, second, classes) in changes.items():
        with pytest.raises(KeyboardInterrupt):
            ask(first, classes, tmp_path / name, each=stop)
        with pytest.raises(UsageError, match="another request"):
            ask(second, classes, tmp_path / name, resume=True)
    with pytest.raises(KeyboardInterrupt):
        ask(gray(), [{0: 0.5, 1: 0.5}], tmp_path / "order", each=stop)
    with pytest.raises(UsageError, match="another request"):
        ask(gray(), [{1: 0.5, 0: 0.5}], tmp_path / "order", resume=True)


def test_a_wrong_request_writes_nothing(tmp_path):
    energy = gray()
    energy.class_names = ["a", "b", "c"]
    for classes in ([5], [{9: 1.0}], [0, 0]):
        with pytest.raises(UsageError, match="classes are 0 to 2|asked for twice"):
            write_samples(energy, classes, 1, 0, tmp_path / "out", sampler=SAMPLER)
        assert list(tmp_path.iterdir()) == []
    blends = [{0: 0.5, 1: 0.5}, {0: 0.7, 1: 0.3}]
    write_samples(energy, blends, 2, 0, tmp_path / "out", sampler=SAMPLER)
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 4


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds something already"):
        write_samples(gray(), [0], 1, 0, tmp_path, sampler=SAMPLER)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_labels_become_harmless_names():
    assert slug("tabby, tabby cat") == "tabby"
    assert slug("../..") == slug("") == slug("漢字") == "class"
    assert slug("A" * 99) == "a" * 40


def test_a_sampler_of_other_classes_is_refused_before_it_draws():
    five = Langevin(2, 0.5, step_factors=(1.0, 0.5, 0.5, 0.5, 1.0))
    energy = toys.smooth()
    with pytest.raises(ValueError, match="5 `step_factors` for steps of"):
        sample(energy, [0], sampler=five)
