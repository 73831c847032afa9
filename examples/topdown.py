"""What an ImageNet classifier draws top-down from a photograph, by three kinds of switches.

    pip install -e ".[demo]" && python examples/topdown.py [CLASSIFIER]

Writes topdown.png: the photograph, then for each of two classes the gradient of its score, of
which the reconstruction B of the paper is made, guided backpropagation, and the deconvnet. The
gradient is that of a class; the other two show what is in the photograph, whatever the class.
"""

import os
import sys

import torch
from PIL import Image
from skimage.data import chelsea
from torch.nn import functional

import ebm_from_clf as ebm
from ebm_from_clf.image_file import to_pixels
from ebm_from_clf.labels import find_class
from ebm_from_clf.pictures import grid

name = sys.argv[1] if len(sys.argv) > 1 else "demo:efficientnet_lite0"
energy = ebm.convert(name, size=96 if "QUICK" in os.environ else None)
photograph = to_pixels(Image.fromarray(chelsea()), energy.space.size, 3)[None] / 255
classes = [find_class(n, energy.class_names) for n in ("Egyptian cat", "zebra")]

rows, signals = [photograph.expand(len(classes), -1, -1, -1)], {}
for switches in ("gradient", "guided", "deconvnet"):
    y = torch.tensor(classes)
    signal = ebm.topdown(energy, photograph.expand(len(y), -1, -1, -1), y, switches)
    signals[switches] = signal.flatten(1)
    # Grey is nothing; the largest hundredth of each image is black or white.
    rows.append(0.5 + 0.5 * signal / signal.abs().flatten(1).quantile(0.99, 1).view(-1, 1, 1, 1))
grid(torch.stack(rows, 1).flatten(0, 1).clamp(0, 1), columns=len(rows)).save("topdown.png")

for switches, (one, other) in signals.items():
    alike = functional.cosine_similarity(one, other, dim=0)
    print(f"{switches}: the cosine of the signals of the two classes is {alike:.2f}")
