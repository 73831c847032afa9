"""Convert a timm classifier and draw images of two classes.

    python examples/01_convert_and_sample.py [NAME]

With a name of timm its pretrained weights are loaded (needs a network). Without, a tiny network
with random weights shows the calls: its samples are draws from the reference q, faintly tilted.
"""

import sys

import torch

import ebm_from_clf as ebm
from ebm_from_clf.pictures import grid

if len(sys.argv) > 1:
    energy = ebm.convert(sys.argv[1])
else:
    energy = ebm.convert("test_resnet", pretrained=False, size=64)

sampler = ebm.Langevin(n_steps=20, step_size=0.3)
images = ebm.sample(energy, classes=[281, 340], n=4, seed=0, sampler=sampler)
grid(images, columns=4).save("samples.png")

y = torch.tensor([281, 340]).repeat_interleave(4)
print("energy per pixel value", (energy.energy(images, y) / images[0].numel()).tolist())
print("wrote samples.png")

# Without a strong tilt a sample is a draw of q: |u|^2 / 2 is D / 2, a half per pixel value.
u = energy.reference.encode(images)
print("squared whitened pixel", float(u.square().mean()))
