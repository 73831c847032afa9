"""Learned filters on the layers of a classifier: what counts in a score, and on a torus."""

import json
import math
from dataclasses import replace

import pytest
import timm
import torch
from torch.nn import functional

from ebm_from_clf import (
    ClassifierEnergy,
    Finetuner,
    Langevin,
    UsageError,
    WhiteNoise,
    convert,
    load,
    sample,
    save,
)
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.convert import create_classifier
from ebm_from_clf.frame import TURN, FrameConvNet
from ebm_from_clf.generative import enlarged
from ebm_from_clf.recipe import ClassifierSettings, DataSettings, Recipe
from ebm_from_clf.reference_settings import ReferenceSettings
from ebm_from_clf.run import create_for
from ebm_from_clf.stationary import StationaryGaussian
from ebm_from_clf.texture import exemplar

# Two layers of a small network: places every 2 and 4 pixels, which see up to 11 of them.
SMALL = {"bottom": "resnet18", "taps": [-1, 0], "filters": 5, "kernel": 3, "border": 8, "size": 32}


def network(**options):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        found = create_classifier("frame_convnet", pretrained=False, **SMALL | options)
        torch.nn.init.normal_(found.weights)
        for layer in found.filters:
            torch.nn.init.uniform_(layer.bias, -0.2, 0.2)
        if not found.torus:
            found.fit([images(4, found.in_chans, found.arguments["size"], seed=5)])
    return found


