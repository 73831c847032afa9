"""Classifiers of timm, one per family: each converts, moves a chain, and is left as it was."""

from dataclasses import replace

import pytest
import timm
import torch
import toys
from torch import nn

from ebm_from_clf import (
    ClassifierEnergy,
    Langevin,
    PixelSpace,
    Smoothing,
    SpectralNoise,
    UsageError,
    WhiteNoise,
    convert,
)
from ebm_from_clf.convert import create_classifier, space_of
from ebm_from_clf.sample import draw

# Small ones, and ones whose gradient at random weights is not 0 in float32: a deep network
# without a residual path (repvgg, convmixer, nasnet, lcnet) shrinks it to nothing until trained.
FAMILIES = [
    ("test_resnet", {}),
    ("resnetv2_18", {}),
    ("seresnet18", {"layers": (1, 1, 1, 1)}),
    ("res2net50_14w_8s", {"layers": (1, 1, 1, 1)}),
    ("skresnet18", {"layers": (1, 1, 1, 1)}),
    ("test_byobnet", {}),
    ("test_convnext", {}),
    ("convnextv2_atto", {}),
    ("test_efficientnet", {}),
    ("test_efficientnet_ln", {}),
    ("mobilenetv2_050", {}),
    ("mobilenetv3_small_050", {}),
    ("mobilenetv4_conv_small_035", {}),
    ("mnasnet_small", {}),
    ("ghostnet_050", {}),
    ("rexnet_100", {}),
    ("regnety_002", {}),
    ("test_nfnet", {}),
    ("densenet121", {}),
    ("dla46_c", {}),
    ("vgg11", {"mlp_ratio": 0.05}),
    ("hrnet_w18_small", {}),
    ("ese_vovnet19b_slim_dw", {}),
    ("inception_v3", {"size": 96}),
    ("test_vit", {"img_size": 64}),
    ("test_vit_relpos", {"img_size": 64}),
    ("deit_tiny_patch16_224", {"img_size": 64}),
    ("convit_tiny", {"img_size": 64}),
    ("pit_ti_224", {"img_size": 64}),
    ("xcit_nano_12_p16_224", {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "depths": (1, 1, 1, 1)}),
    ("pvt_v2_b0", {}),
    ("levit_128s", {"img_size": 64}),
    ("mixer_s32_224", {"img_size": 64, "reset": True}),
    ("gmlp_ti16_224", {"img_size": 64, "reset": True}),
    ("poolformer_s12", {}),
    ("caformer_s18", {}),
    ("test_coatnet", {"img_size": 64}),
    ("test_maxvit", {"img_size": 64}),
    ("mobilevit_xxs", {}),
    ("edgenext_xx_small", {}),
    ("efficientvit_b0", {}),
    ("fastvit_t8", {}),
    ("test_mambaout", {}),
]


