"""The generative ConvNet: its score is a sum over places, and a larger image is the same model."""

import json

import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional

from ebm_from_clf import (
    ClassifierEnergy,
    SpectralNoise,
    UsageError,
    WhiteNoise,
    load,
    sample,
    save,
)
from ebm_from_clf.cli import main
from ebm_from_clf.convert import convert, create_classifier
from ebm_from_clf.data import load_data
from ebm_from_clf.energy import ClassifierEnergy as Energy
from ebm_from_clf.generative import GenerativeConvNet, enlarged
from ebm_from_clf.langevin import Langevin
from ebm_from_clf.texture import crops, exemplar

SMALL = {"channels": [4, 5, 3], "kernels": [5, 3, 3], "strides": [2, 2, 1], "size": 24}


def network(**options):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        found = GenerativeConvNet(**SMALL | options).double().eval()
        for layer in found.layers:
            torch.nn.init.uniform_(layer[0].bias, 0, 0.2)
    return found


def energy(net, gain=30.0):
    size = net.arguments["size"]
    reference = WhiteNoise(torch.full((1, size, size), 0.4), 0.2)
    found = ClassifierEnergy(net, reference, gain=gain)
    return found.double()


def drift(found, u):
    u = u.clone().requires_grad_()
    (b,) = torch.autograd.grad(found.tilt(u, torch.zeros(len(u)).long()).sum(), u)
    return b


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_score_is_the_sum_of_the_last_maps_in_use(depth):
    net = network()
    net.depth = depth
    x = torch.randn(2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = x
    for layer, stride in zip(net.layers[:depth], SMALL["strides"], strict=False):
        h = functional.conv2d(h, layer[0].weight, layer[0].bias, stride).clamp_min(0)
    assert net.responses == h[0].numel()
    assert torch.allclose(net(x)[:, 0], h.sum((1, 2, 3)) / h[0].numel(), atol=1e-12, rtol=0)


def test_a_response_sees_its_field_and_no_more():
    net = network(size=30)
    x = torch.zeros(1, 1, 30, 30, dtype=torch.float64, requires_grad=True)
    h = x
    for layer in net.layers:
        h = layer[0](h)  # without rectifiers, that no path is closed
    (seen,) = torch.autograd.grad(h[0, 0, 0, 0], x)
    rows = seen[0, 0].abs().sum(1).nonzero().flatten()
    assert net.field == int(rows.max() - rows.min()) + 1 == 5 + 2 * 2 + 4 * 2


def test_a_larger_image_is_the_same_model():
    """Far from the border B is that of a smaller image cut out where filters have their places."""
    net = network(size=40)
    small, g = energy(net), torch.Generator().manual_seed(2)
    large = enlarged(small, (72, 64))
    u = torch.randn(1, 1, 72, 64, generator=g, dtype=torch.float64)
    part = u[..., 16:56, 12:52]  # by multiples of the strides, 4
    inside = (..., slice(17, 23), slice(17, 23))  # all its filters see pixels of the part alone
    b = drift(large.double(), u)[..., 16:56, 12:52][inside]
    assert torch.allclose(b, drift(small, part)[inside], atol=1e-12, rtol=0)
    assert b.abs().max() > 1e-4
    # Mutant: a mean over the places of the larger image.
    wrong = b * 40 * 40 / (72 * 64)
    assert not torch.allclose(wrong, drift(small, part)[inside], rtol=0.5, atol=0)


def test_a_saved_texture_is_drawn_at_another_size(tmp_path):
    net = network(depth=2).float()
    found = energy(net).float()
    found.class_names, found.sampler = ["bark"], Langevin(n_steps=3)
    save(found, tmp_path / "model")
    again = load(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["label_names"] == ["bark"]
    for key, value in net.state_dict().items():
        assert torch.equal(again.classifier.state_dict()[key], value)
    again.class_names = found.class_names
    big = [enlarged(e, (40, 32)) for e in (found, again)]
    images = [sample(e, [0], n=2) for e in big]
    assert images[0].shape == (2, 1, 40, 32) and torch.equal(*images)
    assert big[0].class_names == ["bark"] and big[0].sampler == found.sampler


def test_the_command_line_draws_at_another_size(tmp_path, capsys):
    save(energy(network().float()).float(), tmp_path / "model")
    words = ["sample", str(tmp_path / "model"), "--classes", "0", "--n", "1", "--steps", "2"]
    for size, status in ((40, 0), (16, 2)):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--size", str(size), "--output", str(tmp_path / str(size))])
        assert stop.value.code == status
    assert "sees 17 pixels" in capsys.readouterr().err and not (tmp_path / "16").exists()
    (drawn,) = (tmp_path / "40").glob("0*/*.png")
    with Image.open(drawn) as image:
        assert image.size == (40, 40)


def test_what_has_no_other_size_is_refused():
    plain = convert(timm.create_model("test_resnet", num_classes=2), size=32)
    with pytest.raises(ValueError, match="only a GenerativeConvNet"):
        enlarged(plain, (64, 64))
    found = energy(network())
    with pytest.raises(ValueError, match="sees 17 pixels"):
        enlarged(found, (16, 40))
    uneven = WhiteNoise(torch.linspace(0, 1, 24 * 24).view(1, 24, 24), 0.2)
    with pytest.raises(ValueError, match="same at every place"):
        enlarged(Energy(network().float(), uneven), (40, 40))
    with pytest.raises(ValueError, match="WhiteNoise"):
        spectral = SpectralNoise(torch.full((1, 24, 24), 0.5), color=torch.eye(1))
        enlarged(Energy(network().float(), spectral), (40, 40))


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="sees 17 pixels, images have 12"):
        GenerativeConvNet(**SMALL | {"size": 12})
    with pytest.raises(ValueError, match="one number for each layer"):
        GenerativeConvNet(channels=[3, 4])
    with pytest.raises(ValueError, match="are 1 or more"):
        GenerativeConvNet(strides=(2, 0, 1, 1))
    with pytest.raises(ValueError, match="at most 16384 pixels"):
        enlarged(energy(network()), (10**6, 40))
    with pytest.raises(UsageError, match="no trained weights"):
        create_classifier("generative_convnet")
    with pytest.raises(UsageError, match="generative_convnet"):
        create_classifier("generative_convnet", pretrained=False, size=8)


def test_crops_lie_on_a_grid():
    picture = torch.arange(20 * 30).view(1, 20, 30).to(torch.uint8)
    found = crops(picture, (20, 24))
    assert found.shape == (7, 1, 20, 24)
    assert torch.equal(found[3], picture[:, :, 3:27])
    assert len(crops(picture, (8, 8))) == 64
    with pytest.raises(UsageError, match="has no crop of 21x8"):
        crops(picture, (21, 8))


def test_parts_of_a_picture_are_apart(tmp_path):
    train, test = (exemplar("grass", split, 1) for split in ("train", "test"))
    assert train.shape == test.shape == (1, 128, 128) and not torch.equal(train, test)
    Image.fromarray(train[0].numpy()).resize((600, 300)).save(tmp_path / "mine.png")
    assert exemplar(str(tmp_path / "mine.png"), "train", 3).shape == (3, 256, 512)
    with pytest.raises(UsageError, match="of one colour"):
        crops(torch.full((3, 20, 20), 128).to(torch.uint8), (8, 8))
    with pytest.raises(UsageError, match="no such file"):
        load_data("texture", "train", size=(8, 8), channels=1, root="")
    with pytest.raises(UsageError, match="no such file"):
        exemplar(str(tmp_path / "yours.png"), "train", 1)
