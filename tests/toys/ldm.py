"""A toy Stable Diffusion in the layout of its original code: the names of every weight."""

import re
from collections.abc import Mapping

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def ldm(unet: UNet2DConditionModel, vae: AutoencoderKL) -> dict[str, Tensor]:
    """The weights of both under the original names; the VAE's attention as 1 x 1 convolutions."""
    layers = unet.config["layers_per_block"]
    attends = ["CrossAttn" in kind for kind in unet.config["up_block_types"]]
    found = {
        f"model.diffusion_model.{_unet_name(name, layers, attends)}": value
        for name, value in unet.state_dict().items()
    }
    num_blocks = len(vae.config["block_out_channels"])
    for name, value in vae.state_dict().items():
        is_linear = "attentions" in name and value.ndim == 2
        found[f"first_stage_model.{_vae_name(name, num_blocks)}"] = (
            value[:, :, None, None] if is_linear else value
        )
    return found


def _unet_name(name: str, layers: int, attends: list[bool]) -> str:
    at = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if at:
        side, kind, rest = at[1], at[3], at[5]
        block, layer = int(at[2]), int(at[4])
        first = block * (layers + 1) + (1 if side == "down" else 0)
        place = f"{'input' if side == 'down' else 'output'}_blocks"
        match kind:
            case "resnets":
                return f"{place}.{first + layer}.0.{_swap(rest, _RESNET)}"
            case "attentions":
                return f"{place}.{first + layer}.1.{rest}"
            case "downsamplers":
                return f"{place}.{first + layers}.0.{rest.replace('conv', 'op')}"
        return f"{place}.{first + layers}.{2 if attends[block] else 1}.{rest}"
    at = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    if at and at[1] == "resnets":
        return f"middle_block.{2 * int(at[2])}.{_swap(at[3], _RESNET)}"
    return f"middle_block.1.{at[3]}" if at else _swap(name, _OUTER)


def _vae_name(name: str, num_blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    at = re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if at:
        block = int(at[3]) if at[2] == "down" else num_blocks - 1 - int(at[3])
        kind = f"block.{at[5]}" if at[4] == "resnets" else f"{at[2]}sample"
        return f"{at[1]}.{at[2]}.{block}.{kind}.{at[6]}"
    at = re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    if not at:
        return name
    if at[2] == "resnets":
        return f"{at[1]}.mid.block_{int(at[3]) + 1}.{at[4]}"
    return f"{at[1]}.mid.attn_1.{_swap(at[4], _ATTENTION)}"


def _swap(name: str, names: Mapping[str, str]) -> str:
    for one, other in names.items():
        if name.startswith(f"{one}."):
            return other + name.removeprefix(one)
    return name
