"""The judge's table: how much of a creature that no stage has seen reaches the picture.

Each row asks for the same targets in another way; every picture starts from noise that depends on
the seed and the number of its prompt alone, so rows differ by nothing but the condition.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from kosmosg.data.mixture import seed_of
from kosmosg.encoding import PromptEncoder
from kosmosg.errors import ConfigError
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.toyworld.cases import Case, cases, draw
from kosmosg.toyworld.foundation import pictures, text_ids
from kosmosg.toyworld.judge import Judge, read, truth
from kosmosg.toyworld.losses import gap_closed, language_figures, paired_loss
from kosmosg.toyworld.scores import SCORED, Row, Verdict, pair_rates, rates
from kosmosg.toyworld.version import VERSION
from kosmosg.toyworld.world import Source, World

Precision = Literal["float32", "bfloat16"]
BATCH = 32
PAIRED_DRAWS = 3
Pictures = Float[Tensor, "cases 3 height width"]
Conditions = tuple[Float[Tensor, "cases queries embed"], Float[Tensor, "1 queries embed"]]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A way to get pictures of the targets: from where, and asked for how."""

    source: Source
    prompt: Literal["caption", "without_pictures", "pictures"] = "caption"
    num_subjects: int = 1


ROWS: Mapping[str, Ask] = {
    "judge": Ask(source="render"),
    "vae": Ask(source="vae"),
    "oracle": Ask(source="text_encoder"),
    "words_only": Ask(source="stage3", prompt="without_pictures"),
    "stage2": Ask(source="stage2", prompt="pictures"),
    "stage3": Ask(source="stage3", prompt="pictures"),
    "stage2_text": Ask(source="stage2"),
    "stage3_text": Ask(source="stage3"),
    "two_subjects_judge": Ask(source="render", num_subjects=2),
    "two_subjects_oracle": Ask(source="text_encoder", num_subjects=2),
    "two_subjects": Ask(source="stage3", prompt="pictures", num_subjects=2),
}
FIGURES = ("stage1", "paired_loss")
ROW_NAMES = (*ROWS, *FIGURES)
# The paired loss compares the conditions of these.
_PAIRED = ("oracle", "words_only", "stage2", "stage3", "stage2_text", "stage3_text")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The rows by name, and each row's first pictures in [-1, 1] for looking at."""

    rows: dict[str, Row]
    shown: dict[str, Pictures]


def check_rows(names: Collection[str]) -> None:
    """Pass names of rows that exist.

    Raises:
        ConfigError: If there is none, or naming the wrong one and those that look like it.
    """
    if not names:
        raise ConfigError(f"no row to measure; name some of {', '.join(ROW_NAMES)}")
    for name in names:
        if name not in ROW_NAMES:
            near = get_close_matches(name, ROW_NAMES, n=2) or ROW_NAMES
            raise ConfigError(f"there is no row {name!r}; did you mean {', '.join(near)}?")


def needs(names: Collection[str]) -> set[Source]:
    """Return the parts of a model that these rows draw with."""
    needed: set[Source] = {ROWS[name].source for name in names if name in ROWS}
    if "stage1" in names:
        needed.add("stage2")  # which left stage 1's language model as it was
    if "paired_loss" in names:
        needed |= {ROWS[name].source for name in _PAIRED}
    return needed


def evaluate(
    world: World,
    *,
    rows: Sequence[str],
    limit: int,
    seed: int,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    precision: Precision = "float32",
    num_shown: int = 0,
) -> Report:
    """Return the rows over `limit` held-out cases, with a progress bar on stderr.

    Args:
        precision: Of the U-Net's work; bfloat16 is faster where the processor has it.
        num_inference_steps: None is the model's own default, as in `guidance_scale`.
        num_shown: How many pictures of each row to keep.

    Raises:
        ConfigError: If a row does not exist or `limit` is below 1.
    """
    check_rows(rows)
    if limit < 1:
        raise ConfigError(f"limit is {limit}; ask for at least 1 prompt")
    asked = {number: cases(limit, seed=seed, num_subjects=number) for number in (1, 2)}
    figured: dict[str, Row] = {}
    shown: dict[str, Pictures] = {}
    work = limit * sum((1, PAIRED_DRAWS * len(_PAIRED))[name == "paired_loss"] for name in rows)
    with tqdm(total=work, unit="picture", mininterval=1.0, dynamic_ncols=True) as bar:
        for name in rows:
            bar.set_description(name)
            if name == "stage1":
                mllm, tokenizer = world.readers["stage2"].mllm, world.pipe.tokenizer
                figured[name] = language_figures(
                    mllm, tokenizer, asked[1], seed=seed, advance=bar.update
                )
            elif name == "paired_loss":
                figured[name] = _paired(world, asked[1], seed=seed, advance=bar.update)
            else:
                images = images_of(
                    world,
                    ROWS[name],
                    asked[ROWS[name].num_subjects],
                    seed=seed,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    precision=precision,
                    advance=bar.update,
                )
                figured[name] = score(world.judge, images, asked[ROWS[name].num_subjects])
                shown[name] = images[:num_shown].cpu()
    defaults = world.pipe.generation_config
    figured["settings"] = {
        "limit": limit,
        "seed": seed,
        "num_inference_steps": num_inference_steps or defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale if guidance_scale is None else guidance_scale,
        "precision": precision,
        "toyworld": VERSION,
    }
    return Report(rows=figured, shown=shown)


