"""Where the parts of a nano run meet: training one, and writing the whole as it ships.

`WORKSPACE/model` is the model so far, in diffusers layout and float32; `WORKSPACE/runs/PART` the
run of each part. A part whose weights are there already goes on from them: a further leg, with a
new optimiser, a warm-up and records of its own. After stage 3, `WORKSPACE/nano` is the model as
`--model` takes it.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPSegForImageSegmentation, CLIPTextModel, CLIPVisionModel

from kosmosg.config import to_dict
from kosmosg.data.compose import Composing
from kosmosg.data.sources import Opened, RowSizes, open_stream, open_validation
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.clip_vision import ClipVision
from kosmosg.model.image_decoder import ImageDecoder, scheduler
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.release import GenerationConfig
from kosmosg.tokenizer import Tokenizer
from kosmosg.toyworld import foundation, samples
from kosmosg.toyworld.alignment import new_aligner
from kosmosg.toyworld.captions import FULL, describe, words
from kosmosg.toyworld.judge import Judge, JudgeStage
from kosmosg.toyworld.nano import PARTS, FoundationConfig, NanoConfig
from kosmosg.toyworld.scenes import sample_scene
from kosmosg.toyworld.segmenter import GroundedSegmenter, SegmenterStage, build_segmenter
from kosmosg.toyworld.streams import (
    SceneStream,
    captioner_stream,
    stage1_stream,
    stage2_stream,
    stage3_stream,
)
from kosmosg.toyworld.vision import GroundedVision, VisionStage
from kosmosg.train import distributed
from kosmosg.train.loop import Samples, fit
from kosmosg.train.run import Parts, RunConfig, run
from kosmosg.train.stage import Stage
from kosmosg.train.stage2_align import TextTower

VISION = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "image_size": 64,
    "patch_size": 8,
}
GENERATION = GenerationConfig(
    scheduler="dpms",
    num_inference_steps=20,
    guidance_scale=3.0,
    height=64,
    width=64,
    max_pictures=8,
    trained_pictures=3,  # an example has one to three creatures
)
# Validation records have seeds of their own, whatever the leg.
VALIDATION = 500
NUM_LATENTS = 16  # slots of a picture


def train(
    config: NanoConfig, workspace: Path, *, leg: int = 1, resume: bool = False
) -> dict[str, nn.Module]:
    """Run one part and put its weights into the workspace's model; return them.

    Args:
        config: From a recipe.
        workspace: Where parts meet.
        leg: A later leg has a run directory and random numbers of its own.
        resume: Continue this leg after a stop.

    Raises:
        CheckpointError: If a part that this one builds on has not been trained here.
        ConfigError: As `fit`.
    """
    model_dir = workspace / "model"
    name = config.part if leg == 1 else f"{config.part}-leg{leg}"
    run_dir = workspace / "runs" / name
    if leg > 1:
        config = replace(config, train=replace(config.train, seed=config.train.seed + 1000 * leg))
        if config.data is not None:
            data = replace(config.data, seed=config.data.seed + 1000 * leg)
            config = replace(config, data=data)
    if config.data is not None and isinstance(config.stage, FoundationConfig):
        raise ConfigError(f"part {config.part} draws its own pictures; data is for stages 1 to 3")
    tokenizer = Tokenizer.from_words(words())
    if distributed.is_first():
        tokenizer.save_pretrained(model_dir / "tokenizer")
    torch.manual_seed(config.train.seed)
    if isinstance(config.stage, FoundationConfig):
        made = _train_foundation(config, config.stage, model_dir, run_dir, tokenizer, resume=resume)
    else:
        made = _train_stage(config, model_dir, run_dir, tokenizer, resume=resume)
    if distributed.is_first():
        for part, module in made.items():
            _save(module, model_dir / part)
        if config.part == "stage3":
            export(workspace, workspace / "nano")
    distributed.wait_for_all()  # the next part reads what the first process has written
    return made


def _train_foundation(
    config: NanoConfig,
    choice: FoundationConfig,
    model_dir: Path,
    run_dir: Path,
    tokenizer: Tokenizer,
    *,
    resume: bool,
) -> dict[str, nn.Module]:
    seed = config.train.seed
    model: nn.Module
    stage: Stage
    made: dict[str, nn.Module]
    looks: Samples | None = None
    match config.part:
        case "vae":
            model = _load(AutoencoderKL, model_dir / "vae", foundation.build_vae)
            stage = foundation.VAEStage()
            looks = samples.restored(model)
            made = {"vae": model}
        case "clip":
            model = GroundedVision(_vision(model_dir), VISION["hidden_size"])
            stage = VisionStage()
            made = {"clip": model.vision.clip}
        case "judge":
            model = _load(Judge, model_dir / "judge", Judge)
            stage = JudgeStage()
            made = {"judge": model}
        case "segmenter":
            segmenter = _load(
                CLIPSegForImageSegmentation,
                model_dir / "segmenter",
                lambda: build_segmenter(tokenizer.vocab_size),
            )
            model = GroundedSegmenter(segmenter)
            stage = SegmenterStage(tokenizer=tokenizer)
            made = {"segmenter": segmenter}
        case "unet":
            text = _text_encoder(model_dir, tokenizer)
            unet = _load(UNet2DConditionModel, model_dir / "unet", foundation.build_unet)
            vae = _vae(model_dir)
            model = foundation.TextToImage(text, plain(unet), vae)
            stage = foundation.TextToImageStage(
                tokenizer=tokenizer, text_tower=choice.text_tower, body_weight=choice.body_weight
            )
            looks = samples.in_own_words(pipeline(tokenizer, unet, vae), text, tokenizer)
            made = {"unet": unet, "text_encoder": text}
        case _:
            raise ConfigError(
                f"no foundation part {config.part!r}; the parts are {', '.join(PARTS)}"
            )
    fit(
        model,
        stage,
        SceneStream(seed=seed),
        config.train,
        run_dir,
        resume=resume,
        validation=SceneStream(seed=seed + VALIDATION),
        samples=looks,
        recipe=to_dict(config),
    )
    if config.part == "vae" and isinstance(model, AutoencoderKL):
        _whiten(model)
    if isinstance(model, foundation.TextToImage) and choice.text_tower == "trained":
        foundation.scale_states(model.text_encoder, model.decoder.unet, _captions(tokenizer))
    return made


def _train_stage(
    config: NanoConfig, model_dir: Path, run_dir: Path, tokenizer: Tokenizer, *, resume: bool
) -> dict[str, nn.Module]:
    seed = config.train.seed
    assert not isinstance(config.stage, FoundationConfig)  # those have a function of their own
    given, held_out = _given(config, tokenizer)
    workers = 0 if config.data is None else config.data.workers
    if config.part == "stage1":
        mllm = _load(MLLM, model_dir / "stage2" / "mllm", lambda: _new_mllm(model_dir, tokenizer))
        parts = Parts(
            model=mllm,
            tokenizer=tokenizer,
            stream=given or stage1_stream(seed),
            workers=workers,
            validation=held_out or stage1_stream(seed + VALIDATION),
            samples=samples.described(mllm, tokenizer),
        )
        made: dict[str, nn.Module] = {"stage2/mllm": mllm}
    elif config.part == "captioner":
        begun = model_dir / "captioner"
        source = begun if begun.is_dir() else model_dir / "stage2" / "mllm"
        mllm = _load(MLLM, source, None)
        parts = Parts(
            model=mllm,
            tokenizer=tokenizer,
            stream=given or captioner_stream(seed),
            workers=workers,
            validation=captioner_stream(seed + VALIDATION),
            samples=samples.described(mllm, tokenizer),
        )
        made = {"captioner": mllm}
    elif config.part == "stage2":
        mllm = _load(MLLM, model_dir / "stage2" / "mllm", None)
        aligner = _with_reconstruction(
            _load(
                AlignerNet,
                model_dir / "stage2" / "aligner",
                lambda: new_aligner(mllm, tokenizer),
            )
        )
        text = _load(CLIPTextModel, model_dir / "text_encoder", None)
        unet = _load(UNet2DConditionModel, model_dir / "unet", None)
        pipe = pipeline(tokenizer, unet, _vae(model_dir), mllm, aligner)
        parts = Parts(
            model=KosmosG(mllm, aligner),
            tokenizer=tokenizer,
            stream=given or stage2_stream(seed),
            workers=workers,
            validation=held_out or stage2_stream(seed + VALIDATION),
            samples=samples.in_words(pipe),
            text_tower=TextTower(
                encoder=text, ids=lambda texts: foundation.text_ids(texts, tokenizer)
            ),
        )
        made = {"stage2/aligner": aligner}
    else:
        source = model_dir if (model_dir / "mllm").exists() else model_dir / "stage2"
        mllm = _load(MLLM, source / "mllm", None)
        aligner = _load(AlignerNet, source / "aligner", None)
        unet = plain(_load(UNet2DConditionModel, model_dir / "unet", None))
        vae = _vae(model_dir)
        parts = Parts(
            model=KosmosG(mllm, aligner),
            tokenizer=tokenizer,
            stream=given or Composing(stage3_stream(seed), seed=seed),
            workers=workers,
            validation=held_out or Composing(stage3_stream(seed + VALIDATION), seed=seed),
            samples=samples.in_context(pipeline(tokenizer, unet, vae, mllm, aligner)),
            image_decoder=ImageDecoder(vae, unet),
        )
        made = {"mllm": mllm, "aligner": aligner}
    run_config = RunConfig(stage=config.stage, train=config.train)
    run(run_config, parts, run_dir, resume=resume, recipe=to_dict(config))
    return made


def _given(config: NanoConfig, tokenizer: Tokenizer) -> tuple[Opened | None, Opened | None]:
    """Return the streams of the user's own data and held-out data; None for the toy world's."""
    if config.data is None or isinstance(config.stage, FoundationConfig):
        return None, None
    sizes = RowSizes(tokenizer=tokenizer, num_latents=NUM_LATENTS)
    stream = open_stream(config.data, stage=config.stage.kind, sizes=sizes)
    held_out = open_validation(config.data, stage=config.stage.kind, sizes=sizes)
    if held_out is None:
        sys.stderr.write(
            "the validation loss is of the toy world's records; name tars of your own with"
            " data.validation.NAME.paths=FOLDER\n"
        )
    return stream, held_out


Part = TypeVar("Part", bound=Any)


def _load(cls: type[Part], directory: Path, make: Callable[[], Part] | None) -> Part:
    """Return the part kept in the directory, or a new one if there is none and `make` may.

    Raises:
        CheckpointError: If it is neither there nor may be made.
    """
    if (directory / "config.json").exists():
        return cls.from_pretrained(directory, dtype=torch.float32)  # what ships is bfloat16
    if make is None:
        raise CheckpointError(
            f"no weights in {directory}: train the part that makes them first "
            f"(the order is {', '.join(PARTS)})"
        )
    return make()


def _save(module: nn.Module, directory: Path) -> None:
    """Write a part in one file, in place of what ships in several."""
    for index in directory.glob("*.index.json"):
        index.unlink()  # diffusers removes the files that it names, and would then miss them
    module.save_pretrained(directory)  # pyright: ignore[reportCallIssue]


def _vae(model_dir: Path) -> AutoencoderKL:
    return _load(AutoencoderKL, model_dir / "vae", None)


def _text_encoder(model_dir: Path, tokenizer: Tokenizer) -> CLIPTextModel:
    return _load(
        CLIPTextModel,
        model_dir / "text_encoder",
        lambda: foundation.build_text_encoder(tokenizer.vocab_size),
    )


def plain(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return the U-Net with attention as plain products, which train faster on a CPU."""
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())
    return unet


