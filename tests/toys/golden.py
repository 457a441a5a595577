"""A folder laid out like the golden data, of sizes of its own, filled by running our own model.

It proves that sizes and files are read from the folder. It proves no number.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kosmosg.convert import their_name
from kosmosg.convert.reading import DEAD_SCALE, DUMMY, EMBEDDING, TIED
from kosmosg.images import clip_view, decoder_view
from kosmosg.sequence import encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.verify.alignment import alignment
from kosmosg.verify.compare import Case
from kosmosg.verify.decoder import diffusion_loss, sampling, vae_scale
from kosmosg.verify.folder import Kind
from kosmosg.verify.golden import Golden
from kosmosg.verify.states import conditions, forward
from toys.model import toy_picture

BLOCKS = {
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "act_fn": "silu",
}
CONFIG = {
    "decoder_layers": 2,
    "decoder_embed_dim": 48,
    "decoder_attention_heads": 6,
    "decoder_ffn_embed_dim": 40,
    "vision": {"image_size": 24, "layers": 1, "width": 20, "patch_size": 8, "head_width": 10},
    "latent_query_num": 3,
    "aligner": {"dim": 24, "n_query": 5, "n_pos": 50, "layers": 1, "heads": 2, "ffn": 20},
    "vocab_size": 40,
    "bos": 0,
    "pad": 1,
    "eos": 2,
    "fill_seed": 5,
    "fill_rule": "FILL RULE (v1)",
    "vae_scaling_factor": 0.18215,
    "unet_full": BLOCKS
    | {
        "sample_size": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae_full": BLOCKS
    | {
        "sample_size": 32,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    },
    "text_full": {
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "max_position_embeddings": 5,
        "hidden_act": "quick_gelu",
    },
}


def write_golden(directory: Path) -> None:
    """Write config.json, a case of each kind, ids, views and a tokenizer."""
    (directory / "cases").mkdir(parents=True)
    (directory / "images").mkdir()
    _write(directory / "config.json", CONFIG)
    golden, random = Golden(directory), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    ids = torch.tensor([[0, 7, 30, 30, 30, 30, 31, 9], [0, 8, 9, 1, 1, 1, 1, 1]])
    words = {"in.src_tokens": ids, "in.img_gpt_input_mask": torch.zeros(2, 8, dtype=torch.uint8)}
    words["in.img_gpt_input_mask"][0, 3:6] = 1
    words["in.images"] = normal(1, 3, 24, 24)
    negative = {"in.negative_tokens": ids[:1, :3], "in.num_images_per_prompt": torch.tensor([2])}
    run = {
        "in.init_latents": normal(2, 4, 8, 8),
        "in.condition": normal(4, 5, 24),
        "in.guidance": torch.tensor([3.0]),
        "out.latents": torch.ones(2, 4, 8, 8),  # until it is computed
    }
    noise = {
        "in.random_p": torch.tensor([0.05, 0.5]),
        "in.noise": normal(2, 4, 8, 8),
        "in.latents": normal(2, 4, 8, 8),
        "in.timesteps": torch.tensor([3, 900]),
        "in.null": normal(1, 5, 24),
        "in.condition": normal(2, 5, 24),
    }
    kinds: dict[str, tuple[Kind, Mapping[str, Tensor]]] = {
        "one_of_two": (forward, words),
        "encode_condition.neg": (conditions, words | negative),
        "align.fixed": (alignment, words | {"in.clip_target": normal(2, 5, 24)}),
        "align.cliptext": (alignment, words | {"in.clip_tokens": ids[:, :5]}),
        "diff_loss": (diffusion_loss, noise),
        "vae": (vae_scale, {"in.image": normal(1, 3, 32, 32), "in.latents": normal(1, 4, 8, 8)}),
        "sample.pndm": (sampling, run | {"in.steps": torch.tensor([3])}),
        "sched.ddim.4": (sampling, run),
    }
    for name, (kind, given) in kinds.items():
        case = Case(f"cases/{name}.safetensors", given)
        computed = {value.key: value.ours for value in kind(golden, case) if not value.how}
        # Copies, each row by row: two keys may name one tensor.
        tensors = {**given, **computed}
        save_file(
            {
                k: v.detach().clone(memory_format=torch.contiguous_format)
                for k, v in tensors.items()
            },
            directory / case.name,
        )
    _write_inputs(directory)
    _write_checkpoint(golden, directory / "checkpoint_toy.pt")


def _write_checkpoint(golden: Golden, path: Path) -> None:
    """Write weights as the authors' last stage does: no N, three entries that are no weights."""
    parts = {"": golden.model, "unet.": golden.decoder.unet, "vae.": golden.decoder.vae}
    weights = {
        their_name(prefix + name): value.detach().clone()
        for prefix, module in parts.items()
        for name, value in module.named_parameters()
        if not name.startswith("aligner.decoder.")
    }
    weights[TIED] = weights[EMBEDDING]
    weights[DUMMY] = torch.zeros(1)
    weights[DEAD_SCALE] = (torch.arange(0, 8, 2) + 0.4 * 8) / (1.4 * 8)
    options = {key: CONFIG[key] for key in CONFIG if key.startswith("decoder_")}
    torch.save({"args": None, "cfg": {"model": options}, "model": weights}, path)


def _write_inputs(directory: Path) -> None:
    tokenizer = Tokenizer.from_words(["a", "cat", "red"])
    tokenizer.save_pretrained(directory / "tokenizer")
    picture = toy_picture()
    picture.save(directory / "images" / "noise.png")
    views = {"gpt": clip_view(picture, 24), "diff": decoder_view(picture, 32)}
    kept: dict[str, Tensor] = {}
    for kind, view in views.items():
        sums = [view.double().sum(), view.double().abs().sum(), view.shape[-1]]
        kept[f"noise.{kind}_s3"] = view[:, ::3, ::3].contiguous()
        kept[f"noise.{kind}_sum64"] = torch.tensor(sums, dtype=torch.float64)
    save_file(kept, directory / "image_transform.safetensors")

    encoded = encode(["a", picture, "red cat"], tokenizer, num_latents=3, image_size=24)
    symbols = [[index, tokenizer.symbol(index)] for index in range(tokenizer.vocab_size)]
    info = {
        "vocab_size": tokenizer.vocab_size,
        "bos": 0,
        "pad": 1,
        "eos": 2,
        "unk": 3,
        "head": symbols[:3],
        "tail": symbols[3:],
        "special": {
            "<image>": [tokenizer.image_id, True],
            "</image>": [tokenizer.end_image_id, True],
        },
    }
    case = {
        "prompt": "a<i>red cat",
        "negative_prompt": "cat",
        "n_images": 1,
        "src_tokens": encoded.input_ids.tolist(),
        "image_positions": encoded.image_mask.nonzero().flatten().tolist(),
        "negative_tokens": [0, *tokenizer.encode("cat")],
        "pieces": tokenizer.pieces("a<i>red cat"),
    }
    _write(directory / "tokenizer.json", {"info": info, "cases": [case]})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
