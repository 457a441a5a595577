"""Kosmos-G in diffusers' other pipelines: `python examples/tools.py [MODEL] [PICTURE]`.

The ControlNet here is untrained, so it changes nothing; see docs/tools.md for more tools.
"""

import sys

import torch
from diffusers import (
    ControlNetModel,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from kosmosg import KosmosGPipeline
from kosmosg.canvas import fit
from kosmosg.images import open_image

model = sys.argv[1] if len(sys.argv) > 1 else "nano"
picture = sys.argv[2] if len(sys.argv) > 2 else "docs/images/creature.png"

pipe = KosmosGPipeline.from_pretrained(model)
size = (pipe.generation_config.width, pipe.generation_config.height)
creature = open_image(picture)
start = fit(creature, size)
with torch.no_grad():
    embeds, negative_embeds = pipe.encode_prompt(["a creature", creature, "in the snow"])

parts = {"unet": pipe.unet, "vae": pipe.vae, "scheduler": pipe.scheduler}
parts |= dict.fromkeys(["text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
parts["requires_safety_checker"] = False
said = {
    "prompt_embeds": embeds,
    "negative_prompt_embeds": negative_embeds,
    "num_inference_steps": pipe.generation_config.num_inference_steps,
    "guidance_scale": pipe.generation_config.guidance_scale,
}

# From a picture: its outline stays, its ground becomes snow.
img2img = StableDiffusionImg2ImgPipeline(**parts)
image = img2img(image=start, strength=0.6, generator=torch.Generator().manual_seed(1), **said)
image.images[0].save("img2img.png")

# Only the upper half, which is white in the mask.
mask = Image.new("L", size)
mask.paste(255, (0, 0, size[0], size[1] // 2))
inpaint = StableDiffusionInpaintPipeline(**parts)
image = inpaint(
    image=start,
    mask_image=mask,
    width=size[0],
    height=size[1],
    generator=torch.Generator().manual_seed(1),
    **said,
)
image.images[0].save("inpaint.png")

# A ControlNet shrinks its picture as much as the VAE does: by 2 for each channel after the first.
channels = (16, 32, 64, 128)[: len(pipe.vae.config["block_out_channels"])]
untrained = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=channels)
control = StableDiffusionControlNetPipeline(controlnet=untrained, **parts)
image = control(image=start, generator=torch.Generator().manual_seed(1), **said)
image.images[0].save("controlnet.png")

# Another sampler. Four steps are few for a model that was not distilled for them.
lcm = LCMScheduler.from_config(pipe.scheduler.config)
few = StableDiffusionPipeline(**parts | {"scheduler": lcm})
few_steps = said | {"num_inference_steps": 4, "guidance_scale": 1.5}
image = few(generator=torch.Generator().manual_seed(1), **few_steps)
image.images[0].save("lcm.png")