def create(name, *, size=64, reset=False, num_classes=5, **kwargs):
    """A classifier with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        classifier = timm.create_model(name, num_classes=num_classes, **kwargs)
        if reset:
            # timm begins the head of an MLP with zeros; the doctor says to call this.
            classifier.reset_classifier(num_classes)
            nn.init.normal_(classifier.get_classifier().weight, std=0.1)
    return classifier, size


def state(classifier):
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def logits(classifier, space, x):
    with torch.no_grad():
        return classifier.eval()(space(x))


@pytest.mark.parametrize("name, options", FAMILIES, ids=[name for name, _ in FAMILIES])
def test_a_family_converts_and_its_chains_follow_the_class(name, options):
    classifier, size = create(name, **options)
    space = space_of(classifier, size)
    x = torch.rand(2, *space.shape, generator=toys.seeded())
    before, weights = logits(classifier, space, x), state(classifier)
    classifier.train()
    energy = convert(classifier, size=size)
    assert energy.classifier is classifier and isinstance(energy.reference, SpectralNoise)

    # One noise for both chains: they part by their class alone. The norm makes that visible
    # where random weights give small gradients.
    u = energy.reference.encode(energy.reference.sample(1, generator=toys.seeded(1)))
    u, y = u.expand(2, -1, -1, -1), torch.tensor([0, 3])
    noise = [toys.seeded(2), toys.seeded(2)]
    moved, trace = Langevin(n_steps=2, tilt_norm=1.0)(energy, u, y, generator=noise)
    assert moved.isfinite().all() and trace.energy.isfinite().all()
    assert (moved - u).abs().max() > 0.1
    assert (moved[0] - moved[1]).flatten().norm() > 1e-2 * moved[0].norm()

    assert classifier.training and all(p.requires_grad for p in classifier.parameters())
    assert all(p.grad is None for p in classifier.parameters())
    after = state(classifier)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert torch.equal(logits(classifier, space, x), before)
    with torch.no_grad():
        assert torch.equal(energy.logits(x), before)


def test_gray_classifier_gets_a_gray_space_and_white_noise():
    overlay = {"mean": (0.1, 0.2, 0.6)}
    classifier, size = create("test_resnet", in_chans=1, size=32, pretrained_cfg_overlay=overlay)
    energy = convert(classifier, size=size)
    assert energy.space.shape == (1, 32, 32)
    assert isinstance(energy.reference, WhiteNoise)
    # One value for three colours: their mean.
    assert energy.space.mean.item() == pytest.approx(0.3)
    assert energy.logits(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_the_space_is_that_of_the_config():
    classifier, _ = create("test_resnet", pretrained_cfg_overlay={"std": (0.1, 0.2, 0.3)})
    energy = convert(classifier)
    assert energy.space.shape == classifier.pretrained_cfg["input_size"]
    assert energy.space.std.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_img_size_alone_sets_the_space_of_a_fixed_size_classifier(name):
    assert convert(name, pretrained=False, img_size=64).space.size == (64, 64)


def test_an_own_module_converts_with_a_space_of_its_own():
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        module = toys.Smooth()
    energy = convert(module, space=toys.space())
    assert isinstance(energy, ClassifierEnergy)
    x = torch.rand(2, *toys.SHAPE, generator=toys.seeded())
    assert torch.equal(energy.logits(x), module(toys.space()(x)))


class Broken(toys.Smooth):
    """A small network with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        y = super().forward(x)
        if self.fault == "batch":
            return y - y.mean(0)
        if self.fault == "maps":
            return y[:, :, None, None]
        if self.fault == "tuple":
            return y, y
        if self.fault == "infinite":
            return y / 0
        if self.fault == "detached":
            return y.detach()
        if self.fault == "gradient":
            return y + (0 * x).sqrt().flatten(1)[:, :3]
        return y


FAULTS = [
    ("batch", "depend on the other images of its batch.*remove that layer"),
    ("maps", r"must have shape \(B, K\), it returns shape \(4, 3, 1, 1\). Pool its output"),
    ("tuple", "it returns tuple. Pool its output"),
    ("infinite", "logits are not finite. Check its weights"),
    ("detached", "no gradient with respect to pixels.*detach"),
    ("gradient", "gradient with respect to pixels is not finite.*division by zero"),
]


@pytest.mark.parametrize("fault, advice", FAULTS, ids=[fault for fault, _ in FAULTS])
def test_a_classifier_no_chain_can_use_is_refused_with_advice(fault, advice):
    convert(Broken(None), space=toys.space())
    with pytest.raises(UsageError, match=f"Broken.*{advice}") as refusal:
        convert(Broken(fault), space=toys.space())
    assert "\n" not in str(refusal.value)


def test_a_network_of_features_is_refused():
    classifier, size = create("test_resnet", num_classes=0)
    with pytest.raises(UsageError, match="num_classes is 0.*Create it with num_classes=K"):
        convert(classifier, size=size)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    classifier, size = create("test_resnet")
    with torch.no_grad():
        classifier.layer2[0].conv1.weight[0, 0, 0, 0] = value
    with pytest.raises(UsageError, match="layer2.0.conv1.weight is not finite"):
        convert(classifier, size=size)


def test_a_head_of_zeros_is_refused_until_it_is_reset():
    classifier, size = create("mixer_s32_224", img_size=64)
    with pytest.raises(UsageError, match="gradient.*is zero.*call reset_classifier"):
        convert(classifier, size=size)
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        classifier.reset_classifier(5)
    assert convert(classifier, size=size).n_classes == 5


