"""Units in the place of classes: what is read, that nothing stays behind, and their samples."""

import pytest
import stats
import timm
import torch
import toys
from test_fold import norms, randomised
from torch import nn

from ebm_from_clf import ClassifierEnergy, Langevin, UsageError, convert, edit, sample, save, units
from ebm_from_clf.swift import Swift
from ebm_from_clf.units import Unit, Units, read_units
from ebm_from_clf.untrained import NORM, auto_gain


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(1)
        return build()


def network():
    """Maps, an activation in place, channels at the end, two outputs at once, and logits."""

    class Pair(nn.Module):
        def forward(self, x):
            return x, x.mean((2, 3))

    class Last(nn.Module):
        def forward(self, x):
            return x.movedim(1, 3)

    parts = {
        "conv": nn.Conv2d(2, 5, 3, padding=1),
        "act": nn.ReLU(inplace=True),
        "last": Last(),
        "wide": nn.Linear(5, 4),
        "first": nn.Module(),
        "pair": Pair(),
        "fc": nn.Linear(4, 3),
        "idle": nn.Identity(),
    }
    parts["first"].forward = lambda x: x.movedim(3, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_classes, self.calls = 3, []
            for name, part in parts.items():
                self.add_module(name, part)

        def forward(self, x):
            for name in list(parts)[:6]:
                self.calls.append(name)
                x = getattr(self, name)(x)
            self.calls.append("fc")
            return self.fc(x[1])

    return seeded(Net).eval()


def outputs(net, x):
    """The output of every part, by hand."""
    found = {"conv": net.conv(x)}
    found["act"] = found["conv"].relu()
    found["last"] = found["act"].movedim(1, 3)
    found["wide"] = net.wide(found["last"])
    found["first"] = found["wide"].movedim(3, 1)
    found["fc"] = net.fc(found["first"].mean((2, 3)))
    return found


X = torch.randn(3, 2, 6, 6, generator=toys.seeded(3))


def test_words_are_units_and_units_are_words():
    words = "layer3.1.conv2:17@3,4,fc:2,blocks.0:1@5"
    expected = [Unit("layer3.1.conv2", 17, (3, 4)), Unit("fc", 2), Unit("blocks.0", 1, (5,))]
    assert read_units(words) == read_units(words.replace(",fc", ", fc")) == expected
    assert read_units(["fc:2,layer3.1.conv2:17@3,4", "blocks.0:1@5", "fc:2"]) == [
        expected[i] for i in (1, 0, 2)
    ]
    assert read_units([str(unit) for unit in expected]) == expected


@pytest.mark.parametrize("word", ["", "conv", "conv:", "conv:x", ":3", "a:1,3", "a:1@", "a:1@3,b"])
def test_other_words_are_refused(word):
    with pytest.raises(UsageError, match="^units: .* is no unit. Give a module") as error:
        read_units(word)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="name one or more"):
        read_units([])


def test_a_response_is_the_mean_of_its_channel_or_its_value_at_a_place():
    net = network()
    with torch.no_grad():
        maps = outputs(net, X)
        expected = {
            "conv:4": maps["conv"][:, 4].mean((1, 2)),
            "conv:4@1,2": maps["conv"][:, 4, 1, 2],
            "act:4": maps["act"][:, 4].mean((1, 2)),
            "last:1@5,0": maps["last"][:, 5, 0, 1],
            "wide:3": maps["wide"][..., 3].mean((1, 2)),
            "wide:3@0,4": maps["wide"][:, 0, 4, 3],
            "first:2": maps["first"][:, 2].mean((1, 2)),
            "fc:0": maps["fc"][:, 0],
        }
        found = Units(net, list(expected))(X)
        every = Units(net, [f"conv:4@{i},{j}" for i in range(6) for j in range(6)])(X)
    # The activation works in place: the convolution is read before it.
    assert (maps["conv"][:, 4] < 0).any()
    assert (found - torch.stack(list(expected.values()), 1)).abs().max() < 1e-6
    assert (every.mean(1) - found[:, 0]).abs().max() < 1e-6
    # Other layouts would give other numbers.
    assert (maps["last"][:, 1].mean((1, 2)) - maps["act"][:, 1].mean((1, 2))).abs().max() > 1e-2


