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


def worst_share(codes: Tensor, probability: Tensor) -> float:
    """The largest deviation of the shares of outcomes among draws, in standard errors.

    codes: the outcome of each independent draw, (N,); probability: of every outcome, (P,). Those
    expected less than 100 times, whose numbers are not normal, count as one.
    """
    n = len(codes)
    count = torch.bincount(codes, minlength=len(probability)).double()
    order = probability.argsort()
    count, p = count[order], probability.double()[order]
    few = int((n * p < 100).sum())
    while few and few < len(p) and float(n * p[:few].sum()) < 100:
        few += 1
    if few:
        count, p = (torch.cat([v[:few].sum()[None], v[few:]]) for v in (count, p))
    z = (count - n * p) / (n * p * (1 - p)).clamp_min(1e-300).sqrt()
    return float(z.abs().max())


def assert_shares(codes: Tensor, probability: Tensor, sigmas: float = 5.0) -> None:
    worst = worst_share(codes, probability)
    assert worst < sigmas, f"{worst:.1f} standard errors"
