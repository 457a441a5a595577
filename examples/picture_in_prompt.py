"""A picture as a word of the prompt: `python examples/picture_in_prompt.py [MODEL] [PICTURE]`."""

import sys

import torch

from kosmosg import KosmosGPipeline
from kosmosg.images import open_image

model = sys.argv[1] if len(sys.argv) > 1 else "nano"
picture = sys.argv[2] if len(sys.argv) > 2 else "docs/images/creature.png"

pipe = KosmosGPipeline.from_pretrained(model)
creature = open_image(picture)  # any picture of yours: checked, upright, RGB
seed = torch.Generator().manual_seed(7)
image = pipe(["a creature", creature, "in the snow"], generator=seed).images[0]
image.save("in_the_snow.png")
