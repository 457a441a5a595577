"""Textual inversion: a new word for one creature, learned from pictures of it.

The baseline of table 1. One vector is learned, the word's row among the text tower's embeddings;
tower and U-Net are frozen. The loss is the toy world's own.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel

from kosmosg.data.mixture import seed_of
from kosmosg.evaluate.metrics import Score, bootstrap
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import PLACE_PHRASES
from kosmosg.toyworld.claims import questions, scoring
from kosmosg.toyworld.claims.drawing import drawn, strip, wanted
from kosmosg.toyworld.claims.experiment import DRAWING, Budget, Experiment, Measured, Setting
from kosmosg.toyworld.claims.questions import Question
from kosmosg.toyworld.claims.rows import Values, score_of
from kosmosg.toyworld.foundation import pictures, text_ids
from kosmosg.toyworld.losses import MIN_SNR_GAMMA
from kosmosg.toyworld.scenes import Scene
from kosmosg.toyworld.subject import NUM_PICTURES, held_out, photos, prompts_of

WORD, LIKE = "thing", "creature"  # the word that is learned anew, and what it begins as
STEPS, BATCH, LR = 400, 10, 2e-2
SECONDS_A_STEP = 0.2


def learned(setting: Setting, shown: Sequence[Scene], seed: int) -> Float[Tensor, " width"]:
    """Return the word's embedding after `STEPS` steps on these pictures and their places."""
    world = setting.world
    assert world.text_encoder is not None  # every experiment's world has it
    tokenizer, text = world.pipe.tokenizer, world.text_encoder
    decoder = ImageDecoder(world.pipe.vae, world.pipe.unet).to(world.pipe.device)
    device = world.pipe.device
    mean, std = decoder.posterior(pictures(shown, setting.size).to(device))
    ids = text_ids([f"a {WORD} {PLACE_PHRASES[one.place][0]}" for one in shown], tokenizer).to(
        device
    )
    (like,) = tokenizer.encode(LIKE)
    table = text.get_input_embeddings().get_parameter("weight")
    vector = table[like].detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([vector], lr=LR, weight_decay=0.0)
    steps = setting.budget.steps(STEPS)
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed_of(seed, "inversion", step))
        chosen = torch.randint(len(shown), (BATCH,), generator=generator)
        # Spread over the schedule, so that no step sees the easy end alone.
        spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        timesteps = (spread * len(decoder.alphas_cumprod)).long().to(device)
        noises = torch.randn((BATCH, *mean.shape[1:]), generator=generator).to(device)
        latents = decoder.sample_latents(mean[chosen], std[chosen], [generator] * BATCH)
        half = setting.budget.precision == "bfloat16"
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=half),
            meaning(text, vector, tokenizer),
        ):
            states = text(input_ids=ids[chosen]).last_hidden_state
            noisy = decoder.add_noise(latents, noises, timesteps)
            error = decoder.noise_pred(noisy, timesteps, states).float() - noises
        kept = decoder.alphas_cumprod[timesteps]
        weight = (MIN_SNR_GAMMA * (1 - kept) / kept).clamp(max=1)
        (weight * error.square().flatten(1).mean(1)).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return vector.detach()


@contextmanager
def meaning(text: CLIPTextModel, vector: Tensor, tokenizer: Tokenizer) -> Iterator[None]:
    """Let the word mean this vector, and nothing else change."""
    (number,) = tokenizer.encode(WORD)

    def hook(_module: object, given: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return torch.where((given[0] == number)[..., None], vector.to(rows.dtype), rows)

    handle = text.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def measure(setting: Setting) -> Measured:
    """Tune to each creature, then ask for it in every place; vectors are kept as they are made."""
    budget, world = setting.budget, setting.world
    assert world.text_encoder is not None  # every experiment's world has it
    per_subject = max(1, budget.prompts // budget.subjects)
    asked: list[Question] = []
    images, seconds = [], []
    for number, creature in enumerate(held_out(budget.subjects, seed=budget.seed)):
        rng = np.random.default_rng([budget.seed, 5, number])
        shown = photos(creature, NUM_PICTURES, rng)
        path = setting.work_dir / f"{number}.pt"
        if not path.exists():
            start = time.monotonic()
            vector = learned(setting, shown, budget.seed + number)
            kept = {"vector": vector.cpu(), "seconds": torch.tensor(time.monotonic() - start)}
            torch.save(kept, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        kept = torch.load(path, weights_only=True)
        seconds.append(float(kept["seconds"]))
        own = questions.of_cases(prompts_of(creature, shown, per_subject, rng), setting.shown_size)
        told = [
            Question(
                index=one.index,
                prompt=[f"a {WORD} {PLACE_PHRASES[one.target.place][0]}"],
                target=one.target,
            )
            for one in own
        ]
        with meaning(
            world.text_encoder, kept["vector"].to(world.pipe.device), world.pipe.tokenizer
        ):
            images.append(drawn(setting, told, "text_encoder"))
        asked += own
    made = torch.cat(images)
    judge = world.judge
    values, truth = (
        scoring.answered(judge, one, asked) | scoring.likeness(judge, one, asked)
        for one in (made, wanted(asked, setting.size))
    )
    return Measured(
        scores={
            **{name: over_subjects(each, per_subject) for name, each in values.items()},
            "seconds_a_subject": score_of(np.array(seconds)),
        },
        judge=scoring.means(truth),
        n=len(asked),
        picture=strip(asked[::per_subject], made[::per_subject]),
        config={"steps": budget.steps(STEPS), "batch": BATCH, "lr": LR, "pictures": NUM_PICTURES},
    )


def over_subjects(values: Values, per_subject: int) -> Score:
    """Return a mean whose interval is over creatures: pictures of one share what was learned."""
    groups = values.astype(float).reshape(-1, per_subject)
    return bootstrap({str(number): list(group) for number, group in enumerate(groups)})


def _seconds(budget: Budget) -> int | float:
    return budget.subjects * budget.steps(STEPS) * SECONDS_A_STEP


EXPERIMENTS = (
    Experiment(
        name="zero-shot-inversion",
        claim="zero-shot",
        says=f"textual inversion: a word learned from {NUM_PICTURES} pictures of each creature",
        measure=measure,
        pictures=lambda budget: budget.prompts,
        seconds=_seconds,
        budget=("prompts", "subjects", "scale", *DRAWING),
    ),
)
