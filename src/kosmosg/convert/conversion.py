"""A checkpoint of the authors to a directory that `KosmosGPipeline.from_pretrained` reads."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg import config, release
from kosmosg.convert import sd15, writing
from kosmosg.convert.reading import Checkpoint, read_checkpoint, some
from kosmosg.convert.sd15 import Decoder
from kosmosg.convert.sizes import Architecture, aligner_sizes, check_released, mllm_sizes
from kosmosg.convert.stored import StoredTensor
from kosmosg.errors import CheckpointError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import NOISE_SCHEDULE
from kosmosg.model.mllm import MLLM
from kosmosg.tokenizer import DICTIONARY_FILE, MODEL_FILE, Tokenizer

Dtype = Literal["float32", "float16", "bfloat16"]
Weights = dict[str, dict[str, StoredTensor]]
Models = dict[str, Any]

# As Stable Diffusion 1.5 names it in its files, which every version of transformers reads.
_TEXT_PREFIX = "text_model."


def convert(
    checkpoint: Path,
    out: Path,
    *,
    base: str | None = None,
    dtype: Dtype | None = None,
    tokenizer: Path | None = None,
    keep_training_parts: bool = False,
    architecture: Architecture | None = None,
) -> dict[str, int]:
    """Write the model of a checkpoint as a directory; return the parameters of each part.

    Nothing in the checkpoint is executed. The directory appears when it is whole.

    Args:
        checkpoint: The authors' file, after stage 2 or 3.
        out: The directory; it must not exist yet.
        base: A Stable Diffusion 1.5 whose U-Net and VAE replace the checkpoint's; see `sd15.load`.
            A checkpoint of stage 2 has none of its own.
        dtype: Of all weights written. None: as they are stored.
        tokenizer: The directory of both tokenizer files. None: the checkpoint's own.
        keep_training_parts: Keep what only stage 2 trains with: N, and CLIP's text tower.
        architecture: Of a checkpoint of other widths than the release. None: the release's.

    Raises:
        CheckpointError: If a file is missing, damaged or no checkpoint; if a weight is missing,
            unknown or of another shape; if `out` exists or the disk has no room.

    Source:
        NUMERICS section 12.
    """
    read = read_checkpoint(checkpoint, keep_training_parts=keep_training_parts)
    decoder = _decoder(read, base, architecture)
    models = _models(read, decoder, architecture, keep_training_parts=keep_training_parts)
    weights: Weights = {"unet": dict(decoder.unet), "vae": dict(decoder.vae)}
    weights |= {name: read.part(name) for name in models if name not in weights}
    _check(models, weights, checkpoint)
    pieces = _tokenizer(checkpoint, tokenizer, models["mllm"].config["vocab_size"])

    parameters = {
        name: sum(one.nbytes // one.dtype.itemsize for one in weights[name].values())
        for name in models
    }
    to = None if dtype is None else getattr(torch, dtype)
    num_bytes = writing.sum_bytes(weights.values(), to)
    with writing.appearing(out, num_bytes=num_bytes) as made:
        with writing.progress("writing", writing.sum_bytes(weights.values(), None)) as bar:
            for name, model in models.items():
                _write_part(made / name, model, weights[name], bar, to)
        _write_beside(made, decoder, models, pieces)
        replaced = _replaced(read, decoder) if base is not None and read.part("unet") else None
        writing.write_json(made / writing.PARITY_FILE, _parity(read, decoder, replaced, parameters))
        card = writing.card(
            checkpoint=checkpoint.name,
            decoder=decoder.source,
            stage="stage 2" if read.has_reconstruction else "stage 3",
            parts=parameters,
        )
        (made / "README.md").write_text(card, encoding="utf-8")
        writing.write_sums(made)
    return parameters


def _decoder(read: Checkpoint, base: str | None, architecture: Architecture | None) -> Decoder:
    known = architecture or Architecture()
    if base is not None:
        return sd15.load(base, unet_config=known.unet, vae_config=known.vae)
    if not read.part("unet"):
        raise CheckpointError(
            f"{read.path} has no U-Net and VAE (stage 2 trains without them); give a Stable "
            f"Diffusion 1.5 with --base: {sd15.SUGGESTED} from the hub, or the directory that you "
            "downloaded it to"
        )
    return Decoder(
        unet_config=known.unet,
        unet=read.part("unet"),
        vae_config=known.vae,
        vae=read.part("vae"),
        schedule=dict(NOISE_SCHEDULE),
        source="the checkpoint",
    )


def _models(
    read: Checkpoint,
    decoder: Decoder,
    architecture: Architecture | None,
    *,
    keep_training_parts: bool,
) -> Models:
    """Return every part as a model without memory: its configuration, its names and shapes."""
    shapes = {name: tensor.shape for name, tensor in read.tensors.items()}
    mllm = mllm_sizes(shapes, read.options, architecture)
    aligner = aligner_sizes(shapes, architecture, with_reconstruction=keep_training_parts)
    if architecture is None:
        check_released(mllm, aligner)
    sd15.check_width(decoder, aligner["embed_dim"])
    text = (architecture or Architecture()).text_encoder
    with torch.device("meta"):
        models: Models = {
            "mllm": MLLM(**mllm),
            "aligner": AlignerNet(**aligner),
            "unet": _made(UNet2DConditionModel.from_config, decoder.unet_config, decoder, "U-Net"),
            "vae": _made(AutoencoderKL.from_config, decoder.vae_config, decoder, "VAE"),
        }
        if keep_training_parts:
            models["text_encoder"] = CLIPTextModel(CLIPTextConfig(**text))
    return models


def _made(
    make: Callable[[Any], Any], arguments: dict[str, Any], decoder: Decoder, part: str
) -> Any:  # noqa: ANN401 -- a model of diffusers
    try:
        return make(dict(arguments))
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise CheckpointError(
            f"the configuration of the {part} of {decoder.source} cannot be used: {error}; "
            "correct its config.json"
        ) from None


def _check(models: Models, weights: Weights, path: Path) -> None:
    """Pass weights that are exactly those of the models, each of its shape."""
    missing, unknown, misshapen = [], [], []
    for part, model in models.items():
        expected = {name: tuple(one.shape) for name, one in model.state_dict().items()}
        given = weights[part]
        missing += [f"{part}.{name}" for name in expected.keys() - given.keys()]
        unknown += [f"{part}.{name}" for name in given.keys() - expected.keys()]
        misshapen += [
            f"{part}.{name} {given[name].shape} instead of {shape}"
            for name, shape in expected.items()
            if name in given and given[name].shape != shape
        ]
        misshapen += [
            f"{part}.{name} of {one.dtype}"
            for name, one in given.items()
            if not one.dtype.is_floating_point
        ]
    problems = [
        f"{what} {some(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit (names are ours): {'; '.join(problems)}; "
            "give an unchanged checkpoint, and as --base a Stable Diffusion 1.5"
        )


def _tokenizer(checkpoint: Path, directory: Path | None, vocab_size: int) -> Path:
    """Return the directory of the tokenizer's files, which fit the checkpoint."""
    directory = directory or checkpoint.parent
    if not all((directory / name).is_file() for name in (MODEL_FILE, DICTIONARY_FILE)):
        raise CheckpointError(
            f"the tokenizer's two files, {MODEL_FILE} and {DICTIONARY_FILE}, are not in "
            f"{directory}; name the directory that holds them with --tokenizer"
        )
    found = Tokenizer.from_pretrained(directory)
    if found.vocab_size != vocab_size:
        raise CheckpointError(
            f"the tokenizer in {directory} has {found.vocab_size} ids and the checkpoint's "
            f"embedding {vocab_size}; name the directory of its own tokenizer with --tokenizer"
        )
    return directory


