"""What networks of one category need beside their layers: the face of a model of timm, and sizes.

Filters of a :class:`FrameConvNet` stand at places of a given distance, within a border that does
not count; the sizes of an image and of its border are multiples of it.
"""

__all__ = ["check_sizes", "layers_of", "one_class_config"]

from typing import Any


def one_class_config(
    architecture: str,
    in_chans: int,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Any]:
    """Returns what timm's models carry, so that the same functions read and write a network.

    Arguments:
        architecture: The name of the network.
        in_chans: Channels of an image.
        size: Height and width of an image, in pixels.
        mean: The mean that its input is freed of, in pixels.
        std: The standard deviation that its input is divided by, in pixels.
    """
    return {
        "architecture": architecture,
        "input_size": (in_chans, size, size),
        "mean": mean,
        "std": std,
        "num_classes": 1,
    }


def layers_of(bottom: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # noqa: ANN401
    """Returns what timm tells of the layers of a classifier, and its config.

    Arguments:
        bottom: The classifier.

    Raises:
        ValueError: If it tells nothing.
    """
    parts = ("feature_info", "pretrained_cfg", "forward_intermediates")
    if not all(hasattr(bottom, part) for part in parts):
        raise ValueError(
            f"FrameConvNet: {type(bottom).__name__} does not give its layers; timm's models with "
            "`forward_intermediates` do, as resnet18 or tf_efficientnet_lite0."
        )
    return list(bottom.feature_info), bottom.pretrained_cfg


def check_sizes(distance: int, size: int, border: int, kernel: int) -> None:
    """Checks that places of filters fit an image and its border.

    Arguments:
        distance: How far apart places are, in pixels.
        size: Height and width of the image.
        border: How far from its border responses count.
        kernel: Height and width of the filters on the image itself.

    Raises:
        ValueError: If they do not.
    """
    if size % distance or border % distance or not 0 <= 2 * border < size:
        raise ValueError(
            f"FrameConvNet: `size` and `border` must be multiples of {distance} pixels, the "
            f"distance of the places of its last layer, and the border less than half of the "
            f"size, got {size} and {border}."
        )
    if kernel % 2 == 0 or not 0 < kernel < 2 * border + 2:
        raise ValueError(
            f"FrameConvNet: `kernel` must be odd and at most {2 * border + 1}, got {kernel}."
        )