def _new_mllm(model_dir: Path, tokenizer: Tokenizer) -> MLLM:
    mllm = MLLM(
        vocab_size=tokenizer.vocab_size,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_latents=NUM_LATENTS,
        vision_hidden_size=VISION["hidden_size"],
        vision_intermediate_size=VISION["intermediate_size"],
        vision_layers=VISION["num_hidden_layers"],
        vision_heads=VISION["num_attention_heads"],
        image_size=VISION["image_size"],
        patch_size=VISION["patch_size"],
    )
    mllm.vision.load_state_dict(_vision(model_dir, new=False).state_dict())
    return mllm


def _whiten(vae: AutoencoderKL) -> None:
    scenes = [sample_scene(np.random.default_rng([8, index])) for index in range(256)]
    with torch.no_grad():
        device = next(vae.parameters()).device
        latents = vae.encode(foundation.pictures(scenes, 64).to(device), return_dict=False)[0].mean
    foundation.whiten(vae, latents)


def _captions(tokenizer: Tokenizer) -> torch.Tensor:
    """Return what the text tower reads for captions like those that it has learned from."""
    generators = (np.random.default_rng([9, index]) for index in range(256))
    said = [describe(sample_scene(rng), rng, FULL) for rng in generators]
    return foundation.text_ids(said, tokenizer)


