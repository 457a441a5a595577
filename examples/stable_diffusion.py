"""What `encode_prompt` returns drives diffusers' own pipelines, which know nothing of Kosmos-G.

`python examples/stable_diffusion.py [MODEL] [PICTURE]`
"""

import sys

import torch
from diffusers import StableDiffusionPipeline

from kosmosg import KosmosGPipeline
from kosmosg.images import open_image

model = sys.argv[1] if len(sys.argv) > 1 else "nano"
picture = sys.argv[2] if len(sys.argv) > 2 else "docs/images/creature.png"

pipe = KosmosGPipeline.from_pretrained(model)
with torch.no_grad():
    embeds, negative_embeds = pipe.encode_prompt(["a creature", open_image(picture), "in the snow"])

stable_diffusion = StableDiffusionPipeline(  # the same U-Net, VAE and sampler, no text encoder
    vae=pipe.vae,
    unet=pipe.unet,
    scheduler=pipe.scheduler,
    text_encoder=None,
    tokenizer=None,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)
image = stable_diffusion(
    prompt_embeds=embeds,
    negative_prompt_embeds=negative_embeds,
    height=pipe.generation_config.height,
    width=pipe.generation_config.width,
    num_inference_steps=pipe.generation_config.num_inference_steps,
    guidance_scale=pipe.generation_config.guidance_scale,
    generator=torch.Generator().manual_seed(7),
).images[0]
image.save("stable_diffusion.png")