def test_tokens_have_channels_last_and_the_last_layer_gives_the_logits():
    vit = seeded(lambda: timm.create_model("test_vit", num_classes=3)).eval()
    x = torch.randn(2, 3, *vit.patch_embed.img_size, generator=toys.seeded())
    kept = {}
    hook = vit.blocks[1].mlp.fc1.register_forward_hook(lambda m, i, o: kept.update(o=o))
    logits = vit(x)
    hook.remove()
    found = Units(vit, "blocks.1.mlp.fc1:17,blocks.1.mlp.fc1:17@5,head:2")(x)
    expected = [kept["o"][:, :, 17].mean(1), kept["o"][:, 5, 17], logits[:, 2]]
    assert (found - torch.stack(expected, 1)).abs().max() < 1e-6


def test_oblong_maps_are_told_from_channels():
    net, x = network(), torch.randn(2, 2, 5, 10, generator=toys.seeded())  # 5 channels, 5 rows
    with torch.no_grad():
        maps = outputs(net, x)
        found = Units(net, "conv:4,last:4,act:4@4,9")(x)
    expected = [maps["conv"][:, 4].mean((1, 2)), maps["act"][:, 4].mean((1, 2))]
    expected.append(maps["act"][:, 4, 4, 9])
    assert (found - torch.stack(expected, 1)).abs().max() < 1e-6


def test_a_unit_of_a_linear_layer_has_the_law_of_a_linear_energy():
    """Its chains against the closed form; those of the channel beside it are another law."""
    body = seeded(lambda: nn.Linear(toys.DIM, 5))
    net = nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(5, 2))
    options = dict(reference=toys.reference(), space=toys.space(), gain=3.0)
    energy = ClassifierEnergy(Units(net, "1:2,1:4"), **options)
    expected = ClassifierEnergy(
        toys.Linear(body.weight.detach()[[2, 4]], body.bias.detach()[[2, 4]]), **options
    )
    n, y = 4000, torch.tensor([0]).expand(4000)
    u = torch.randn(n, *toys.SHAPE, generator=toys.seeded(7))
    assert (energy(u, y) - expected(u, y)).abs().max() < 1e-4
    sampler = Langevin(n_steps=6, step_size=0.6)
    found, _ = sampler(energy, u, y, generator=toys.seeded(8))
    mean, var = toys.langevin_moments(expected, y, sampler, 0.0, 1.0)
    stats.assert_moments(found.flatten(1), mean, var)
    other, _ = toys.langevin_moments(expected, y + 1, sampler, 0.0, 1.0)
    assert stats.worst_moment(found.flatten(1), other, var) > 10


def test_the_pass_ends_at_the_last_layer_and_leaves_the_classifier_alone():
    net = network().train()
    mine, seen = net.act.register_forward_hook(lambda *_: seen.append(1)), []
    state = {k: (v.data_ptr(), v.clone()) for k, v in net.state_dict().items()}
    read = Units(net, "act:0,conv:1")
    read(X)
    assert net.calls == ["conv", "act"] and seen == [1]
    with pytest.raises(UsageError, match="channels of act are 0 to 4"):
        Units(net, "conv:1,act:9")(X)
    with pytest.raises(RuntimeError):
        read(X[:, :1])
    hooks = {name: len(part._forward_hooks) for name, part in net.named_modules()}
    assert hooks == dict.fromkeys(hooks, 0) | {"act": 1}
    assert all(part.training for part in net.modules())
    after = net.state_dict()
    assert all(
        after[k].data_ptr() == p and torch.equal(after[k], v) for k, (p, v) in state.items()
    )
    mine.remove()


@pytest.mark.parametrize(
    "unit, match",
    [
        ("cnv:0", "no module 'cnv'. Try conv"),
        ("conv:5", "conv:5: the channels of conv are 0 to 4"),
        ("conv:4@6,0", "a place in the output of conv is 0-5,0-5"),
        ("conv:4@3", "a place in the output of conv is 0-5,0-5"),
        ("fc:0@1", "a place in the output of fc is not to be given"),
        ("pair:0", "the output of 'pair' is a tuple, not a tensor"),
        ("idle:0", "does not call its module 'idle'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(unit, match):
    with pytest.raises(UsageError, match=match) as error:
        Units(network(), [unit])(X)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_outputs_that_are_not_one_row_an_image_are_refused():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 4)))
    with pytest.raises(UsageError, match="shape .* for 3 images, not one row"):
        Units(net, "2:1")(X)


