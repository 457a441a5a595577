"""Pictures to look at while a part of nano trains: the same held-out creatures at every step.

Each function takes what the part is made of and returns what `fit` calls to draw a sheet.
"""

from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from kosmosg.images import to_pil
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.sequence import collate, encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.cases import Case, cases, draw
from kosmosg.toyworld.foundation import pictures, text_ids
from kosmosg.train.loop import Samples
from kosmosg.train.samples import sheet

SEED = 17  # its creatures are not those of the evaluation


def asked() -> list[Case]:
    """Return the cases of every sheet: six with one creature, two with two."""
    return cases(6, seed=SEED) + cases(2, seed=SEED, num_subjects=2)


def restored(vae: AutoencoderKL) -> Samples:
    """Return what shows pictures before and after the autoencoder."""

    def draw_sheet(_model: nn.Module, _step: int) -> Image.Image:
        images = pictures([case.target for case in asked()], vae.config["sample_size"])
        latents = vae.encode(images.to(vae.device), return_dict=False)[0].mode()
        back = vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return _sheet("restored", list(back))

    return draw_sheet


def in_own_words(
    pipe: KosmosGPipeline, text_encoder: CLIPTextModel, tokenizer: Tokenizer
) -> Samples:
    """Return what shows pictures that the U-Net draws from its own text tower's states."""

    def draw_sheet(model: nn.Module, _step: int) -> Image.Image:
        captions = [case.caption for case in asked()]
        ids = text_ids([*captions, ""], tokenizer).to(text_encoder.device)
        states = text_encoder(input_ids=ids).last_hidden_state
        null = states[-1:].expand(len(captions), -1, -1)
        return _sheet(
            "drawn", _draw(pipe, model, prompt_embeds=states[:-1], negative_prompt_embeds=null)
        )

    return draw_sheet


def in_words(pipe: KosmosGPipeline) -> Samples:
    """Return what shows pictures that the whole model draws from captions."""

    def draw_sheet(model: nn.Module, _step: int) -> Image.Image:
        return _sheet("drawn", _draw(pipe, model, prompt=[[case.caption] for case in asked()]))

    return draw_sheet


def in_context(pipe: KosmosGPipeline) -> Samples:
    """Return what shows pictures that the whole model draws of creatures it is shown."""

    def draw_sheet(model: nn.Module, _step: int) -> Image.Image:
        assert pipe.mllm is not None
        size = pipe.mllm.config["image_size"]
        shown = [case.prompt(draw(case.references, size)) for case in asked()]
        return _sheet("drawn", _draw(pipe, model, prompt=shown), with_shown=True)

    return draw_sheet


def described(mllm: MLLM, tokenizer: Tokenizer) -> Samples:
    """Return what shows pictures under the words that the language model has for them."""

    def draw_sheet(_model: nn.Module, _step: int) -> Image.Image:
        sizes = {name: mllm.config[name] for name in ("num_latents", "image_size")}
        targets = draw([case.target for case in asked()], sizes["image_size"])
        encoded = [encode([picture], tokenizer, **sizes) for picture in targets]
        batch = collate(encoded, pad_id=tokenizer.pad_id).to(mllm.device)
        ids = mllm.generate(batch, max_new_tokens=40, eos_id=tokenizer.eos_id)
        said = [tokenizer.decode(row.tolist()) for row in ids]
        return sheet(["described"], list(zip(said, [[p] for p in targets], strict=True)))

    return draw_sheet


def _draw(
    pipe: KosmosGPipeline, model: nn.Module, **prompt: object
) -> Sequence[Float[Tensor, "3 height width"]]:
    pipe.to(next(model.parameters()).device)  # parts that do not learn may have stayed behind
    noise = [torch.Generator().manual_seed(SEED + index) for index in range(len(asked()))]
    # Half the precision is several times faster on a CPU, and these are to look at.
    with torch.autocast(pipe.device.type, torch.bfloat16):
        images = pipe(**prompt, generator=noise, output_type="pt").images  # pyright: ignore[reportArgumentType]
    return [image.float() * 2 - 1 for image in torch.as_tensor(images)]


def _sheet(
    head: str, images: Sequence[Float[Tensor, "3 height width"]], *, with_shown: bool = False
) -> Image.Image:
    """Return each case's caption over what was wanted, what came, and what the prompt showed."""
    rows = []
    for case, image in zip(asked(), images, strict=True):
        wanted, *shown = draw([case.target, *case.references], image.shape[-1])
        rows.append((case.caption, [wanted, to_pil(image), *(shown if with_shown else [])]))
    return sheet(["wanted", head, *(["shown", "shown"] if with_shown else [])], rows)
