"""The model where everything is known: a linear classifier over white noise is a Gaussian.

    python examples/03_gaussian_toy.py

With f(x) = <w, x> the density p(x) = exp(f) q / Z is N(mu + sigma^2 w, sigma^2). The chain finds
this mean, and its variance is 1 / (1 - e^2/4) times too large, or exact if corrected.
"""

import torch
from torch import nn

import ebm_from_clf as ebm

SHAPE, SIGMA, N = (1, 2, 2), 0.25, 20_000
classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
with torch.no_grad():
    classifier[1].weight.copy_(torch.tensor([[4.0, 0.0, -4.0, 8.0]]))

reference = ebm.WhiteNoise(torch.full(SHAPE, 0.5), SIGMA)
energy = ebm.ClassifierEnergy(classifier, reference)
expected = 0.5 + SIGMA**2 * classifier[1].weight.detach().flatten()

for corrected in (False, True):
    generator = torch.Generator().manual_seed(0)
    sampler = ebm.Langevin(n_steps=30, step_size=0.8, variance_corrected=corrected)
    u = torch.randn(N, *SHAPE, generator=generator)
    u, trace = sampler(energy, u, torch.zeros(N).long(), generator=generator)
    x = energy.reference.decode(u).flatten(1)
    print("corrected" if corrected else "plain")
    print("  mean    ", [round(v, 3) for v in x.mean(0).tolist()])
    print("  expected", [round(v, 3) for v in expected.tolist()])
    print("  variance / sigma^2", round(float(x.var(0).mean()) / SIGMA**2, 3))
