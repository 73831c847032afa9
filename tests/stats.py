"""Moments against closed forms, in standard errors.

At 5 standard errors a right answer fails once in 1.7 million numbers compared.
"""

import math

import torch
from torch import Tensor


def worst_moment(u: Tensor, mean: Tensor, var: Tensor) -> float:
    """The largest deviation of sample means and variances, in standard errors.

    u: independent draws, (N, D); mean and var: the law, (D,) or (N, D) for a mean per draw.
    """
    u, mean, var = u.double().flatten(1), mean.double(), var.double()
    centered = u - mean
    n = len(u)
    var = var.expand_as(centered)[0]
    z_mean = centered.mean(0) / (var / n).sqrt()
    z_var = (centered.square().mean(0) - var) / (var * math.sqrt(2 / n))
    return float(torch.cat([z_mean, z_var]).abs().max())


def assert_moments(u: Tensor, mean: Tensor, var: Tensor, sigmas: float = 5.0) -> None:
    worst = worst_moment(u, mean, var)
    assert worst < sigmas, f"{worst:.1f} standard errors"


def assert_mean(values: Tensor, expected: float, sigmas: float = 5.0) -> None:
    """values: independent draws of one number, (N,)."""
    values = values.double()
    error = float(values.std() / math.sqrt(len(values)))
    z = (float(values.mean()) - expected) / error
    assert abs(z) < sigmas, f"{values.mean():.5g} against {expected:.5g}: {z:.1f} standard errors"
