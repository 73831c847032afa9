r"""Randomness as an argument: one generator for a batch, or one per image.

Nothing in this package touches the global random state. A function that needs noise takes
`generator`: a single :class:`torch.Generator`, which draws for the whole batch, or a sequence
with one generator per image. With the latter an image depends on its own seed only, never on
the batch it happened to share. Noise is drawn on the generator's device and then moved, so
that a CPU generator gives the same numbers wherever the images live.
"""

__all__ = ["Randomness", "generators", "normal", "uniform"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Randomness = torch.Generator | Sequence[torch.Generator]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Creates one CPU generator per seed.

    Arguments:
        seeds: The seeds, one per image.
    """
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def normal(like: Tensor, generator: Randomness) -> Tensor:
    """Draws standard normal noise.

    Arguments:
        like: A batch whose shape, dtype and device the noise takes, with shape (B, *).
        generator: One generator, or one per image.

    Raises:
        ValueError: If the number of generators is not the number of images.
    """
    return _draw(torch.randn, like, generator)


def uniform(like: Tensor, generator: Randomness) -> Tensor:
    """Draws uniform noise in [0, 1); arguments and errors as for :func:`normal`."""
    return _draw(torch.rand, like, generator)


def _draw(function: Callable[..., Tensor], like: Tensor, generator: Randomness) -> Tensor:
    # torch.randn_like takes no generator before torch 2.10.
    def one(shape: torch.Size, g: torch.Generator) -> Tensor:
        return function(shape, generator=g, device=g.device, dtype=like.dtype)

    if isinstance(generator, torch.Generator):
        return one(like.shape, generator).to(like.device)
    if len(generator) != len(like):
        raise ValueError(
            f"generator: one generator per image is needed, got {len(generator)} generators "
            f"for {len(like)} images. Pass one per image, or a single one for the batch."
        )
    if len(like) == 0:
        return torch.empty_like(like)
    return torch.stack([one(like.shape[1:], g) for g in generator]).to(like.device)
