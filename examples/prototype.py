"""The one-layer model of the paper, where everything is exact: drawn, sampled and learned.

    python examples/prototype.py

Writes prototype.png, of images of two pixels: the pieces, chains, and in red what was learned.
"""

import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.data import TensorDataset

import ebm_from_clf as ebm
from ebm_from_clf.chain_settings import ChainSettings
from ebm_from_clf.prototype import PieceLaw, Prototype

N, UPDATES, SIDE = (400, 100, 200) if os.environ.get("QUICK") else (2000, 400, 1000)
WHITE = ebm.WhiteNoise(torch.full((1, 1, 2), 0.5), 0.15)
SPACE = ebm.PixelSpace([0.5], [0.15], (1, 2))  # so that filters are tilts in u


def prototype(tilts, beta):
    return ebm.ClassifierEnergy(Prototype(tilts.view(-1, 1, 1, 2), beta), WHITE, SPACE)


def panel(energy, title, laws, dots=()):
    u = torch.cartesian_prod(torch.linspace(5, -5, SIDE), torch.linspace(-5, 5, SIDE)).flip(1)
    low = energy(u.view(-1, 1, 1, 2), torch.zeros(len(u)).long()).detach().view(SIDE, SIDE)
    shade = (255 * ((low.min() - low) / 2).exp()).byte().numpy()  # the root of the density
    image = ImageOps.colorize(Image.fromarray(shade), "#fcfaf5", "#18466e")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(SIDE / 22)
    for a, b in torch.as_tensor(dots).view(-1, 2).tolist():
        draw.ellipse([(5 + v + d) * SIDE / 10 for d in (-0.05, 0.05) for v in (a, -b)], "#e08e1b")
    for law, color in zip(laws, ("#33424f", "#d0315a"), strict=False):
        for (a, b), beta in zip(law.omega.view(-1, 2).tolist(), law.beta.tolist(), strict=True):
            x, y = (-beta * w / (a * a + b * b) for w in (a, b))  # where the kink is nearest to 0
            line = [SIDE * (0.5 + v / 10) for t in (-20, 20) for v in (x - t * b, -y - t * a)]
            draw.line(line, fill=color, width=SIDE // 250)
    draw.text((SIDE / 30, SIDE * 0.93), title, "#18344c", font)
    return ImageOps.expand(image, SIDE // 50, "white")


true = prototype(torch.tensor([[0, 2.5], [-2.1, -1.2], [2, -1.3]]), torch.tensor([-3, -2.6, -2.4]))
g = torch.Generator().manual_seed(1)
fit = prototype(2 * torch.randn(3, 2, generator=g), -2 * torch.ones(3))
(u, new), y = PieceLaw(true).sample(2 * N, generator=g).chunk(2), torch.zeros(N).long()
settings = ebm.Settings(
    UPDATES, N // 4, 0, learning_rate=0.05, chains=ChainSettings(N // 4, 0.01),
    sampler=ebm.Langevin(10, 0.3), objective=ebm.Objective(cross_entropy=0, data_noise=0),
)  # fmt: skip
(tuner := ebm.Finetuner(fit, TensorDataset(WHITE.decode(u), y), settings)).run()
laws, x = [PieceLaw(true), PieceLaw(fit)], WHITE.encode(tuner.chains.pixels([0], 500))
rows = [panel(true, "pieces", laws[:1]), panel(true, "chains", [], x), panel(fit, "learned", laws)]
Image.fromarray(np.hstack(rows)).reduce(2).save("prototype.png")
gap = (fit(new, y) - true(new, y)).mean() + laws[1].log_z - laws[0].log_z
print(f"KL of the learned law, by {N} other draws: {gap.item():.4f} nats")
