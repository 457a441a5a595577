"""The authors' names of weights and ours: one table, read both ways."""

import re

from kosmosg.errors import CheckpointError

_LAYER = (
    ("self_attn.q_proj", "self_attn.q_proj"),
    ("self_attn.k_proj", "self_attn.k_proj"),
    ("self_attn.v_proj", "self_attn.v_proj"),
    ("self_attn.out_proj", "self_attn.out_proj"),
    ("self_attn.inner_layer_norm", "self_attn.inner_attn_ln"),
    ("self_attn_layer_norm", "self_attn_layer_norm"),
    ("ffn.fc1", "ffn.fc1"),
    ("ffn.fc2", "ffn.fc2"),
    ("ffn.inner_layer_norm", "ffn.ffn_layernorm"),
    ("ffn_layer_norm", "final_layer_norm"),
)
_QUERY_LAYER = (
    *_LAYER,
    ("cross_attn.q_proj", "encoder_attn.q_proj"),
    ("cross_attn.k_proj", "encoder_attn.k_proj"),
    ("cross_attn.v_proj", "encoder_attn.v_proj"),
    ("cross_attn.out_proj", "encoder_attn.out_proj"),
    ("cross_attn_layer_norm", "encoder_attn_layer_norm"),
)
_VISION_LAYER = (
    ("self_attn.q_proj", "ts_attn.q_proj"),
    ("self_attn.k_proj", "ts_attn.k_proj"),
    ("self_attn.v_proj", "ts_attn.v_proj"),
    ("self_attn.out_proj", "ts_attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


def _stack(ours: str, theirs: str, rows: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(f"{ours}.#.{one}", f"{theirs}.#.{other}") for one, other in rows]


# Ours, theirs. "#" is a layer's number, a name without "." + suffix is a parameter, the rest are
# modules whose `.weight` and `.bias` keep their names. The parts stand in the order of the paper.
NAMES: tuple[tuple[str, str], ...] = (
    ("mllm.vision.clip.embeddings.class_embedding", "img_model.visual.class_embedding"),
    (
        "mllm.vision.clip.embeddings.position_embedding.weight",
        "img_model.visual.positional_embedding",
    ),
    ("mllm.vision.clip.embeddings.patch_embedding", "img_model.visual.conv1"),
    ("mllm.vision.clip.pre_layrnorm", "img_model.visual.ln_pre"),
    *_stack(
        "mllm.vision.clip.encoder.layers", "img_model.visual.transformer.resblocks", _VISION_LAYER
    ),
    ("mllm.vision.clip.post_layernorm", "img_model.visual.ln_post"),
    ("mllm.resampler.project", "img_connector.dense"),
    ("mllm.resampler.latents", "img_connector.latent_query"),
    ("mllm.resampler.attention.q_proj", "img_connector.x_attn.q_proj"),
    ("mllm.resampler.attention.k_proj", "img_connector.x_attn.k_proj"),
    ("mllm.resampler.attention.v_proj", "img_connector.x_attn.v_proj"),
    ("mllm.resampler.attention.out_proj", "img_connector.x_attn.out_proj"),
    ("mllm.embed_tokens", "gpt_model.decoder.embed_tokens"),
    *_stack("mllm.layers", "gpt_model.decoder.layers", _LAYER),
    ("mllm.layer_norm", "gpt_model.decoder.layer_norm"),
    ("aligner.encoder.project", "aligner.encoder_proj.embed_tokens"),
    ("aligner.encoder.positions", "aligner.encoder_proj.embed_positions"),
    *_stack("aligner.encoder.layers", "aligner.encoder_proj.layers", _LAYER),
    ("aligner.encoder.layer_norm", "aligner.encoder_proj.layer_norm"),
    ("aligner.encoder.queries", "aligner.encoder_query"),
    *_stack("aligner.encoder.query_layers", "aligner.encoder.layers", _QUERY_LAYER),
    ("aligner.encoder.query_layer_norm", "aligner.encoder.layer_norm"),
    ("aligner.decoder.queries", "aligner.decoder_query"),
    *_stack("aligner.decoder.query_layers", "aligner.decoder.layers", _QUERY_LAYER),
    ("aligner.decoder.query_layer_norm", "aligner.decoder.layer_norm"),
    ("aligner.decoder.positions", "aligner.decoder_proj.embed_positions"),
    *_stack("aligner.decoder.layers", "aligner.decoder_proj.layers", _LAYER),
    ("aligner.decoder.layer_norm", "aligner.decoder_proj.layer_norm"),
    ("aligner.decoder.project", "aligner.decoder_proj.output_projection"),
    ("text_encoder.*", "aligner.clip_encoder.text_model.*"),
    ("unet.*", "diffusion_unet.unet.*"),
    ("vae.*", "vae.vae.*"),
)


def their_name(ours: str) -> str:
    """Return the authors' name of one of our weights.

    Raises:
        CheckpointError: If the released model has no such weight.
    """
    return _translate(ours, NAMES)


def our_name(theirs: str) -> str:
    """Return our name of one of the authors' weights.

    Raises:
        CheckpointError: If our model has no such weight.
    """
    return _translate(theirs, tuple((other, one) for one, other in NAMES))


def _translate(name: str, rows: tuple[tuple[str, str], ...]) -> str:
    number = re.search(r"\.(\d+)\.", name)
    layer = number[1] if number else ""
    suffix = re.search(r"\.(weight|bias)$", name)
    for source, target in rows:
        if source.endswith("*"):
            if name.startswith(source[:-1]):
                return target[:-1] + name[len(source) - 1 :]
            continue
        if source.replace("#", layer) == name:
            return target.replace("#", layer)
        if suffix and source.replace("#", layer) + suffix[0] == name:
            return target.replace("#", layer) + suffix[0]
    raise CheckpointError(f"no weight named {name!r} in the table of names (convert/names.py)")