def _vision(model_dir: Path, *, new: bool = True) -> ClipVision:
    vision = ClipVision(**VISION)
    make = (lambda: vision.clip) if new else None
    vision.clip.load_state_dict(_load(CLIPVisionModel, model_dir / "clip", make).state_dict())
    return vision


def export(workspace: Path, out: Path) -> None:
    """Write the workspace's model as it ships: bfloat16, nothing training-only, files of 15 MB.

    Beside the pipeline stand what the evaluation needs: the text tower, the weights after stage 2
    and the judge.

    Raises:
        CheckpointError: If a part has not been trained, or cannot be written.
    """
    model_dir = workspace / "model"
    pipe = pipeline(
        Tokenizer.from_words(words()),
        _load(UNet2DConditionModel, model_dir / "unet", None),
        _vae(model_dir),
        _load(MLLM, model_dir / "mllm", None),
        _without_reconstruction(_load(AlignerNet, model_dir / "aligner", None)),
    )
    pipe.to(torch.bfloat16).save_pretrained(out, max_shard_size="14MB")
    beside: dict[str, nn.Module] = {
        "stage2/mllm": _load(MLLM, model_dir / "stage2" / "mllm", None),
        "stage2/aligner": _without_reconstruction(
            _load(AlignerNet, model_dir / "stage2" / "aligner", None)
        ),
        "text_encoder": _load(CLIPTextModel, model_dir / "text_encoder", None),
        "judge": _load(Judge, model_dir / "judge", None),
    }
    # Trained beside the rest, or not.
    if (model_dir / "captioner").is_dir():
        beside["captioner"] = _load(MLLM, model_dir / "captioner", None)
    if (model_dir / "segmenter").is_dir():
        beside["segmenter"] = _load(CLIPSegForImageSegmentation, model_dir / "segmenter", None)
    for name, module in beside.items():
        module.to(torch.bfloat16).save_pretrained(out / name)  # pyright: ignore[reportCallIssue]
    for path in out.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # diffusers' note of the directory on this machine
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def pipeline(
    tokenizer: Tokenizer,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    mllm: MLLM | None = None,
    aligner: AlignerNet | None = None,
) -> KosmosGPipeline:
    """Return nano's pipeline; without the last two it draws from prompt embeds alone."""
    pipe = KosmosGPipeline(
        mllm=mllm,
        aligner=aligner,
        unet=unet,
        vae=vae,
        scheduler=scheduler("dpms"),
        tokenizer=tokenizer,
        generation_config=GENERATION,
    )
    pipe.set_progress_bar_config(disable=True)  # the training has one of its own
    return pipe


def _with_reconstruction(aligner: AlignerNet) -> AlignerNet:
    """Return it with an N, new if it has none: what ships left N behind."""
    if aligner.config["with_reconstruction"]:
        return aligner
    return _same_encoder(aligner, with_reconstruction=True)


def _without_reconstruction(aligner: AlignerNet) -> AlignerNet:
    return _same_encoder(aligner, with_reconstruction=False)


def _same_encoder(aligner: AlignerNet, *, with_reconstruction: bool) -> AlignerNet:
    made = AlignerNet(**{**_arguments(aligner), "with_reconstruction": with_reconstruction})
    made.encoder.load_state_dict(aligner.encoder.state_dict())
    return made


def _arguments(model: AlignerNet) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}
