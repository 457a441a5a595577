"""Figures without pictures being drawn: far less noisy than the judge's, and cheap.

They tune a training; the judge's table is what is reported.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.mllm import MLLM
from kosmosg.sequence import IGNORED, collate, encode_document
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.captions import FULL, describe
from kosmosg.toyworld.cases import Case, draw
from kosmosg.toyworld.foundation import pictures
from kosmosg.toyworld.scores import Row, wilson

Conditions = Mapping[str, Float[Tensor, "_cases _queries _embed"]]
BATCH = 64
MIN_SNR_GAMMA = 5.0
WORDS = ("shape", "colour", "pattern")


def _nothing(_count: int) -> None: ...


@torch.no_grad()
def paired_loss(
    decoder: ImageDecoder,
    asked: Sequence[Case],
    conditions: Conditions,
    *,
    num_draws: int,
    seed: int,
    advance: Callable[[int], object] = _nothing,
) -> dict[str, float]:
    """Return the diffusion loss of the targets under each condition, at the same times and noise.

    Args:
        conditions: For each name, the prompt embeds of every case, or one row for all.
        num_draws: Times and noises for each case.
        advance: Told of every pair of case and draw that is done.

    Source:
        NANO section 3. Weighted by min-SNR 5, as the toy world's decoder was trained.
    """
    device = decoder.alphas_cumprod.device
    size = decoder.unet.config["sample_size"] * 2 ** (
        len(decoder.vae.config["block_out_channels"]) - 1
    )
    count = len(asked) * num_draws
    # Evenly spread, so that no condition is judged on lucky times; shuffled over the cases.
    spread = (np.arange(count) + 0.5) * len(decoder.alphas_cumprod) / count
    times = np.random.default_rng([seed, 0]).permutation(spread.astype(np.int64))
    sums = dict.fromkeys(conditions, 0.0)
    for start in range(0, len(asked), BATCH):
        chosen = asked[start : start + BATCH]
        latents = decoder.encode_images(
            pictures([case.target for case in chosen], size).to(device),
            torch.Generator().manual_seed(seed),
        )
        for number in range(num_draws):
            first = number * len(asked) + start
            timesteps = torch.from_numpy(times[first : first + len(chosen)]).to(device)
            noise = _noise([(seed, case.index, number) for case in chosen], latents)
            noisy_latents = decoder.add_noise(latents, noise, timesteps)
            kept = decoder.alphas_cumprod[timesteps].float()
            weight = (MIN_SNR_GAMMA * (1 - kept) / kept).clamp(max=1)
            for name, embeds in conditions.items():
                rows = embeds[start : start + len(chosen)] if len(embeds) > 1 else embeds
                noise_pred = decoder.noise_pred(
                    noisy_latents, timesteps, rows.to(device).expand(len(chosen), -1, -1)
                )
                errors = (noise_pred - noise).square().flatten(1).mean(1)
                sums[name] += float((errors * weight).sum())
                advance(len(chosen))
    return {name: total / count for name, total in sums.items()}


def gap_closed(losses: Mapping[str, float], *, floor: str, oracle: str) -> dict[str, float]:
    """Return how far each loss is from the floor (0) to the oracle (1).

    Source:
        NANO section 3: (L_floor - L) / (L_floor - L_oracle).
    """
    gap = losses[floor] - losses[oracle]
    return {name: (losses[floor] - loss) / gap for name, loss in losses.items()}


def _noise(keys: Sequence[tuple[int, int, int]], like: Tensor) -> Tensor:
    drawn = [
        np.random.default_rng(key).standard_normal(like.shape[1:], dtype=np.float32) for key in keys
    ]
    return torch.from_numpy(np.stack(drawn)).to(like.device)


@torch.no_grad()
def language_figures(
    mllm: MLLM,
    tokenizer: Tokenizer,
    asked: Sequence[Case],
    *,
    seed: int,
    advance: Callable[[int], object] = _nothing,
) -> Row:
    """Return how well stage 1 reads held-out creatures: given the picture, the caption's words.

    `shape_word`, `colour_word`, `pattern_word`: how often the likeliest next token is the right one
    where the caption has that word; `perplexity`: of all its tokens and `</s>`. The captions vary
    at random in wording and in what they leave out, which no reader can guess.
    """
    sizes = {"num_latents": mllm.config["num_latents"], "image_size": mllm.config["image_size"]}
    right = {word: [0, 0] for word in WORDS}
    total, tokens = 0.0, 0
    for start in range(0, len(asked), BATCH):
        chosen = asked[start : start + BATCH]
        shown = draw([case.target for case in chosen], sizes["image_size"])
        captions = [
            describe(case.target, np.random.default_rng([seed, case.index]), FULL)
            for case in chosen
        ]
        documents = [
            encode_document([picture, caption], tokenizer, **sizes)
            for picture, caption in zip(shown, captions, strict=True)
        ]
        batch = collate(documents, pad_id=tokenizer.pad_id).to(mllm.device, mllm.dtype)
        assert batch.labels is not None  # encode_document made them
        hidden_states = mllm(
            batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values
        )
        logits = mllm.logits(hidden_states).float()
        total += float(
            F.cross_entropy(
                logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        )
        tokens += int((batch.labels != IGNORED).sum())
        guessed = logits.argmax(-1)
        for number, case in enumerate(chosen):
            for word in WORDS:
                index = tokenizer.encode(getattr(case.target.subjects[0], word))[0]
                at = (batch.labels[number] == index).nonzero()
                if len(at):
                    right[word][0] += int(guessed[number, at[0]] == index)
                    right[word][1] += 1
        advance(len(chosen))
    said = {f"{word}_word": (hits, n) for word, (hits, n) in right.items() if n}
    row: Row = {word: hits / n for word, (hits, n) in said.items()}
    row |= {"perplexity": float(np.exp(total / tokens)), "n": len(asked)}
    row["intervals"] = {word: wilson(*pair) for word, pair in said.items()}
    return row