def images(n, channels, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(n, channels, size, size, generator=g)


def energy(net, gain=30.0):
    size = net.arguments["size"]
    return ClassifierEnergy(
        net, WhiteNoise(torch.full((net.in_chans, size, size), 0.4)), gain=gain
    )


def test_score_is_the_weighted_sum_of_filters_where_they_count():
    net, x = network(), images(2, 1, 32)
    (h,) = net.bottom.forward_intermediates(
        x.expand(-1, 3, -1, -1), indices=[0], intermediates_only=True
    )
    score, layers = 0, [(x[..., 7:25, 7:25], 16, 1), (h[..., 4:12, 4:12], 8, 2)]
    # 16 pixels without the border; filters on the image see one beyond.
    for i, (seen, side, apart) in enumerate(layers):
        patches = functional.unfold(seen, 3 if i == 0 else 1) - getattr(net, f"mean{i}")[:, None]
        white = getattr(net, f"whiten{i}") @ patches
        layer = net.filters[i]
        rows = TURN * layer.weight.flatten(1) / math.sqrt(white.shape[1])
        response = (rows @ white + layer.bias[:, None]).clamp_min(0)
        assert response.shape[2] == side**2
        score = score + (net.weights[i][:, None] * response).sum((1, 2)) / (5 * side**2 * apart)
    assert torch.allclose(net(x)[:, 0], score, atol=1e-5, rtol=1e-5)


def test_what_filters_see_is_white_in_the_images_it_is_fitted_to():
    net, x = network(in_chans=3), images(4, 3, 32, seed=5)
    for i, h in enumerate(net.responses(x)):
        seen = functional.unfold(h, net.filters[i].kernel_size).transpose(0, 1).flatten(1)
        white = getattr(net, f"whiten{i}") @ (seen - getattr(net, f"mean{i}")[:, None])
        covariance = white @ white.T / white.shape[1]
        spread = torch.linalg.eigvalsh(covariance)
        assert white.mean(1).abs().max() < 1e-4
        # 1, but in directions of less than a hundredth of the mean variance.
        assert spread.max() < 1 + 1e-3 and spread.median() > 0.99


def test_batches_are_fitted_to_as_one():
    net, x = network(), images(6, 1, 32)
    net.fit([x])
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    net.fit([x[:4], x[4:]])
    for key, value in net.state_dict().items():
        assert torch.allclose(value, kept[key], rtol=1e-3, atol=1e-3), key


def test_a_far_border_does_not_count():
    """Pixels that only what is left out sees have no gradient, and all others have one."""
    net = network()
    x = images(1, 1, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    seen = gradient[0, 0].abs().sum(0).nonzero().flatten()
    # The first place of layer 0 that counts, 8, sees 3 pixels to each side of it.
    assert (int(seen.min()), int(seen.max())) == (5, 25)


def test_a_roll_of_an_image_on_a_torus_has_the_same_score():
    net = network(torus=True)
    x = images(1, 1, 40)
    for shift in ((2, 0), (6, 14)):
        assert torch.allclose(net(x.roll(shift, (2, 3))), net(x), atol=1e-5, rtol=0)
    # Mutants: an image that ends at its border, and one that is mirrored there.
    net.torus = False
    assert not torch.allclose(net(x.roll((6, 14), (2, 3))), net(x), atol=1e-3, rtol=0)
    near = functional.pad(x, (8,) * 4, mode="reflect")
    far = functional.pad(x.roll((6, 14), (2, 3)), (8,) * 4, mode="reflect")
    assert not torch.allclose(net(near), net(far), atol=1e-4, rtol=0)


def test_on_a_torus_every_place_counts_as_it_does_within():
    """Four copies side by side: four times the places, four times the sum."""
    net = network(torus=True)
    x = images(1, 1, 32)
    assert torch.allclose(net(x.repeat(1, 1, 2, 2)), 4 * net(x), rtol=1e-4, atol=0)
    # Its n is that of images with a border: 16 of 32 pixels each way count there.
    flat = torch.full((1, 1, 64, 64), 0.3)
    plain = network()
    plain.load_state_dict(net.state_dict())
    assert torch.allclose(net(flat)[0, 0] / 16, plain(flat[..., :32, :32])[0, 0], rtol=1e-4)


def test_the_bottom_is_held_and_its_top_cut_off():
    net = network()
    learned = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert learned == {"filters", "weights"}
    whole = timm.create_model("resnet18", pretrained=False)
    assert len(list(net.bottom.parameters())) < len(list(whole.parameters())) / 3


def test_a_learned_texture_keeps_its_bottom_and_is_saved(tmp_path):
    from ebm_from_clf import Finetuner, Langevin, Objective, Settings
    from ebm_from_clf.chain_settings import ChainSettings, StartSettings
    from ebm_from_clf.run import create_for

    recipe = Recipe(
        ClassifierSettings("frame_convnet", pretrained=False, kwargs=SMALL),
        DataSettings("texture", "gravel"),
        ReferenceSettings("stationary", floor=0.005),
    )
    net, space = create_for(recipe)
    data = recipe.load("train", space)
    found = recipe.convert(net, space, data)
    assert net.whiten1.diff().any()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    settings = Settings(
        3, 2, 0, sampler=Langevin(2), start=StartSettings("reference"),
        chains=ChainSettings(2), objective=Objective(cross_entropy=0), log_every=3,
    )  # fmt: skip
    Finetuner(found, data, settings).run()
    for key, value in net.state_dict().items():
        held = key.startswith(("bottom.", "mean", "whiten"))
        assert torch.equal(value, before[key]) == held, key
    save(found, tmp_path / "model")
    assert load(tmp_path / "model").class_names == ["gravel"]
    assert json.loads((tmp_path / "model/config.json").read_text())["label_names"] == ["gravel"]
    again = load(tmp_path / "model")
    drawn = [sample(enlarged(e, (64, 48)), [0], n=1) for e in (found, again)]
    assert drawn[0].shape == (1, 1, 64, 48) and torch.equal(*drawn)
    assert isinstance(again.reference, StationaryGaussian)
    # One on a torus stays there.
    save(enlarged(found, (64, 48)), tmp_path / "large")
    assert torch.equal(sample(load(tmp_path / "large"), [0], n=1), drawn[0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="-1 to 4"):
        network(taps=[-1, 5])
    with pytest.raises(UsageError, match="each once"):
        network(taps=[0, 0])
    with pytest.raises(UsageError, match="multiples of 4"):
        network(taps=[1], border=6)
    with pytest.raises(UsageError, match="less than half"):
        network(size=16)
    with pytest.raises(UsageError, match="must be odd"):
        network(kernel=4)
    with pytest.raises(UsageError, match="must be odd"):
        network(kernel=-1)
    with pytest.raises(UsageError, match="got 32 and -8"):
        network(border=-8)
    with pytest.raises(UsageError, match="`filters` 1 or more, got 1 and 0"):
        network(filters=0)
    with pytest.raises(UsageError, match="`in_chans` is 1 or 3 .* got 2 and 5"):
        network(in_chans=2)
    with pytest.raises(UsageError, match="of one size alone .*Take one made of convolutions"):
        network(bottom="vit_tiny_patch16_224", border=16, size=64)
    narrow = timm.create_model("test_resnet")
    next(m for m in narrow.modules() if isinstance(m, torch.nn.Conv2d)).padding = (0, 0)
    with pytest.raises(ValueError, match="does not respond every 2 pixels up to the border"):
        FrameConvNet(narrow, taps=[0], border=8, size=32)
    with pytest.raises(ValueError, match="does not give its layers"):
        FrameConvNet(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="multiples of 2"):
        enlarged(energy(network()), (33, 64))


def test_a_bottom_of_other_arguments_is_saved_with_them(tmp_path):
    found = energy(network(bottom_kwargs={"channels": [8, 8, 8, 8]}, taps=[-1, 1]))
    save(found, tmp_path / "model")
    again = load(tmp_path / "model").classifier
    assert again.bottom.layer1[0].conv1.weight.shape == (8, 64, 3, 3)
    x = images(1, 1, 32)
    assert torch.equal(again(x), found.classifier(x))


def test_images_are_of_its_size_and_no_other(tmp_path):
    from ebm_from_clf.convert import space_of
    from ebm_from_clf.run import create_for

    # A bottom that states another one, 224 pixels.
    net = network(bottom="xcit_nano_12_p8_224", border=16, size=64)
    assert space_of(net).size == (64, 64)
    settings = ClassifierSettings("frame_convnet", pretrained=False, size=64, kwargs=SMALL)
    with pytest.raises(UsageError, match="made for 32 pixels, got 64. Give classifier.kwargs.s"):
        create_for(Recipe(settings, DataSettings("texture")))


def test_any_network_of_timm_serves():
    for name in ("test_resnet", "test_convnext", "test_efficientnet"):
        net = network(bottom=name, border=16, size=64)
        x = images(2, 1, 64)
        assert net(x).shape == (2, 1) and net(x).isfinite().all() and net(x)[0] != net(x)[1]
        assert convert(net).n_classes == 1


def test_chains_have_no_border_and_observed_images_none_that_counts():
    from ebm_from_clf import ChainStore, Contrastive, Langevin, ReferenceStart

    net = network()
    found = energy(net, gain=2.0)
    start = ReferenceStart(found.reference)
    gen = Contrastive(found, Langevin(1), ChainStore(found.reference, start, 1))
    u, y = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    chains = gen.synthesizer.chain_energy()
    rolled = [chains(v, y.long()) for v in (u, u.roll((4, 6), (2, 3)))]
    assert torch.allclose(*rolled, atol=1e-3, rtol=0)
    assert not net.torus and not torch.allclose(found(u, y.long()), rolled[0], atol=1e-2, rtol=0)


def test_samples_of_its_own_size_are_on_the_torus_of_its_chains():
    found = energy(network())
    sampler = Langevin(3, 0.3)
    own = sample(found, [0], sampler=sampler)
    on_torus = sample(enlarged(found, (32, 32)), [0], sampler=sampler)
    assert torch.allclose(own, on_torus, atol=1e-5)
    assert not found.classifier.torus


def gram_distance(x, observed):
    """How far apart the responses of random filters are, which have no part in the energy."""
    g = torch.Generator().manual_seed(5)
    filters = [torch.randn(24, 1, side, side, generator=g) for side in (7, 3)]

    def grams(x):
        for f in filters:
            h = functional.conv2d(x, f - f.mean((1, 2, 3), keepdim=True)).relu()
            yield torch.einsum("bchw,bdhw->cd", h, h) / h[:, 0].numel()

    pairs = zip(grams(x), grams(observed), strict=True)
    return sum(float((a - b).norm() / b.norm()) for a, b in pairs) / 2


@pytest.mark.slow
def test_short_learning_brings_a_texture_nearer():
    recipe = read_recipe("texture")
    kwargs = recipe.classifier.kwargs | SMALL | {"taps": [-1], "filters": 32, "size": 64}
    recipe = replace(
        recipe,
        classifier=replace(recipe.classifier, kwargs=kwargs | {"kernel": 7}, pretrained=False),
        data=replace(recipe.data, root="gravel"),
        finetune=replace(recipe.finetune, updates=60, learning_rate=1e-2),
    )
    net, space = create_for(recipe)
    data = recipe.load("train", space)
    energy = recipe.convert(net, space, data)
    picture, other = (exemplar("gravel", part, 1)[None] / 255 for part in ("train", "test"))
    # The reference has the spectrum of the picture: what is learned is beyond that.
    before = gram_distance(energy.reference.sample(8, generator=torch.Generator()), picture)
    tuner = Finetuner(energy, data, recipe.finetune)
    tuner.run()
    x = sample(energy, [0], n=4, sampler=replace(energy.sampler, n_steps=200))
    assert not tuner.guard.actions
    # .231 before, .083 and .115 after (two seeds), .066 for another quarter of the picture.
    assert gram_distance(x, picture) < 0.65 * before
    assert gram_distance(other, picture) < 0.4 * before
    assert 0.8 < float(x.std() / picture.std()) < 1.1
