"""A texture learned one layer after the other, with nothing pretrained, as the paper does.

    python examples/layer_by_layer.py brick        # or grass, gravel, or an image file

Writes layers.png: the observed 128x128 pixels, then 256x256 that the first layer draws once it has
learned, that the first two draw, and so on. Layers below learn on when one is added.
"""

import os
import sys
from dataclasses import replace

from PIL import Image

import ebm_from_clf as ebm
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.generative import enlarged
from ebm_from_clf.pictures import picture
from ebm_from_clf.run import create_for
from ebm_from_clf.texture import exemplar
from ebm_from_clf.untrained import auto_gain

QUICK = bool(os.environ.get("QUICK"))
UPDATES = (2, 2, 2, 2) if QUICK else (60, 100, 200, 300)
PULL = 4.0  # of new filters at the start, in u a pixel: that of the recipe's gain on all layers

recipe = read_recipe("texture_scratch")
source = sys.argv[1] if len(sys.argv) > 1 else "brick"
recipe = replace(recipe, data=replace(recipe.data, root=source))
network, space = create_for(recipe)
try:
    crops = recipe.load("train", space)
except ebm.UsageError as error:  # no such file, no image, or one too small to cut crops of
    raise SystemExit(str(error)) from None
energy = recipe.convert(network, space, crops)
size, n_steps = ((128, 128), 2) if QUICK else ((256, 256), 150)

observed = exemplar(source, "train", space.shape[0]) / 255
pictures = [picture(observed)]
for depth, updates in enumerate(UPDATES, 1):
    network.depth = depth
    energy.gain = auto_gain(energy, PULL)  # scores are means over the responses of a layer
    ebm.finetune(energy, crops, replace(recipe.finetune, updates=updates))
    large = enlarged(energy, size)
    x = ebm.sample(large, [0], sampler=replace(energy.sampler, n_steps=n_steps))[0]
    pictures.append(picture(x))
    contrast = float(x.std() / observed.std())
    print(f"{depth} layers see {network.field} pixels; contrast {contrast:.2f} of that observed")

sheet = Image.new("RGB", (sum(p.width + 8 for p in pictures) - 8, pictures[-1].height), "gray")
left = 0
for p in pictures:
    sheet.paste(p, (left, 0))
    left += p.width + 8
sheet.save("layers.png")