@pytest.mark.parametrize("name, own", [("test_vit_relpos", 160), ("vit_tiny_patch16_224", 224)])
def test_a_wrong_size_is_refused_with_the_right_one(name, own):
    classifier, size = create(name)
    with pytest.raises(UsageError, match=f"images of 64x64.*size={own}.*img_size=64"):
        convert(classifier, size=size)


def test_images_too_small_for_a_network_are_refused_with_sizes_that_work():
    classifier, _ = create("inception_v3")
    with pytest.raises(
        UsageError, match="images of 32x32.*Give size=299 \\(96 and 128 work too\\)"
    ):
        convert(classifier, size=32)


def test_a_wrong_number_of_channels_is_refused():
    classifier, _ = create("test_resnet")
    with pytest.raises(UsageError, match="Does it take 1 channels.*in_chans"):
        convert(classifier, space=PixelSpace([0.5], [0.5], (64, 64)))


def test_a_module_without_a_config_needs_a_space():
    with pytest.raises(UsageError, match=r"Smooth has no `pretrained_cfg`.*space=PixelSpace\("):
        convert(toys.Smooth())


def test_options_of_timm_need_a_name():
    with pytest.raises(TypeError, match="num_classes can only be given with a name"):
        convert(toys.Smooth(), num_classes=3)


UNKNOWN = [
    ("resnt18", {}, "Unknown model.*Near it: resnet18"),
    ("resnet18.no_such_tag", {}, r"Near it: resnet18\.a1_in1k"),
    ("qqqqqqqqqqqq", {}, r"timm.list_models\(\)"),
    ("local-dir:/no/such/folder", {}, "not found"),
    ("test_resnet", {"stem_widht": 8}, "unexpected keyword argument 'stem_widht'"),
    ("test_resnet", {"act_layer": "nope"}, "KeyError 'nope'"),
    ("test_resnet", {"global_pool": "nope"}, "Invalid pool type: nope"),
    ("vit_tiny_patch16_224", {"patch_size": 0}, "zero"),
]


@pytest.mark.parametrize("name, options, advice", UNKNOWN)
def test_what_timm_cannot_create_is_refused_in_one_line(name, options, advice):
    with pytest.raises(UsageError, match=advice) as refusal:
        create_classifier(name, pretrained=name.startswith("local-dir"), **options)
    assert "\n" not in str(refusal.value) and ".." not in str(refusal.value)
    assert str(refusal.value).startswith(f"classifier {name!r}: ")


# More of them, drawn from as they are: smoothed, and looked at coarsely where they allow it.
MORE = [
    *("test_convnext2", "test_convnext3", "test_efficientnet_gn", "test_efficientnet_evos"),
    *("repghostnet_050", "tinynet_e", "spnasnet_100", "semnasnet_075", "twins_svt_small"),
    *("starnet_s1", "repvit_m0_9", "mambaout_femto", "cs3darknet_s", "inception_next_atto"),
    *("hardcorenas_a", "mobilenetv1_100", "shvit_s1", "swiftformer_xs"),
]
ONE_SIZE = ["test_vit3", "visformer_tiny", "coat_lite_tiny", "cait_xxs24_224"]


@pytest.mark.parametrize("name", [*MORE, *ONE_SIZE])
def test_pictures_are_drawn_from_any_family(name):
    classifier, size = create(name, **({"img_size": 64} if name in ONE_SIZE else {}))
    energy = convert(classifier, size=size, smoothing=Smoothing())
    assert (energy.coarse is None) == (name in ONE_SIZE)
    if energy.coarse is not None:
        energy.coarse = energy.coarse._replace(n_steps=1)
    found = draw(energy, [1], 2, sampler=replace(energy.sampler, n_steps=2)).images
    energy.gain = 1e-9
    without = draw(energy, [1], 2, sampler=replace(energy.sampler, n_steps=2)).images
    assert found.isfinite().all() and (found - without).abs().amax((1, 2, 3)).min() > 1e-3
