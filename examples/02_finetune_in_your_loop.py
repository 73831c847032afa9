"""The drop-in line in a plain PyTorch loop: your classifier learns to generate.

    python examples/02_finetune_in_your_loop.py

Digits of 8x8 pixels; `QUICK=1` makes it a smoke test.
"""

import os

import timm
import torch
from torch.nn.functional import cross_entropy

import ebm_from_clf as ebm
from ebm_from_clf.data import gather, load_data
from ebm_from_clf.pictures import grid

UPDATES = 5 if os.environ.get("QUICK") else 200
digits = load_data("digits8x8", "train", size=(16, 16), channels=1)
x, y = gather(digits)

classifier = timm.create_model(
    "resnet18", in_chans=1, num_classes=10, layers=(1, 1, 0, 0), channels=(32, 64, 64, 64),
    stem_type="deep", stem_width=16, replace_stem_pool=True, act_layer="silu",
    pretrained_cfg_overlay=dict(input_size=(1, 16, 16), mean=(0.5,), std=(0.5,)),
)  # fmt: skip
optimizer = ebm.Muon(classifier.parameters(), lr=3e-3)

reference = ebm.FittedGaussian.fit(x, floor=0.05)
energy = ebm.convert(classifier, reference=reference, gain=600.0, support="clamp")
start = ebm.ClassMixture.fit(x, y, 10, modes=4, rank=16, residual=False)
generator = torch.Generator().manual_seed(0)
chains = ebm.ChainStore(reference, start, 10, restart_rate=0.2)
sampler = ebm.Langevin(n_steps=5, step_size=0.1, temperature=0.03)
gen = ebm.Contrastive(energy, sampler, chains, generator=generator)

classifier.eval()  # BatchNorm statistics stay as they are: an energy must not move with its batch
for _ in range(UPDATES):
    index = torch.randint(len(x), (64,), generator=generator)
    loss = 3 * cross_entropy(energy.logits(x[index]), y[index])
    loss = loss + gen(x[index], y[index])  # <- the line that makes it generate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

accuracy = (energy.logits(x).argmax(1) == y).float().mean()
print(f"accuracy on its training images {accuracy:.3f}")
images = ebm.sample(energy, range(10), n=8)  # starts and moves as in training
grid(images, columns=8).save("digits.png")
print("wrote digits.png")
