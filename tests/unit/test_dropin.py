"""What `encode_prompt` returns drives the pipelines that diffusers has for Stable Diffusion 1.5."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    MotionAdapter,
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    TCDScheduler,
    UNet2DConditionModel,
)
from PIL import Image

from kosmosg.pipeline import KosmosGPipeline
from toys.model import EMBED_DIM, SIZE, toy_picture, toy_pipeline

# What Stable Diffusion has beside U-Net, VAE and sampler; embeds need none of it.
WITHOUT_TEXT: dict[str, Any] = {
    "text_encoder": None,
    "tokenizer": None,
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
STEPS = 3
FRAMES = 2


def from_pipe(kind: type, pipe: KosmosGPipeline, **parts: Any) -> Any:
    """Return diffusers' pipeline with our U-Net, VAE and sampler: the same objects."""
    made = kind.from_pipe(pipe, **WITHOUT_TEXT | parts)
    made.set_progress_bar_config(disable=True)
    return made


def random(part: Any, seed: int = 3) -> Any:
    """Return a part all of whose weights are drawn: what starts at zero would say nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in part.parameters():
            weight.normal_(std=0.2)
    return part.eval()


def picture(seed: int = 5) -> Image.Image:
    return toy_picture(seed, (SIZE, SIZE))


def mask() -> Image.Image:
    white_right = np.zeros((SIZE, SIZE), np.uint8)
    white_right[:, SIZE // 2 :] = 255
    return Image.fromarray(white_right)


def controlnet(pipe: KosmosGPipeline, seed: int = 3) -> ControlNetModel:
    """A ControlNet of this U-Net, whose hints shrink as much as the VAE's latents: by 2."""
    return random(
        ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)), seed
    )


def text2img(pipe: KosmosGPipeline) -> Any:
    return from_pipe(StableDiffusionPipeline, pipe), {"height": SIZE, "width": SIZE}


def img2img(pipe: KosmosGPipeline) -> Any:
    return from_pipe(StableDiffusionImg2ImgPipeline, pipe), {"image": picture(), "strength": 0.9}


def inpaint(pipe: KosmosGPipeline) -> Any:
    tool = from_pipe(StableDiffusionInpaintPipeline, pipe)
    return tool, {"image": picture(), "mask_image": mask(), "height": SIZE, "width": SIZE}


