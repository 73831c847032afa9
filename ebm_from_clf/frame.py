r"""A generative ConvNet whose bottom layers are those of a classifier, held as they are.

.. math:: f(x) = \sum_l \frac{1}{d_l n_l} \sum_k \lambda_k^{(l)} \sum_a
    \max\Big(0, \sum_j w_{kj}^{(l)} * \hat h_j^{(l)}(x)_a + b_k^{(l)}\Big)

with the responses h of layer l of the classifier, whitened by their mean and covariance in the
images that it learns from, filters w of one place, and the sum over filters k and places a, which
are d pixels apart. Layer -1 is the image itself, in patches of 7x7 pixels. Filters and their
weights are learned: a FRAME model on learned combinations of a classifier's filters (Lu, Zhu and
Wu, 2016, https://arxiv.org/abs/1509.08379), and the score of :class:`GenerativeConvNet` with one
more layer. Whitened, what hardly varies in a texture is as easy to learn as what does: that there
is little of something is often what makes the texture.

Classifiers pad with zeros, so that what they respond near the border is not counted: a crop of
a texture then scores as it would within a larger image. An image on a torus has no border: it is
continued by itself, and every place counts. The n is how many there are in an image of the size
that it learns from, as in :mod:`ebm_from_clf.generative`.
"""

__all__ = ["FrameConvNet"]

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .modes import evaluation_mode, sharing
from .one_class import check_sizes, layers_of, one_class_config

FLOOR = 1e-2
# Filters are kept so much smaller: steps of a given length turn them so much faster.
TURN = 2.0


