"""Several prompts in one pass, two pictures each: `python examples/batch.py [MODEL] [PICTURE]`."""

import sys

import torch

from kosmosg import KosmosGPipeline
from kosmosg.images import open_image

model = sys.argv[1] if len(sys.argv) > 1 else "nano"
picture = sys.argv[2] if len(sys.argv) > 2 else "docs/images/creature.png"

pipe = KosmosGPipeline.from_pretrained(model)
creature = open_image(picture)
prompts = [  # a batch is a list of lists; lengths and numbers of pictures may differ
    ["a red creature"],
    ["a creature", creature, "wearing a hat"],
    [creature, "and", creature, "in the snow"],
]
seeds = [torch.Generator().manual_seed(seed) for seed in range(6)]  # one for each picture
images = pipe(prompts, num_images_per_prompt=2, generator=seeds).images
for number, image in enumerate(images):  # those of one prompt stand together
    image.save(f"batch-{number // 2}-{number % 2}.png")
