"""A prompt's condition as a file: made with the language model, drawn without it, and blended.

`python examples/conditions.py [MODEL] [PICTURE]`
"""

import sys
from pathlib import Path

import torch

from kosmosg import KosmosGPipeline, conditions, drawing
from kosmosg.cli.prompt import open_picture

model = sys.argv[1] if len(sys.argv) > 1 else "nano"
picture = open_picture(sys.argv[2] if len(sys.argv) > 2 else "docs/images/creature.png")

pipe = KosmosGPipeline.from_pretrained(model)
for name, words in (("snow", "in the snow"), ("red", "and a red hat")):
    condition = drawing.encode(pipe, ["a creature", picture, words])
    conditions.save(condition, Path(f"{name}.safetensors"))

# From here on nothing needs the language model: this could be another machine.
decoder = KosmosGPipeline.from_pretrained(model, mllm=None, aligner=None)
snow, red = (conditions.load(Path(f"{name}.safetensors")) for name in ("snow", "red"))
for name, condition in (("snow", snow), ("half", conditions.blend(snow, red, 0.5)), ("red", red)):
    image = decoder(
        prompt_embeds=condition.prompt_embeds,
        negative_prompt_embeds=condition.negative_prompt_embeds,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    image.save(f"{name}.png")