def _replaced(read: Checkpoint, decoder: Decoder) -> dict[str, Any]:
    """Return how far the base's weights are from those of the checkpoint that they replace."""
    report: dict[str, Any] = {}
    parts = {"unet": decoder.unet, "vae": decoder.vae}
    with writing.progress("comparing", writing.sum_bytes(map(read.part, parts), None)) as bar:
        for part, ours in parts.items():
            theirs = read.part(part)
            differences = []
            for name, tensor in theirs.items():
                if name in ours and ours[name].shape == tensor.shape:
                    away = ours[name].read().float() - tensor.read().float()
                    differences.append(away.abs().max().item())
                bar.update(tensor.nbytes)
            same = ours.keys() == theirs.keys() and len(differences) == len(theirs)
            report[part] = {
                "compared": len(differences),
                "equal": same and not any(differences),
                "max_difference": max(differences, default=None),
            }
    return report


def _write_part(
    folder: Path,
    model: Any,  # noqa: ANN401 -- of diffusers or transformers
    tensors: Mapping[str, StoredTensor],
    bar: "tqdm[Any]",
    dtype: torch.dtype | None,
) -> None:
    if isinstance(model, CLIPTextModel):
        named = {_TEXT_PREFIX + name: tensor for name, tensor in tensors.items()}
        writing.write_weights(folder, named, bar, dtype=dtype, stem="model")
        model.config.architectures = ["CLIPTextModel"]
        model.config.save_pretrained(folder)
        return
    writing.write_weights(folder, tensors, bar, dtype=dtype)
    model.save_config(folder)


def _write_beside(made: Path, decoder: Decoder, models: Models, tokenizer: Path) -> None:
    """Write what a pipeline needs besides weights; generation defaults are the released demo's."""
    scheduler = DPMSolverMultistepScheduler(**decoder.schedule, final_sigmas_type="sigma_min")
    scheduler.save_pretrained(made / "scheduler")
    (made / "tokenizer").mkdir()
    for name in (MODEL_FILE, DICTIONARY_FILE):
        shutil.copyfile(tokenizer / name, made / "tokenizer" / name)
    factor = 2 ** (len(models["vae"].config["block_out_channels"]) - 1)
    side = (models["unet"].config["sample_size"] or 64) * factor
    defaults = release.GenerationConfig(height=side, width=side)
    config.save(defaults, made / release.GENERATION_FILE)
    writing.write_index(made)


def _parity(
    read: Checkpoint,
    decoder: Decoder,
    replaced: Mapping[str, Any] | None,
    parameters: Mapping[str, int],
) -> dict[str, Any]:
    """Return what became of each weight of the checkpoint."""
    ignored, used = dict(read.ignored), {}
    for ours, theirs in read.their_names.items():
        if replaced is not None and ours.startswith(("unet.", "vae.")):
            ignored[theirs] = f"replaced by that of {decoder.source}"
        else:
            used[theirs] = ours
    return {
        "format_version": 1,
        "checkpoint": read.path.name,
        "checkpoint_bytes": read.path.stat().st_size,
        "decoder": decoder.source,
        "replaced": replaced,
        "parameters": dict(parameters),
        "missing": [],
        "ignored": ignored,
        "used": used,
    }
