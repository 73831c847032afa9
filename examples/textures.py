"""A texture, learned from one small picture and drawn at another, larger size.

    python examples/textures.py brick        # or grass, gravel, or an image file
    python examples/textures.py grass texture_fine        # by another recipe

Writes textures.png, the observed beside 256x256 synthesized pixels, film.png, a chain while its
energy was learned, and filters.png, where in the texture each learned filter responds most.
"""

import os
import sys
from dataclasses import replace

import torch
from PIL import Image

import ebm_from_clf as ebm
from ebm_from_clf.arguments import read_recipe
from ebm_from_clf.generative import enlarged
from ebm_from_clf.pictures import grid, picture
from ebm_from_clf.run import create_for
from ebm_from_clf.texture import exemplar

QUICK = bool(os.environ.get("QUICK"))
source = sys.argv[1] if len(sys.argv) > 1 else "brick"
recipe = read_recipe(sys.argv[2] if len(sys.argv) > 2 else "texture")
settings = replace(recipe.finetune, updates=3, log_every=1) if QUICK else recipe.finetune
recipe = replace(recipe, data=replace(recipe.data, root=source), finetune=settings)

network, space = create_for(recipe)
try:
    crops = recipe.load("train", space)
except ebm.UsageError as error:  # no such file, no image, or one too small to cut crops of
    raise SystemExit(str(error)) from None
energy = recipe.convert(network, space, crops)  # a reference and filters on the scale of the crops
tuner, film = ebm.Finetuner(energy, crops, settings), []
tuner.run(callback=lambda line: film.append(tuner.chains.pixels([0], 1)))
every = max(len(film) // 10, 1)
grid(torch.cat(film[::every]), 20, width=1).save("film.png")

large = enlarged(energy, (64, 64) if QUICK else (256, 256))  # a torus: it tiles without a seam
sampler = replace(energy.sampler, n_steps=4) if QUICK else energy.sampler
synthesized = ebm.sample(large, [0], sampler=sampler)[0]
observed = exemplar(source, "train", space.shape[0]) / 255
pictures = picture(observed), picture(synthesized)
sheet = Image.new("RGB", (sum(p.width for p in pictures) + 8, max(p.height for p in pictures)))
sheet.paste(pictures[0], (0, 0))
sheet.paste(pictures[1], (pictures[0].width + 8, 0))
sheet.save("textures.png")

patches, best = [], network.weights[-1].topk(16).indices  # those that raise the score
maps = network.filter_maps(space(observed[None]))[-1][0]
for row in maps[best]:
    i, j = divmod(int(row.argmax()), row.shape[1])
    top, left = (network.border + network.distance * at - 16 for at in (i, j))
    patches.append(observed[:, max(top, 0) : max(top, 0) + 32, max(left, 0) : max(left, 0) + 32])
grid(torch.stack(patches), 8, width=800).save("filters.png")
print(f"contrast {float(synthesized.std() / observed.std()):.2f} of that observed")