@pytest.fixture(scope="module")
def resnet():
    return randomised(seeded(lambda: timm.create_model("test_resnet", num_classes=5)))


def test_folded_norms_do_not_change_the_responses(resnet, monkeypatch):
    """Nor do units of a large response hide an error in those of a small one."""
    x = torch.randn(4, 3, 64, 64, generator=toys.seeded())
    names = ["conv1.0:3", "bn1:3", "layer2.0.conv1:5", "layer3.0.bn2:7", "layer4.0.conv2:9"]

    def worst(wanted):
        energy = convert(resnet, size=64)
        network = energy.classifier = Units(resnet, wanted)
        network.scale[0] = 1e-6
        folded = Swift(energy).energy().classifier
        with torch.no_grad():
            expected = network(x)
            apart = (folded(x) - expected).abs().amax(0) / expected.abs().amax(0)
        return float(apart.max()), norms(resnet) - norms(folded)

    for wanted in (*([n, "fc:1"] for n in names), names):
        error, lost = worst(wanted)
        assert error < 1e-4 and lost > 0
    # All but the norm behind the convolution that is read.
    assert worst(["layer2.0.conv1:5", "fc:1"])[1] == norms(resnet) - 1
    # Were the output handed on as it is, its norm would be folded into what is read.
    monkeypatch.setattr(torch.Tensor, "view_as", lambda self, other: self)
    assert worst(["layer2.0.conv1:5", "fc:1"])[0] > 0.01


def test_units_of_all_layers_are_equally_strong(resnet):
    names = ["layer1.0.conv1:3", "layer4.0.conv2:9", "fc:1"]
    energy = convert(resnet, size=64)
    before = dict(energy.__dict__)
    found = units(energy, names)
    assert energy.__dict__ == before and energy.classifier is resnet
    assert found.class_names == names and found.n_classes == 3 and found.gain == NORM
    assert found.coarse is not None and found.smoothing is not None
    for name, scale in zip(names, found.classifier.scale, strict=True):
        alone = units(energy, [name])
        assert alone.classifier.scale == scale
        # The gain at which the tilt has the norm 1.2: its own.
        assert auto_gain(alone) == pytest.approx(NORM, rel=1e-4)
    assert found.classifier.scale.max() > 2 * found.classifier.scale.min()
    assert units(energy, "layer1.0.conv1:3@2,2").coarse is None


def test_a_unit_that_never_responds_is_refused(resnet):
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.num_classes = nn.Conv2d(3, 2, 3), nn.ReLU(), 2

        def forward(self, x):
            return self.act(self.conv(x) - 1000).mean((2, 3))

    energy = ClassifierEnergy(Dead(), convert(resnet, size=64).reference)
    with pytest.raises(UsageError, match="act:1 does not respond to any start. Name the layer"):
        units(energy, "act:1")


def test_a_unit_responds_to_its_samples_more_than_to_those_of_others_or_the_reference(resnet):
    energy = convert(resnet, size=64)
    names = ["layer1.0.conv1:3", "layer2.0.conv1:5", "layer4.0.conv2:9"]
    found = units(energy, names)
    found.coarse = None
    n = 6
    images = sample(found, [0, 1, 2], n, sampler=Langevin(20, 0.2, temperature=0.05))
    own = found.logits(images).detach().view(3, n, 3)
    reference = found.logits(energy.reference.sample(60, generator=toys.seeded())).detach()
    for k in range(3):
        for other in (reference[:, k], *(own[j, :, k] for j in range(3) if j != k)):
            error = (own[k, :, k].var() / n + other.var() / len(other)).sqrt()
            assert (own[k, :, k].mean() - other.mean()) / error > 5, (k, names[k])


def test_a_photograph_is_changed_to_what_a_unit_responds_to(resnet):
    energy = units(convert(resnet, size=64), "layer2.0.conv1:5")
    photo = energy.reference.sample(1, generator=toys.seeded())[0].clamp(0, 1)
    sampler = Langevin(10, 0.2, temperature=0.0)
    energy.coarse = None
    changed = sample(edit(energy, photo, 0.4), [0], sampler=sampler)
    assert energy.logits(changed) > energy.logits(photo[None]) + 1
    with pytest.raises(UsageError, match="not a timm model"):
        save(energy, "never-written")