def inpaint_with_9_channels(pipe: KosmosGPipeline) -> Any:
    """As SD 1.5's inpainting U-Net: latents, mask and the latents of what stays."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
    tool = from_pipe(StableDiffusionInpaintPipeline, pipe, unet=unet.eval())
    return tool, {"image": picture(), "mask_image": mask(), "height": SIZE, "width": SIZE}


def control(pipe: KosmosGPipeline) -> Any:
    tool = from_pipe(StableDiffusionControlNetPipeline, pipe, controlnet=controlnet(pipe))
    return tool, {"image": picture(), "height": SIZE, "width": SIZE}


def two_controls(pipe: KosmosGPipeline) -> Any:
    nets = [controlnet(pipe), controlnet(pipe, seed=4)]
    tool = from_pipe(StableDiffusionControlNetPipeline, pipe, controlnet=nets)
    return tool, {
        "image": [picture(), picture(6)],
        "controlnet_conditioning_scale": [0.5, 0.7],
        "height": SIZE,
        "width": SIZE,
    }


def control_img2img(pipe: KosmosGPipeline) -> Any:
    tool = from_pipe(StableDiffusionControlNetImg2ImgPipeline, pipe, controlnet=controlnet(pipe))
    return tool, {"image": picture(), "control_image": picture(6), "strength": 0.9}


def control_inpaint(pipe: KosmosGPipeline) -> Any:
    tool = from_pipe(StableDiffusionControlNetInpaintPipeline, pipe, controlnet=controlnet(pipe))
    return tool, {
        "image": picture(),
        "mask_image": mask(),
        "control_image": picture(6),
        "height": SIZE,
        "width": SIZE,
    }


def t2i() -> T2IAdapter:
    """One feature map a level of the U-Net; the first is as large as the latents."""
    return random(T2IAdapter(3, [8, 16], num_res_blocks=1, downscale_factor=2))


def t2i_adapter(pipe: KosmosGPipeline) -> Any:
    tool = from_pipe(StableDiffusionAdapterPipeline, pipe, adapter=t2i())
    return tool, {"image": picture(), "height": SIZE, "width": SIZE}


def two_t2i_adapters(pipe: KosmosGPipeline) -> Any:
    tool = from_pipe(StableDiffusionAdapterPipeline, pipe, adapter=MultiAdapter([t2i(), t2i()]))
    return tool, {
        "image": [picture(), picture(6)],
        "adapter_conditioning_scale": [0.5, 0.5],
        "height": SIZE,
        "width": SIZE,
    }


def ip_adapter(pipe: KosmosGPipeline) -> Any:
    """A second cross attention in each layer, to tokens made of a CLIP embedding of a picture."""
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    tokens, clip = 4, 12
    weights = {
        "image_proj": {
            "proj.weight": drawn(tokens * EMBED_DIM, clip),
            "proj.bias": drawn(tokens * EMBED_DIM),
            "norm.weight": torch.ones(EMBED_DIM),
            "norm.bias": torch.zeros(EMBED_DIM),
        },
        "ip_adapter": {
            f"{number}.{part}.weight": drawn(
                pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features,
                EMBED_DIM,
            )
            for number, name in zip(range(1, 99, 2), cross_attentions(pipe), strict=False)
            for part in ("to_k_ip", "to_v_ip")
        },
    }
    tool = from_pipe(StableDiffusionPipeline, pipe)
    tool.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    tool.set_ip_adapter_scale(0.6)
    seen = torch.cat([torch.zeros(1, 1, clip), drawn(1, 1, clip)])  # of no picture, of the picture
    return tool, {"ip_adapter_image_embeds": [seen], "height": SIZE, "width": SIZE}


def cross_attentions(pipe: KosmosGPipeline) -> list[str]:
    return [name for name in pipe.unet.attn_processors if "attn2" in name]


def animate_diff(pipe: KosmosGPipeline) -> Any:
    torch.manual_seed(4)
    motion = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=FRAMES,
    )
    ddim = DDIMScheduler.from_config(pipe.scheduler.config)
    tool = AnimateDiffPipeline(
        vae=pipe.vae,
        text_encoder=None,
        tokenizer=None,
        unet=pipe.unet,  # whose weights it copies between motion layers
        motion_adapter=motion,
        scheduler=ddim,
    )
    tool.set_progress_bar_config(disable=True)
    return tool, {"num_frames": FRAMES, "height": SIZE, "width": SIZE}


def few_steps(sampler: type) -> Callable[[KosmosGPipeline], Any]:
    def tool(pipe: KosmosGPipeline) -> Any:
        other = sampler.from_config(pipe.scheduler.config)
        made = from_pipe(StableDiffusionPipeline, pipe, scheduler=other)
        return made, {"height": SIZE, "width": SIZE}

    return tool


TOOLS: dict[str, Callable[[KosmosGPipeline], Any]] = {
    "text2img": text2img,
    "img2img": img2img,
    "inpaint": inpaint,
    "inpaint, 9 channels": inpaint_with_9_channels,
    "ControlNet": control,
    "MultiControlNet": two_controls,
    "ControlNet and img2img": control_img2img,
    "ControlNet and inpaint": control_inpaint,
    "T2I-Adapter": t2i_adapter,
    "MultiAdapter": two_t2i_adapters,
    "IP-Adapter": ip_adapter,
    "AnimateDiff": animate_diff,
    "LCM": few_steps(LCMScheduler),
    "TCD": few_steps(TCDScheduler),
}
# What is given besides the prompt, and what would be drawn if it were another picture.
HINTS = {"image", "control_image", "ip_adapter_image_embeds"}


def draw(
    tool: Any,
    arguments: dict[str, Any],
    conditions: tuple[torch.Tensor, ...],
    output_type: str = "np",
) -> Any:
    """Return height x width x 3 in 0..1, of an animation frames x height x width x 3."""
    embeds, negative = conditions
    made = tool(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
        **arguments,
    )
    return made["frames" if "frames" in made else "images"][0]


@torch.no_grad()
def condition(pipe: KosmosGPipeline, seed: int) -> tuple[torch.Tensor, ...]:
    return pipe.encode_prompt(["a photo of", toy_picture(seed), "in snow"])


# diffusers' T2I-Adapter pipeline decodes by a method that diffusers itself calls old.
@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_of_diffusers_takes_what_encode_prompt_returns(name: str):
    pipe = toy_pipeline()
    tool, arguments = TOOLS[name](pipe)
    if name not in ("inpaint, 9 channels", "AnimateDiff"):
        assert tool.unet is pipe.unet
    assert tool.vae is pipe.vae
    one, again, other = (draw(tool, arguments, condition(pipe, seed)) for seed in (1, 1, 2))
    frames = (FRAMES,) if name == "AnimateDiff" else ()
    assert one.shape == (*frames, SIZE, SIZE, 3)
    assert np.isfinite(one).all()
    assert one.std() > 0.01
    assert np.array_equal(one, again)
    assert abs(one - other).max() > 1e-3, "another picture in the prompt changed nothing"
    hints = HINTS & set(arguments)
    for hint in hints:
        changed = draw(tool, arguments | {hint: another(arguments[hint])}, condition(pipe, 1))
        assert abs(one - changed).max() > 1e-3, f"another {hint} changed nothing"


def another(hint: Any) -> Any:
    match hint:
        case Image.Image():
            return picture(7)
        case [Image.Image(), *rest]:
            return [picture(7), *rest]
        case _:
            return [embeds.flip(-1) for embeds in hint]


@pytest.mark.parametrize("name", ["text2img", "LCM", "TCD"])
def test_text_to_image_is_our_own_pipeline_bit_for_bit(name: str):
    pipe = toy_pipeline()
    tool, arguments = TOOLS[name](pipe)
    theirs = draw(tool, arguments, condition(pipe, 1))
    pipe.scheduler = tool.scheduler
    ours = draw(pipe, {}, condition(pipe, 1))
    assert np.array_equal(theirs, ours)


def test_inpainting_keeps_what_is_black_in_the_mask():
    pipe = toy_pipeline()
    tool, arguments = inpaint(pipe)
    one, other = (
        draw(tool, arguments, condition(pipe, seed), output_type="latent") for seed in (1, 2)
    )
    kept, painted = (..., slice(None, SIZE // 4)), (..., slice(SIZE // 4, None))
    assert torch.equal(one[kept], other[kept])
    assert abs(one[painted] - other[painted]).max() > 1e-2


def test_embeds_of_another_width_are_refused_in_words_by_torch():
    """What a user sees who takes one model's embeds to another's U-Net without our pipeline."""
    tool, arguments = text2img(toy_pipeline())
    wide = (torch.zeros(1, 6, 768), torch.zeros(1, 6, 768))
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied"):
        draw(tool, arguments, wide)
