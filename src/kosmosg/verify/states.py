"""What the model says inside and out: each layer's output, logits, conditions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kosmosg.model.alignernet import AlignerEncoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.verify.compare import TAP, Case, Value
from kosmosg.verify.golden import Golden


def forward(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield every number of one forward pass: pictures, each layer, logits, condition.

    Source:
        NUMERICS sections 3.2 to 5.
    """
    mask = case["in.src_tokens"] != golden.config["pad"]
    with taps(golden.model) as seen, torch.no_grad():
        hidden_states = read(golden, case)
        logits = golden.model.mllm.logits(hidden_states)
        condition = golden.model.aligner(hidden_states, mask)
    for name, value in seen.items():
        yield Value(key=f"{TAP}{name}", ours=value)
    yield Value(key="out.final_hidden", ours=hidden_states)
    yield Value(key="out.logits", ours=logits)
    yield Value(key="out.condition", ours=condition)


def conditions(golden: Golden, case: Case) -> Iterator[Value]:
    """Yield what the released inference hands to the U-Net: null half first, then the prompts.

    Source:
        NUMERICS section 7. The release keeps the pictures of a prompt apart (a b a b); that order
        lives here only. Ours are together, as in diffusers.
    """
    model, config = golden.model, golden.config
    negative = case["in.negative_tokens"]
    has_negative = negative.shape[1] > 1  # else the null prompt, `<s>`, as released
    null_ids = negative if has_negative else torch.tensor([[config["bos"]]])
    num_images = int(case["in.num_images_per_prompt"])
    with torch.no_grad():
        mask = case["in.src_tokens"] != config["pad"]
        prompt_embeds = model.aligner(read(golden, case), mask)
        real = torch.ones_like(null_ids, dtype=torch.bool)
        null_embeds = model.aligner(model.mllm(null_ids, real), real)
        _, null = golden.pipeline.encode_prompt(prompt_embeds=prompt_embeds)
    yield Value(key="out.condition", ours=_released(null_embeds, prompt_embeds, num_images))
    if not has_negative:
        assert null is not None  # guidance is on unless one says otherwise
        ours = _released(null[:1], prompt_embeds, num_images)
        yield Value(key="out.condition", ours=ours, how="the pipeline's null prompt")


def _released(
    null_embeds: Float[Tensor, "1 queries embed"],
    prompt_embeds: Float[Tensor, "batch queries embed"],
    num_images: int,
) -> Float[Tensor, "rows queries embed"]:
    count = len(prompt_embeds) * num_images
    return torch.cat([null_embeds.expand(count, -1, -1), prompt_embeds.repeat(num_images, 1, 1)])


def read(golden: Golden, case: Case) -> Float[Tensor, "batch seq hidden"]:
    """Return the hidden states of the case's sequences."""
    ids = case["in.src_tokens"]
    slots = case["in.img_gpt_input_mask"].bool()
    return golden.model.mllm(ids, ids != golden.config["pad"], slots, case.get("in.images"))


@contextmanager
def taps(model: KosmosG) -> Iterator[dict[str, Tensor]]:
    """Within, keep the outputs of the model's parts, under the golden data's names of them."""
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(module: nn.Module, name: str) -> None:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            output = output[0] if isinstance(output, tuple) else output
            assert isinstance(output, Tensor)
            # The release flattens the pictures' latents into one row.
            seen[name] = output.flatten(0, 1) if name == "connector" else output

        handles.append(module.register_forward_hook(keep))

    mllm, encoder, decoder = model.mllm, model.aligner.encoder, model.aligner.decoder
    assert isinstance(encoder, AlignerEncoder)  # the released one
    watch(mllm.embed_dropout, "mllm.embed")
    watch(mllm.layer_norm, "mllm.final_hidden")
    watch(mllm.resampler, "connector")
    watch(mllm.vision.clip.post_layernorm, "vit.ln_post")
    watch(mllm.vision, "vit.normalized")
    watch(encoder, "aligner.M")
    watch(encoder.layer_norm, "aligner.encoder_proj.out")
    if decoder is not None:
        watch(decoder.query_layer_norm, "aligner.decoder.out")
        watch(decoder.layer_norm, "aligner.decoder_proj.ln")
    stacks = {
        "mllm.layer": mllm.layers,
        "vit.block": mllm.vision.clip.encoder.layers,
        "aligner.encoder_proj.layer": encoder.layers,
        "aligner.encoder.layer": encoder.query_layers,
    }
    for name, stack in stacks.items():
        for index, layer in enumerate(stack):
            watch(layer, f"{name}{index}")
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