class FrameConvNet(nn.Module):
    """Creates a network with one class on the bottom layers of a classifier.

    Arguments:
        bottom: A classifier of timm that has `forward_intermediates`; what lies above the layers
            in use is cut off, and the rest is held.
        taps: The layers, by timm's index; -1 is the image itself.
        filters: Filters on each layer.
        kernel: Height and width of the filters on the image itself, in pixels.
        border: How far from the border of an image responses count, in pixels; that of an image
            on a torus is continued by as much. At least half of what a filter sees.
        in_chans: Channels of an image, 1 or 3.
        size: Height and width of the images that it learns from.
        torus: Whether images are taken to be on a torus; it may be set later.
        bottom_kwargs: What timm was given to create the bottom, for who loads it again.

    Raises:
        ValueError: If the classifier does not have these layers or they take no other size, a
            number is out of range, or the border leaves no place.
    """

    num_classes = 1
    bottom: Any
    filters: Any

    def __init__(
        self,
        bottom: Any,  # noqa: ANN401 - whatever timm creates
        taps: Sequence[int] = (-1, 0, 1, 2),
        filters: int = 64,
        kernel: int = 7,
        border: int = 16,
        in_chans: int = 1,
        size: int = 112,
        torus: bool = False,
        bottom_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        info, config = layers_of(bottom)
        if not taps or len(set(taps)) < len(taps) or not -1 <= min(taps) <= max(taps) < len(info):
            raise ValueError(
                f"FrameConvNet: `taps` are some of -1 to {len(info) - 1}, each once, "
                f"got {list(taps)}."
            )
        self.taps, self.in_chans, self.size = list(taps), in_chans, size
        self.border, self.kernel, self.torus = border, kernel, torus
        self.bottom_kwargs = dict(bottom_kwargs or {})
        self.strides = [1 if tap < 0 else info[tap]["reduction"] for tap in taps]
        if in_chans not in (1, 3) or filters < 1:
            raise ValueError(
                "FrameConvNet: `in_chans` is 1 or 3 and `filters` 1 or more, got "
                f"{in_chans} and {filters}."
            )
        check_sizes(self.distance, size, border, kernel)
        layers = [tap for tap in taps if tap >= 0]
        bottom.prune_intermediate_layers(layers or [0], prune_head=True)
        self.bottom = bottom.eval().requires_grad_(False)
        self._check_places()
        self.filters, self.num_features = nn.ModuleList(), filters
        for tap in taps:
            channels = in_chans if tap < 0 else info[tap]["num_chs"]
            self._add(nn.Conv2d(channels, filters, kernel if tap < 0 else 1))
        # The first model is close to the reference itself.
        self.weights = nn.Parameter(torch.randn(len(taps), filters).sign() * 0.03)
        self.pretrained_cfg = one_class_config(
            "frame_convnet", in_chans, size, config["mean"], config["std"]
        )

    def _add(self, layer: nn.Conv2d) -> None:
        """Adds the filters on a layer, with what whitens that."""
        nn.init.normal_(layer.weight, 0, 1 / TURN)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        i, seen = len(self.filters), layer.weight[0].numel()
        self.filters.append(layer)
        self.register_buffer(f"mean{i}", torch.zeros(seen))
        self.register_buffer(f"whiten{i}", torch.eye(seen))

    @property
    def arguments(self) -> dict[str, Any]:
        """What creates such a network again, by the names of its arguments."""
        return {
            "bottom": self.bottom.pretrained_cfg["architecture"],
            "bottom_kwargs": self.bottom_kwargs,
            "taps": list(self.taps),
            "filters": self.num_features,
            "kernel": self.kernel,
            "border": self.border,
            "in_chans": self.in_chans,
            "size": self.size,
            "torus": self.torus,
        }

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of the images that it learns from; its bottom may state others."""
        return self.size, self.size

    @property
    def distance(self) -> int:
        """The distance of the places of the last layer, in pixels."""
        return max(self.strides)

    def on_torus(self) -> "FrameConvNet":
        """Returns the same network for images on a torus, as chains are; its parts are shared."""
        found = sharing(self)
        found.torus = True
        return found

    @torch.no_grad()
    def _check_places(self) -> None:
        """Checks that layers of the bottom respond at places of a given distance, at any size."""
        blank = next(self.bottom.parameters()).new_zeros(1, self.in_chans, *self.img_size)
        for torus in (False, True):
            network, side = sharing(self), self.size - (0 if torus else 2 * self.border)
            network.torus = torus
            try:
                maps = network.responses(blank)
            except AssertionError as error:  # of timm, for a network of one size
                raise ValueError(
                    f"FrameConvNet: its bottom takes images of one size alone ({error}). Take one "
                    "made of convolutions, such as resnet18."
                ) from error
            for h, tap, stride in zip(maps, self.taps, self.strides, strict=True):
                if tap >= 0 and h.shape[2:] != (side // stride,) * 2:
                    raise ValueError(
                        f"FrameConvNet: layer {tap} of its bottom does not respond every {stride} "
                        "pixels up to the border. Take other `taps`, or a bottom that pads, such "
                        "as resnet18."
                    )

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Whitens what filters see by its mean and covariance in images.

        Arguments:
            images: Batches of images as the network takes them, with shape (B, C, H, W).
        """
        sums = [[torch.zeros(())] * 3 for _ in self.filters]
        for x in images:
            with evaluation_mode(self):
                maps = self.responses(x)
            for i, (h, layer) in enumerate(zip(maps, self.filters, strict=True)):
                seen = functional.unfold(h, layer.kernel_size).transpose(0, 1).flatten(1).double()
                n = seen.new_tensor(seen.shape[1])
                new = (seen.sum(1), seen @ seen.T, n)
                sums[i] = [a + b for a, b in zip(sums[i], new, strict=True)]
        for i, (total, square, n) in enumerate(sums):
            mean = total / n
            values, vectors = torch.linalg.eigh(square / n - mean[:, None] * mean)
            # What hardly varies is not raised to what does.
            values = values.clamp_min(FLOOR * float(values.mean()))
            getattr(self, f"mean{i}").copy_(mean)
            getattr(self, f"whiten{i}").copy_(vectors @ (vectors / values.sqrt()).T)

    def responses(self, x: Tensor) -> list[Tensor]:
        """Returns what each layer in use responds where it counts, with shapes (B, K, h, w).

        Arguments:
            x: Images as the network takes them, with shape (B, C, H, W).
        """
        if self.torus:
            x = functional.pad(x, (self.border,) * 4, mode="circular")
        layers, maps = [tap for tap in self.taps if tap >= 0], {-1: x}
        if layers:
            color = x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)
            found = self.bottom.forward_intermediates(
                color, indices=layers, stop_early=True, intermediates_only=True
            )
            maps |= dict(zip(sorted(layers), found, strict=True))
        inner = []
        for tap, stride in zip(self.taps, self.strides, strict=True):
            # Filters on the image take what they see beyond the first place that counts.
            cut = (self.border - self.kernel // 2 if tap < 0 else self.border) // stride
            h = maps[tap]
            inner.append(h[..., cut : h.shape[-2] - cut, cut : h.shape[-1] - cut])
        return inner

    def filter_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the responses of the learned filters on each layer, with shapes (B, K, h, w).

        Arguments:
            x: Images as the network takes them, with shape (B, C, H, W).
        """
        found = []
        for i, (h, layer) in enumerate(zip(self.responses(x), self.filters, strict=True)):
            # Filters are fewer numbers than maps: they are what is whitened.
            weight = layer.weight.flatten(1) @ getattr(self, f"whiten{i}")
            weight = weight * TURN / weight.shape[1] ** 0.5
            bias = layer.bias - weight @ getattr(self, f"mean{i}")
            found.append(functional.conv2d(h, weight.view_as(layer.weight), bias).relu())
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Returns the score of images, with shape (B, 1).

        Arguments:
            x: Images as the network takes them, with shape (B, C, H, W).
        """
        side, score = self.size - 2 * self.border, x.new_zeros(len(x))
        for h, weight, stride in zip(self.filter_maps(x), self.weights, self.strides, strict=True):
            n = len(weight) * (side // stride) ** 2
            score = score + (h.sum((2, 3)) * weight).sum(1) / (stride * n)
        return score[:, None]
