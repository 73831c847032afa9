r"""From a timm classifier to an energy.

The classifier brings its own input space: channels, size, mean and standard deviation are read
from its `pretrained_cfg`. What it does not bring, and what a softmax leaves open, is chosen here
and recorded: the reference q, the gauge and the gain (see :mod:`ebm_from_clf.energy`).
"""

__all__ = ["class_names", "convert", "create_classifier", "space_of"]

from difflib import get_close_matches
from pickle import UnpicklingError
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import nn

from .demo import DEMO_CLASSIFIERS, demo_tensors
from .doctor import examine
from .energy import ClassifierEnergy
from .errors import UsageError
from .frame import FrameConvNet
from .gauge import Gauge
from .generative import GenerativeConvNet
from .reference import Reference, WhiteNoise
from .smooth import Smoothing
from .space import PixelSpace
from .spectral import SpectralNoise
from .support import Support
from .untrained import auto_gain, prepare

# What timm raises for a name, an option or a file that it cannot use.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
)

# Whose layers a `frame_convnet` takes if none is named: installs offline.
BOTTOM = "demo:efficientnet_lite0"

IMAGENET_TAGS = ("in1k", "in12k", "in21k", "in22k")


def create_classifier(name: str, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:  # noqa: ANN401
    """Creates a timm classifier, in evaluation mode; the name is passed through untouched.

    Arguments:
        name: Any name of timm: `resnet50.a1_in1k`, `hf-hub:...`, `local-dir:...`; or
            `demo:efficientnet_lite0` or `lite1`, whose weights come with the `demo` extra; or
            `generative_convnet`, see :class:`GenerativeConvNet`, or `frame_convnet`, see
            :class:`FrameConvNet`, whose `bottom` is such a name again, with `bottom_kwargs`.
        pretrained: Whether its weights are loaded.
        kwargs: Handed to `timm.create_model`, for example `num_classes`, `in_chans`, `img_size`.

    Raises:
        UsageError: If timm does not know the name or cannot load the weights.
    """
    if name.startswith("demo:"):
        return _create_demo(name, pretrained, kwargs)
    if name == "generative_convnet" and pretrained:
        raise UsageError(f"classifier {name!r}: has no trained weights. Set pretrained to false.")
    try:
        if name == "generative_convnet":
            return GenerativeConvNet(**kwargs).eval()
        if name == "frame_convnet":
            below, options = kwargs.pop("bottom", BOTTOM), kwargs.pop("bottom_kwargs", {})
            bottom = create_classifier(below, pretrained=pretrained, **options)
            return FrameConvNet(bottom, bottom_kwargs=options, **kwargs).eval()
        return timm.create_model(name, pretrained=pretrained, **kwargs).eval()
    except UsageError:
        raise
    except REFUSALS as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        if " " not in reason:
            reason = f"{type(error).__name__} {reason}".strip()
        hint = _near(name) if "Unknown model" in reason or "pretrained tag" in reason else ""
        raise UsageError(f"classifier {name!r}: {reason}.{hint}") from error


def _create_demo(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    key = name.removeprefix("demo:")
    if key not in DEMO_CLASSIFIERS:
        raise UsageError(
            f"classifier {name!r}: there are demo:{', demo:'.join(DEMO_CLASSIFIERS)}."
        )
    classifier = create_classifier(DEMO_CLASSIFIERS[key][0], pretrained=False, **options)
    if not pretrained:
        return classifier
    own = classifier.state_dict()
    tensors = demo_tensors(key)
    if [t.shape for t in own.values()] != [t.shape for t in tensors]:
        raise UsageError(
            f"classifier {name!r}: its weights are for 3 channels and 1000 classes. Create it "
            "with pretrained=False."
        )
    classifier.load_state_dict(dict(zip(own, tensors, strict=True)))
    return classifier


def space_of(classifier: nn.Module, size: int | tuple[int, int] | None = None) -> PixelSpace:
    """Reads the input space of a classifier from its `pretrained_cfg`.

    Arguments:
        classifier: A timm classifier.
        size: The size of an image, in pixels. `None` for the one in its config.

    Raises:
        UsageError: If it has no `pretrained_cfg`.
    """
    if not getattr(classifier, "pretrained_cfg", None):
        raise UsageError(
            f"convert: {type(classifier).__name__} has no `pretrained_cfg`, so its input is "
            "unknown. Give space=PixelSpace(mean, std, size)."
        )
    config = resolve_data_config({}, model=classifier)
    channels = _channels(classifier, config["input_size"][0])
    mean, std = (_spread(config[key], channels) for key in ("mean", "std"))
    if size is None:
        size = _size(classifier) or tuple(config["input_size"][1:])
    return PixelSpace(mean, std, (size, size) if isinstance(size, int) else size)


def convert(
    classifier: nn.Module | str,
    *,
    reference: Reference | None = None,
    space: PixelSpace | None = None,
    size: int | tuple[int, int] | None = None,
    gauge: Gauge = "raw",
    gain: float | Literal["auto"] | None = None,
    support: Support = "unbounded",
    smoothing: Smoothing | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> ClassifierEnergy:
    """Converts a classifier to an energy; the classifier itself is not changed.

    Arguments:
        classifier: A classifier, or a name of timm.
        reference: The reference q. `None` for a field with the spectrum and colours of
            photographs if it takes 3 channels, for white noise otherwise, both around mid-gray
            with a standard deviation of 0.25.
        space: The map from pixels to its input. `None` to read it from its `pretrained_cfg`.
        size: The size of an image, in pixels. `None` for the one in its config.
        gauge: The common shift of the logits; see :class:`ClassifierEnergy`.
        gain: The gain on the logits; `auto` to measure one, see :func:`auto_gain`. `None` for
            `auto` with a smoothing, for 1 without. With a smoothing and a much smaller gain than
            `auto`, images are draws of q and little else.
        support: The images that the model lives on.
        smoothing: The changes that scores are averaged over. `None` for none, as for a classifier
            that will be fine-tuned. With `Smoothing()` the energy also gets starts, a coarse
            stage and a sampler of low temperature, for pictures from the classifier as it is.
        kwargs: Handed to `timm.create_model` with a name.

    Returns:
        The energy, on the device of the classifier.

    Raises:
        UsageError: If the classifier cannot be converted; the message says what to do.
        ValueError: If an option is wrong; see :class:`ClassifierEnergy`.
    """
    name = classifier if isinstance(classifier, str) else type(classifier).__name__
    if isinstance(classifier, str):
        classifier = create_classifier(classifier, **kwargs)
    elif kwargs:
        raise TypeError(f"convert: {', '.join(kwargs)} can only be given with a name.")
    if gain is None:
        gain = 1.0 if smoothing is None else "auto"
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    space = (space or space_of(classifier, size)).to(device)
    diagnosis = examine(classifier, space, name=name, timing=False)
    if not diagnosis.ok:
        raise UsageError(diagnosis.refusal)
    if reference is None:
        mean = torch.full(space.shape, 0.5)
        reference = SpectralNoise(mean) if len(mean) == 3 else WhiteNoise(mean)
    energy = ClassifierEnergy(
        classifier,
        reference,
        space,
        gauge=gauge,
        gain=1.0 if gain == "auto" else gain,
        support=support,
        smoothing=smoothing,
    )
    energy.reference.to(device)
    energy.class_names = class_names(classifier)
    if smoothing is not None:
        prepare(energy)
    if gain == "auto":
        energy.gain = auto_gain(energy)
    return energy


def class_names(classifier: nn.Module) -> list[str] | None:
    """Returns the name of each class: from the classifier's config, or those of ImageNet.

    Arguments:
        classifier: A timm classifier.
    """
    config = getattr(classifier, "pretrained_cfg", None) or {}
    found, n = config.get("label_names"), getattr(classifier, "num_classes", None)
    if isinstance(found, list | tuple) and len(found) == n:
        return [str(name) for name in found]
    on_imagenet = str(config.get("tag") or "").endswith(IMAGENET_TAGS)
    if on_imagenet and n == config.get("num_classes"):
        subset = infer_imagenet_subset(classifier)
        return list(ImageNetInfo(subset).label_descriptions()) if subset else None
    return None


def _near(name: str) -> str:
    """Returns the tags of a known name, or the names that are spelt much like it."""
    base = name.split(".")[0]
    near = timm.list_pretrained(f"{base}.*") or get_close_matches(base, timm.list_models(), 5)
    return f" Near it: {', '.join(near[:5])}." if near else " See timm.list_models()."


def _size(classifier: nn.Module) -> tuple[int, int] | None:
    """Returns the size a classifier was built for, where one of its parts keeps it.

    Its config keeps the size it was trained at, also when it was created with another img_size.
    """
    sizes = (getattr(part, "img_size", None) for part in classifier.modules())
    return next((s for s in sizes if isinstance(s, tuple) and len(s) == 2), None)


def _channels(classifier: nn.Module, default: int) -> int:
    """Returns the channels a classifier takes; its config keeps 3 when it was built for 1."""
    first = next((m for m in classifier.modules() if isinstance(m, nn.Conv2d)), None)
    found = getattr(classifier, "in_chans", None) or (first.in_channels if first else default)
    return int(found)


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Returns one value per channel: as they are, or their mean for another number of them."""
    same = len(values) == channels
    return tuple(values) if same else (sum(values) / len(values),) * channels
