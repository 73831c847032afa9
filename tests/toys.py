"""Energies with closed forms, on the production classes: classifier, normalisation, reference."""

import torch
from torch import Tensor, nn

from ebm_from_clf import ClassifierEnergy, FittedGaussian, Langevin, PixelSpace
from ebm_from_clf.prototype import Prototype

SHAPE = (2, 3, 4)
DIM = 24


class Linear(nn.Module):
    """f_c(I) = <w_c, I> + b_c."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.num_classes = len(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Smooth(nn.Module):
    """A small network with tanh, for gradients."""

    def __init__(self, n_classes: int = 3, dim: int = DIM) -> None:
        super().__init__()
        self.num_classes = n_classes
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, n_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(seed: int = 1) -> FittedGaussian:
    """A reference with every part: scale per pixel, filter, and a colour factor not symmetric."""
    g = seeded(seed)
    channels, height, width = SHAPE
    ky = torch.fft.fftfreq(height)[:, None].abs()
    kx = torch.fft.fftfreq(width)[None].abs()
    root = torch.randn(channels, channels, generator=g)
    return FittedGaussian(
        mean=torch.rand(SHAPE, generator=g),
        scale=0.1 + 0.2 * torch.rand(SHAPE, generator=g),
        amplitude=1.5 / (1 + 4 * ky + 3 * kx),
        color=root @ root.T + torch.eye(channels),
    )


def space() -> PixelSpace:
    return PixelSpace([0.4, 0.3], [0.2, 0.5], SHAPE[1:])


def linear(gain: float = 1.3, seed: int = 2, n_classes: int = 3) -> ClassifierEnergy:
    g = seeded(seed)
    weight = 0.4 * torch.randn(n_classes, DIM, generator=g)
    classifier = Linear(weight, torch.randn(n_classes, generator=g))
    return ClassifierEnergy(classifier, reference(), space(), gain=gain)


def smooth(**options: object) -> ClassifierEnergy:
    with torch.random.fork_rng():
        torch.random.manual_seed(3)
        classifier = Smooth()
    return ClassifierEnergy(classifier, reference(), space(), **options)  # type: ignore[arg-type]


def dense(ref: FittedGaussian) -> Tensor:
    """The matrix A of a reference, column by column, float64."""
    ref = FittedGaussian(*(v.double() for v in ref.arguments.values())).double()
    basis = torch.eye(DIM, dtype=torch.float64).view(DIM, *SHAPE)
    return ref.factor(basis).flatten(1).T


def linear_tilt(energy: ClassifierEnergy, y: Tensor) -> Tensor:
    """B = gamma A^T grad f of a linear energy, from the dense matrix; shape (B, DIM)."""
    slope = energy.classifier.weight.detach().double()[y]
    slope = (slope.view(-1, *SHAPE) / energy.space.std.double()).flatten(1)
    return energy.gain * slope @ dense(energy.reference)


def langevin_moments(
    energy: ClassifierEnergy, y: Tensor, sampler: Langevin, mean_0: float, var_0: float
) -> tuple[Tensor, Tensor]:
    """The exact mean and variance of a linear energy's chain after all its steps."""
    h, c = sampler.step_size**2 / 2, sampler.momentum
    noise = 2 * h * sampler.temperature * (1 - h / 2 if sampler.variance_corrected else 1)
    # Of the distance from the tilt and the last move, what a step makes: the first, the others.
    first = torch.tensor([[1 - h, 0.0], [-h, 0.0]]).double()
    later = torch.tensor([[1 - h * (1 + c), c], [-h * (1 + c), c]]).double()
    tilt, both = linear_tilt(energy, y), torch.ones(2, 2).double()
    mean, var = torch.tensor([1.0, 0.0]).double(), torch.diag(torch.tensor([var_0, 0.0])).double()
    for i in range(sampler.n_steps):
        step, part = (later, 1 - c**2) if i else (first, 1.0)
        mean, var = step @ mean, step @ var @ step.T + part * noise * both
    return tilt + mean[0] * (mean_0 - tilt), torch.full_like(tilt, float(var[0, 0]))


def dense_space(energy: ClassifierEnergy) -> tuple[Tensor, Tensor]:
    """Mean and factor of the reference in the classifier's input, dense, float64."""
    mean, std = energy.space.mean.double(), energy.space.std.double()
    ref = energy.reference
    center = ((ref.mean.double() - mean) / std).flatten()
    return center, dense(ref) / std.expand(ref.shape).reshape(-1, 1)


def prototype(tilts: Tensor, beta: Tensor, gain: float = 1.4) -> ClassifierEnergy:
    """A prototype of given tilts in u, (K, DIM), and responses at the mean, (K), float64."""
    blank = Prototype(torch.zeros(len(beta), *SHAPE), torch.zeros(len(beta)))
    energy = ClassifierEnergy(blank, reference(), space(), gain=gain)
    center, a = dense_space(energy)
    weight = torch.linalg.solve(a.T, tilts.T).T / gain
    energy.classifier = Prototype(weight.view(-1, *SHAPE), beta / gain - weight @ center)
    return energy.double()


def orthogonal(norms: Tensor, seed: int = 4) -> Tensor:
    """Orthogonal tilts of given norms, with shape (K, DIM), float64."""
    root = torch.randn(DIM, len(norms), generator=seeded(seed), dtype=torch.float64)
    return torch.linalg.qr(root)[0].T * norms[:, None]