def score(judge: Judge, images: Pictures, asked: Sequence[Case]) -> Row:
    """Return the judge's rates for pictures that should show the cases' targets."""
    if len(asked[0].target.subjects) == 1:
        return rates(verdict(judge, images, asked, 0, None))
    return pair_rates(
        verdict(judge, images, asked, 0, "left"), verdict(judge, images, asked, 1, "right")
    )


def verdict(
    judge: Judge, images: Pictures, asked: Sequence[Case], slot: int, side: str | None
) -> Verdict:
    """Return which of the questions about one creature the pictures answer rightly."""
    answers = [read(judge, part, side) for part in images.split(4 * BATCH)]
    right = truth([case.target for case in asked], slot)
    return {
        question: torch.cat([part[question].cpu() for part in answers]) == right[question]
        for question in SCORED
    }


def conditions(world: World, ask: Ask, asked: Sequence[Case]) -> Conditions:
    """Return the prompt embeds of each case as `ask` puts it, and the null prompt's row."""
    device = world.pipe.device
    if ask.source == "text_encoder":
        assert world.text_encoder is not None  # load() was told of the row
        captions = [case.caption for case in asked]
        ids = text_ids([*captions, ""], world.pipe.tokenizer).to(device)
        with torch.no_grad():
            states = world.text_encoder(input_ids=ids).last_hidden_state
        return states[:-1], states[-1:]
    match ask.prompt:
        case "caption":
            prompts = [[case.caption] for case in asked]
        case "without_pictures":
            prompts = [[case.without_pictures] for case in asked]
        case "pictures":
            prompts = _shown_prompts(asked, _image_size(world))
    encoder, tokenizer = PromptEncoder(), world.pipe.tokenizer
    model = world.readers[ask.source]
    with torch.no_grad():
        embeds = encoder.encode(prompts, model, tokenizer, device)
        return embeds, encoder.null(model, tokenizer, device)


def _image_size(world: World) -> int:
    return next(iter(world.readers.values())).mllm.config["image_size"]


def _shown_prompts(asked: Sequence[Case], size: int) -> list[Sequence]:
    drawn = iter(draw([scene for case in asked for scene in case.references], size))
    return [case.prompt([next(drawn) for _ in case.references]) for case in asked]


def images_of(
    world: World,
    ask: Ask,
    asked: Sequence[Case],
    *,
    seed: int,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    precision: Precision,
    advance: Callable[[int], object],
) -> Pictures:
    """Return a picture in [-1, 1] of each case, on the pipeline's device; noise is the case's."""
    pipe, made = world.pipe, []
    for start in range(0, len(asked), BATCH):
        chosen = asked[start : start + BATCH]
        if ask.source in ("render", "vae"):
            size = pipe.generation_config.height
            images = pictures([case.target for case in chosen], size).to(pipe.device)
            if ask.source == "vae":
                with torch.no_grad():
                    latents = pipe.vae.encode(images, return_dict=False)[0].mode()
                    images = pipe.vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        else:
            embeds, null = conditions(world, ask, chosen)
            with torch.autocast(pipe.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                images = pipe(
                    prompt_embeds=embeds,
                    negative_prompt_embeds=null.expand_as(embeds),
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    generator=_noise(seed, chosen),
                    output_type="pt",
                ).images
            images = torch.as_tensor(images).float() * 2 - 1
        made.append(images.clamp(-1, 1))
        advance(len(chosen))
    return torch.cat(made)


def _noise(seed: int, asked: Sequence[Case]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed_of(seed, "noise", case.index)) for case in asked]


def _paired(
    world: World, asked: Sequence[Case], *, seed: int, advance: Callable[[int], object]
) -> Row:
    """Return the gap closed by each way to ask, and the losses it comes from."""
    embeds = {
        name: torch.cat(
            [
                conditions(world, ROWS[name], asked[start : start + BATCH])[0]
                for start in range(0, len(asked), BATCH)
            ]
        )
        for name in _PAIRED
    }
    decoder = ImageDecoder(world.pipe.vae, world.pipe.unet).to(world.pipe.device)
    losses = paired_loss(
        decoder,
        asked,
        embeds,
        num_draws=PAIRED_DRAWS,
        seed=seed,
        advance=advance,
    )
    return gap_closed(losses, floor="words_only", oracle="oracle") | {
        "n": len(asked),
        "losses": losses,
    }
