"""Nano's AlignerNet, begun where a large one arrives in its first thousands of steps.

A language model's hidden states are far from round: in nano's, one direction has fifty thousand
times the variance of another, and the small ones tell words apart. Gradient descent on such inputs
crawls (docs/log.md), so M begins by evening them out, and with each query looking at the position
of its own word. What is learnt, and from which loss, stays the paper's.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kosmosg.data.compose import Composing
from kosmosg.model.alignernet import FIRST_ROW, AlignerEncoder, AlignerNet, LinearEncoder
from kosmosg.model.magneto import Attention
from kosmosg.model.mllm import MLLM
from kosmosg.sequence import collate, encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld.foundation import TEXT_LENGTH
from kosmosg.toyworld.streams import stage3_stream

NUM_PROMPTS = 192
SEED = 8


def new_aligner(
    mllm: MLLM,
    tokenizer: Tokenizer,
    *,
    embed_dim: int = 128,
    num_layers: int = 2,
    stacks: Literal["both", "queries", "none"] = "both",
    with_reconstruction: bool = True,
) -> AlignerNet:
    """Return nano's AlignerNet, M and N, for this language model's hidden states.

    Args:
        embed_dim: Of the U-Net's condition.
        num_layers: Of each stack.
        stacks: Less than both is an ablation.
        with_reconstruction: Whether there is an N.
    """
    aligner = AlignerNet(
        hidden_size=mllm.config["hidden_size"],
        embed_dim=embed_dim,
        intermediate_size=3 * embed_dim,
        num_heads=4,
        num_layers=num_layers,
        num_queries=TEXT_LENGTH,
        max_positions=512,
        with_reconstruction=with_reconstruction,
        stacks=stacks,
    )
    if isinstance(aligner.encoder, AlignerEncoder):
        look_straight_across(aligner.encoder)
    even_out(aligner.encoder, prompt_states(mllm, tokenizer))
    return aligner


@torch.no_grad()
def look_straight_across(encoder: AlignerEncoder) -> None:
    """Have query i look at position i, where the word stands that it has to speak of."""
    count = len(encoder.queries)
    encoder.queries.copy_(encoder.positions.weight[FIRST_ROW : FIRST_ROW + count])
    for layer in encoder.query_layers:
        attention = layer.get_submodule("cross_attn")
        assert isinstance(attention, Attention)
        attention.q_proj.weight.mul_(1.6)  # a first softmax that has made up its mind
        attention.q_proj.bias.zero_()
        attention.k_proj.load_state_dict(attention.q_proj.state_dict())


@torch.no_grad()
def even_out(
    encoder: AlignerEncoder | LinearEncoder, states: Float[Tensor, "positions hidden"]
) -> None:
    """Have M's first projection give states like these a mean of 0 and far more even variances."""
    variances, directions = torch.linalg.eigh(torch.cov(states.T))
    scales = (variances + 1e-3 * variances.mean()).rsqrt()
    round_ = directions * scales @ directions.T
    mixing = torch.randn_like(encoder.project.weight) / states.shape[1] ** 0.5
    encoder.project.weight.copy_(mixing @ round_)
    encoder.project.bias.copy_(-encoder.project.weight @ states.mean(0))


@torch.no_grad()
def prompt_states(mllm: MLLM, tokenizer: Tokenizer) -> Float[Tensor, "positions hidden"]:
    """Return the hidden states of prompts with pictures among their words, pads left out.

    The model is in evaluation mode afterwards, as stage 2 keeps it.
    """
    mllm.eval()
    sizes = {name: mllm.config[name] for name in ("num_latents", "image_size")}
    records = Composing(stage3_stream(SEED), seed=SEED).batch(0, NUM_PROMPTS)
    kept = []
    for start in range(0, NUM_PROMPTS, 64):
        prompts = [record.prompt for record in records[start : start + 64]]
        batch = collate(
            [encode(prompt, tokenizer, **sizes) for prompt in prompts], pad_id=tokenizer.pad_id
        ).to(mllm.device)
        hidden_states = mllm(
            batch.input_ids, batch.attention_mask, batch.image_mask, batch.pixel_values
        )
        kept.append(hidden_states[batch.attention_mask])
    return torch.cat(kept)
