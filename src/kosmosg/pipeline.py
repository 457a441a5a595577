"""KosmosGPipeline: prompts of words and pictures to pictures, as a diffusers pipeline."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError
from torch import nn
from transformers.image_processing_base import ImageProcessingMixin

from kosmosg import adapter, branches, config, memory, release, safety
from kosmosg.controls import (
    WHOLE,
    Fractions,
    PictureWeights,
    PictureWindows,
    check_guidance,
    scales_of,
)
from kosmosg.denoising import Callback, Latents, PromptEmbeds, denoise
from kosmosg.encoding import Embeds, PromptEncoder
from kosmosg.errors import CheckpointError, ConfigError, PromptError
from kosmosg.images import check_finite
from kosmosg.inputs import (
    GivenEmbeds,
    GivenLatents,
    check_choice,
    check_embeds,
    check_one_of,
    check_sizes,
    check_unread,
)
from kosmosg.lora import UNetLoraLoaderMixin
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import SchedulerName
from kosmosg.model.image_decoder import scheduler as named_scheduler
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.prompts import Prompts
from kosmosg.reading import Reader
from kosmosg.release import GenerationConfig
from kosmosg.tokenizer import Tokenizer

Generator = torch.Generator | list[torch.Generator]
SAMPLERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class KosmosGPipeline(DiffusionPipeline, UNetLoraLoaderMixin):
    """Generates pictures from prompts in which pictures are words.

    Names, order of the results and behaviour are those of diffusers' StableDiffusionPipeline, whose
    text encoder is replaced by `mllm` and `aligner`: what `encode_prompt` returns fits any pipeline
    that shares the U-Net.

    Args:
        mllm: Reads words and pictures. None in a pipeline that is only given `prompt_embeds`.
        aligner: Turns what the MLLM says into the U-Net's condition. None likewise.
        unet: Predicts noise.
        vae: Decodes latents into pictures.
        scheduler: Any sampler of diffusers.
        tokenizer: Cuts words into ids.
        generation_config: What None means in a call; by default what the released demo uses,
            at the size that the U-Net was made for.
        safety_checker: Diffusers' StableDiffusionSafetyChecker: pictures that it flags are black.
            None: nothing is judged.
        feature_extractor: What prepares pictures for it.
    """

    model_cpu_offload_seq = "mllm->aligner->unet->vae"
    _optional_components: ClassVar[list[str]] = ["mllm", "aligner", "tokenizer", *safety.NAMES]
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["safety_checker"]
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
    ]

    mllm: MLLM  # or None, as is the next: only for callers who made it so
    aligner: AlignerNet
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    tokenizer: Tokenizer
    safety_checker: nn.Module | None
    feature_extractor: Any

    def __init__(
        self,
        *,
        mllm: MLLM | None,
        aligner: AlignerNet | None,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        tokenizer: Tokenizer,
        safety_checker: nn.Module | None = None,
        feature_extractor: ImageProcessingMixin | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__()
        safety.check_pair(safety_checker, feature_extractor)
        self.register_modules(mllm=mllm, aligner=aligner, unet=unet, vae=vae, scheduler=scheduler)
        self.register_modules(safety_checker=safety_checker, feature_extractor=feature_extractor)
        # A component, but not of a kind that diffusers can save or load: see from_pretrained.
        self.register_to_config(tokenizer=(None, None))
        self.tokenizer = tokenizer
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.generation_config = generation_config or _defaults(unet, self.vae_scale_factor)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._encoder = PromptEncoder()
        self._directory: Path | None = None  # what mllm and aligner were loaded from
        self._guidance_scale = self.generation_config.guidance_scale
        self._text_guidance_scale = self._picture_guidance_scale = self._guidance_scale
        self._cross_attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._interrupt = False

    # What a callback may read, and through the underscored names set, between two steps.
    guidance_scale = property(lambda self: self._guidance_scale)
    text_guidance_scale = property(lambda self: self._text_guidance_scale)
    picture_guidance_scale = property(lambda self: self._picture_guidance_scale)
    do_classifier_free_guidance = property(
        lambda self: self._guides_apart or self._guidance_scale > 1
    )
    _guides_apart = property(lambda self: self._text_guidance_scale != self._picture_guidance_scale)
    cross_attention_kwargs = property(lambda self: self._cross_attention_kwargs)
    num_timesteps = property(lambda self: self._num_timesteps)
    interrupt = property(lambda self: self._interrupt)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **kwargs: Any,  # noqa: ANN401 -- whatever diffusers takes
    ) -> "KosmosGPipeline":
        """Return the pipeline of a directory, or the shipped model by its name, `nano`.

        Args:
            pretrained_model_name_or_path: A directory written by `save_pretrained`, or `nano`.
            kwargs: As diffusers takes them: `dtype` (float32 unless given; a dict gives each part
                its own), `variant`, components that replace those of the directory. Nothing is
                ever downloaded.

        Raises:
            CheckpointError: If the directory, a file or a weight is missing, damaged or of another
                format version.
        """
        directory = release.find(pretrained_model_name_or_path)
        kwargs.setdefault("generation_config", release.read_generation_config(directory))
        variant = kwargs.get("variant")
        elsewhere = release.absent_parts(directory) | set(kwargs)
        parts = [name for name in release.PARTS if name not in elsewhere]
        release.check_files(directory, parts, variant=variant)
        kwargs.setdefault("use_safetensors", True)  # or a .bin would do where there are none
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        if "safety_checker" not in kwargs and release.has_part(directory, "safety_checker"):
            kwargs["safety_checker"], extractor = safety.load(
                directory / "safety_checker",
                dtype=_dtype_of("safety_checker", kwargs),
                variant=variant,
            )
            kwargs.setdefault("feature_extractor", extractor)
        if "tokenizer" not in kwargs:
            kwargs["tokenizer"] = Tokenizer.from_pretrained(directory / "tokenizer")
        try:
            pipe = super().from_pretrained(str(directory), local_files_only=True, **kwargs)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            remedy = f"leave out variant={variant!r}, or " if variant else ""
            raise CheckpointError(
                f"cannot load {directory}: {_line(error)}; {remedy}{release.remedy(directory)}"
            ) from error
        keys = {name: getattr(pipe, name).state_dict() for name in parts}
        release.check_weights(directory, keys, variant=variant)
        if not {"mllm", "aligner"} & elsewhere:
            pipe._directory = directory
        chosen = pipe.generation_config.scheduler
        if "scheduler" not in kwargs and chosen != sampler_name(pipe.scheduler):
            if chosen not in SAMPLERS:
                raise CheckpointError(
                    f"{directory / release.GENERATION_FILE} names the scheduler {chosen!r}; "
                    f"the names are {', '.join(SAMPLERS)}, or the class kept in scheduler/"
                )
            pipe.scheduler = named_scheduler(chosen)
        return pipe

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,  # noqa: ANN401 -- these and the next: whatever diffusers takes
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write the pipeline as a directory that `from_pretrained` reads.

        Other files in an existing directory stay; a model in it is replaced only once the whole of
        this one is on the disk.

        Raises:
            CheckpointError: If a file cannot be written, or a LoRA is loaded; then what was there
                stays as it was.
        """
        if self._adapted():
            raise CheckpointError(
                "an adapter is loaded, and a model's directory holds none; "
                "call unload_adapter first"
            )
        if self.get_list_adapters():
            raise CheckpointError(
                "a LoRA is loaded, and a model's directory holds none; "
                "call unload_lora_weights first, after fuse_lora to keep what it does"
            )
        defaults = dataclasses.replace(
            self.generation_config, scheduler=sampler_name(self.scheduler)
        )
        try:
            with release.replacing(Path(save_directory)) as directory:
                self.tokenizer.save_pretrained(directory / "tokenizer")
                config.save(defaults, directory / release.GENERATION_FILE)
                super().save_pretrained(str(directory), *args, **kwargs)
        except (OSError, ConfigError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot save to {save_directory}: {_line(error)}; "
                "make room or choose another directory"
            ) from error

    @classmethod
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        **kwargs: Any,  # noqa: ANN401 -- whatever diffusers takes
    ) -> "KosmosGPipeline":
        """Return a pipeline that shares another's components, in float32 unless `dtype` says."""
        if isinstance(pipeline, KosmosGPipeline):
            kwargs.setdefault("generation_config", pipeline.generation_config)
        made = cast(KosmosGPipeline, super().from_pipe(pipeline, **kwargs))
        if isinstance(pipeline, KosmosGPipeline) and not {"mllm", "aligner"} & kwargs.keys():
            made._directory = pipeline._directory
        return made

    def load_adapter(self, path: str | os.PathLike[str], *, scale: float = 1.0) -> None:
        """Put an adapter for one subject into the MLLM and M.

        Pipelines that share the two share it.

        Args:
            path: What `kosmosg train subject` wrote: the file, or the directory that holds it.
            scale: How much of it.

        Raises:
            CheckpointError: If it is no adapter, damaged, or was made for another model.
            ConfigError: If one is loaded already, or this pipeline cannot say which model it is.
        """
        if self._directory is None or self.mllm is None or self.aligner is None:
            raise ConfigError(
                "an adapter belongs to one model, and this pipeline's mllm and aligner were not "
                "loaded from its directory; use from_pretrained"
            )
        adapter.load(
            KosmosG(mllm=self.mllm, aligner=self.aligner),
            Path(path),
            base=adapter.base_of(self._directory),
            scale=scale,
        )
        self._encoder = PromptEncoder()  # what the last one remembered was said without it

    def unload_adapter(self) -> None:
        """Take the adapter out again, if there is one; pictures are what they were, to the bit."""
        if self._adapted():
            adapter.remove(KosmosG(mllm=self.mllm, aligner=self.aligner))
            self._encoder = PromptEncoder()

    def _adapted(self) -> bool:
        return any(
            part is not None and adapter.is_there(part) for part in (self.mllm, self.aligner)
        )

    def check_inputs(
        self,
        prompt: Prompts | None,
        *,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float = 1.0,
        text_guidance_scale: float | None = None,
        picture_guidance_scale: float | None = None,
        guidance_interval: Fractions = WHOLE,
        guidance_rescale: float = 0.0,
        picture_weights: PictureWeights | None = None,
        picture_windows: PictureWindows | None = None,
        num_images_per_prompt: int = 1,
        negative_prompt: Prompts | None = None,
        prompt_embeds: GivenEmbeds | None = None,
        negative_prompt_embeds: GivenEmbeds | None = None,
        picture_prompt_embeds: GivenEmbeds | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
    ) -> None:
        """Pass arguments that a call can work with; `encode_prompt` checks what a prompt says.

        Raises:
            ConfigError: Naming the argument, its value and what it may be.
        """
        check_sizes(
            [
                ("height", height, self.vae_scale_factor),
                ("width", width, self.vae_scale_factor),
                ("num_inference_steps", num_inference_steps, 1),
                ("num_images_per_prompt", num_images_per_prompt, 1),
            ]
        )
        text, picture = scales_of(guidance_scale, text_guidance_scale, picture_guidance_scale)
        check_guidance(guidance_interval, guidance_rescale)
        check_one_of(prompt=prompt, prompt_embeds=prompt_embeds)
        if negative_prompt is not None:
            check_one_of(
                negative_prompt=negative_prompt, negative_prompt_embeds=negative_prompt_embeds
            )
        if prompt_embeds is not None:
            check_unread(picture_weights=picture_weights, picture_windows=picture_windows)
        if prompt_embeds is None and picture_prompt_embeds is not None:
            raise ConfigError("give picture_prompt_embeds with prompt_embeds, not with prompt")
        if text != picture and prompt_embeds is not None and picture_prompt_embeds is None:
            raise ConfigError(
                f"text_guidance_scale is {text} and picture_guidance_scale {picture}; with "
                "prompt_embeds give picture_prompt_embeds too, or one scale for both"
            )
        check_embeds(
            self.unet.config["cross_attention_dim"],
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            picture_prompt_embeds=picture_prompt_embeds,
        )
        check_choice("output_type", [output_type], OUTPUT_TYPES)
        check_choice(
            "callback_on_step_end_tensor_inputs",
            callback_on_step_end_tensor_inputs,
            self._callback_tensor_inputs,
        )

    def encode_prompt(
        self,
        prompt: Prompts | None = None,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        *,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: GivenEmbeds | None = None,
        negative_prompt_embeds: GivenEmbeds | None = None,
        picture_weights: PictureWeights | None = None,
    ) -> tuple[PromptEmbeds, PromptEmbeds | None]:
        """Return the U-Net's condition for each prompt, and the one to guide away from.

        Each prompt's rows follow one another (prompt-major, as in diffusers). Gradients pass.

        Args:
            prompt: Words, words and pictures, or a list of such lists.
            negative_prompt: Replaces the null prompt: one for all, or one for each prompt. An empty
                one is the null prompt.
            num_images_per_prompt: Rows for each prompt.
            do_classifier_free_guidance: False leaves out the second condition (None).
            prompt_embeds: Already encoded, instead of `prompt`.
            negative_prompt_embeds: Already encoded, instead of `negative_prompt`.
            picture_weights: As in a call.

        Raises:
            PromptError: If a prompt cannot be read, or weights or negative prompts are not as many.

        Source:
            NUMERICS section 7; the released code repeats the whole batch instead (a b a b).
        """
        if prompt_embeds is None:
            prompt_embeds = self._reader().encode(prompt, picture_weights)
        else:
            check_unread(picture_weights=picture_weights)
        num_prompts = len(prompt_embeds)
        prompt_embeds = self._rows(prompt_embeds, num_images_per_prompt)
        if not do_classifier_free_guidance:
            return prompt_embeds, None
        return prompt_embeds, self._negative(
            negative_prompt, negative_prompt_embeds, num_prompts, num_images_per_prompt
        )

    def _reader(self) -> Reader:
        if self.mllm is None or self.aligner is None:
            raise ConfigError(
                "this pipeline was made without its mllm or aligner; "
                "give prompt_embeds and negative_prompt_embeds, or load the whole model"
            )
        return Reader(
            model=KosmosG(mllm=self.mllm, aligner=self.aligner),
            tokenizer=self.tokenizer,
            encoder=self._encoder,
            device=self._execution_device,
            max_pictures=self.generation_config.max_pictures,
        )

    def _negative(
        self,
        prompt: Prompts | None,
        embeds: GivenEmbeds | None,
        num_prompts: int,
        num_images_per_prompt: int,
    ) -> PromptEmbeds:
        if embeds is None:
            embeds = self._reader().negative(prompt, num_prompts)
        if len(embeds) != num_prompts:
            raise PromptError(
                f"{num_prompts} prompts have {len(embeds)} negative conditions; "
                "give one negative prompt for all, or one for each prompt"
            )
        return self._rows(embeds, num_images_per_prompt)

    def _rows(self, embeds: Embeds, num_images_per_prompt: int) -> PromptEmbeds:
        embeds = embeds.to(self._execution_device, self.unet.dtype)
        return embeds.repeat_interleave(num_images_per_prompt, dim=0)

    def free_encoder(self) -> None:
        """Drop MLLM and AlignerNet and give their memory back; conditions can still be drawn."""
        self.register_modules(mllm=None, aligner=None)
        memory.give_back()

    def prepare_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generator | None = None,
        latents: GivenLatents | None = None,
    ) -> Latents:
        """Return the noise to start from: drawn, or the given `latents`, at the sampler's scale.

        Raises:
            ConfigError: If there are not as many generators, or the latents have another shape.
        """
        factor = self.vae_scale_factor
        shape = (batch_size, self.unet.config["in_channels"], height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ConfigError(
                f"there are {len(generator)} generators for {batch_size} pictures; "
                "give one for all or one for each"
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif latents.shape != shape:
            raise ConfigError(f"latents is {tuple(latents.shape)}; these arguments need {shape}")
        return latents.to(device) * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        guidance_scale: float | None = None,
        text_guidance_scale: float | None = None,
        picture_guidance_scale: float | None = None,
        guidance_interval: Fractions = WHOLE,
        guidance_rescale: float = 0.0,
        picture_weights: PictureWeights | None = None,
        picture_windows: PictureWindows | None = None,
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | None = None,
        latents: GivenLatents | None = None,
        prompt_embeds: GivenEmbeds | None = None,
        negative_prompt_embeds: GivenEmbeds | None = None,
        picture_prompt_embeds: GivenEmbeds | None = None,
        free_encoder: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:  # noqa: ANN401 -- diffusers' output, or a tuple where return_dict is False
        """Return `num_images_per_prompt` pictures of each prompt, one prompt after another.

        The arguments are StableDiffusionPipeline's, and controls that need no training (docs page
        Controls); what is None is the model's own default. So is the output: `images`, and
        `nsfw_content_detected`, which is None where there is no safety checker.

        Args:
            prompt: Words, a list of words and pictures, or a list of such lists.
            guidance_scale: 1 and below skip the null prompt's half of the work.
            text_guidance_scale: How far towards what the words add to the pictures; None is
                `guidance_scale`. Where it differs from the next, a prompt with words and pictures
                takes a third branch: its pictures alone. A prompt without pictures is guided by
                this scale only, one without words by the next only.
            picture_guidance_scale: How far towards what the pictures say; None likewise.
            guidance_interval: Where guidance acts, two fractions of the schedule; in other steps
                the null prompt's half of the work is skipped.
            guidance_rescale: 0 to 1: how much of the spread that guidance adds is taken back.
            picture_weights: What each picture's latents are multiplied by, 0 to 4: one list a
                prompt, one number a picture. A picture of weight 0 is no part of the prompt.
            picture_windows: When each picture is part of the prompt: one list a prompt, one pair
                of fractions of the schedule a picture.
            timesteps: The sampler's own, instead of `num_inference_steps` of them.
            eta: Noise that DDIM adds in each step, 0 to 1; other samplers ignore it.
            generator: Where noise comes from: one for all pictures, or one for each.
            picture_prompt_embeds: What `encode_prompt` gives for the pictures alone; with
                `prompt_embeds`, where the two scales differ.
            free_encoder: True drops `mllm` and `aligner` before denoising, so that their memory is
                free on any device; from then on the pipeline takes `prompt_embeds` only.
            output_type: `pil`, `np` or `pt` (in [0, 1]), or `latent` (not decoded).
            callback_on_step_end: Called after each step with the pipeline, the step's number, its
                timestep and the tensors asked for; returns those that it replaces.

        Raises:
            PromptError: If a prompt, or what is said of its pictures, cannot be read.
            ConfigError: If another argument cannot work.
        """
        # 1. What the caller left open is the model's
        height = self.generation_config.height if height is None else height
        width = self.generation_config.width if width is None else width
        if num_inference_steps is None:
            num_inference_steps = self.generation_config.num_inference_steps
        if guidance_scale is None:
            guidance_scale = self.generation_config.guidance_scale
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 2. Check
        self.check_inputs(
            prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            text_guidance_scale=text_guidance_scale,
            picture_guidance_scale=picture_guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            picture_weights=picture_weights,
            picture_windows=picture_windows,
            num_images_per_prompt=num_images_per_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            picture_prompt_embeds=picture_prompt_embeds,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        text, picture = scales_of(guidance_scale, text_guidance_scale, picture_guidance_scale)
        self._text_guidance_scale, self._picture_guidance_scale = text, picture
        self._guidance_scale = text if text == picture else guidance_scale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        # 3. Timesteps
        device = self._execution_device
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps, device=device)
            num_inference_steps = len(timesteps)
        self._num_timesteps = len(self.scheduler.timesteps)

        # 4. Prompts to conditions
        if prompt_embeds is None:
            planned, embeds = self._reader().plan(
                prompt,
                picture_weights,
                picture_windows,
                num_steps=self._num_timesteps,
                apart=self._guides_apart,
            )
        else:
            planned, embeds = None, prompt_embeds
        num_prompts = len(embeds) if planned is None else len(planned.segments[0].prompts)
        if self.do_classifier_free_guidance:
            negative_prompt_embeds = self._negative(
                negative_prompt, negative_prompt_embeds, num_prompts, num_images_per_prompt
            )
        else:
            negative_prompt_embeds = None
        if free_encoder:
            self.free_encoder()
        embeds = self._rows(embeds, 1)
        if planned is None:
            alone = None
            if self._guides_apart and picture_prompt_embeds is not None:
                alone = self._rows(picture_prompt_embeds, 1)
            negative = negative_prompt_embeds
            planned = branches.given(
                embeds,
                None if negative is None else negative[::num_images_per_prompt],
                alone,
                num_steps=self._num_timesteps,
            )
            embeds = embeds if alone is None else torch.cat([embeds, alone])
        told = [
            branches.join(
                segment,
                embeds,
                negative_prompt_embeds,
                num_images_per_prompt=num_images_per_prompt,
            )
            for segment in planned.segments
        ]

        # 5. Noise
        latents = self.prepare_latents(
            num_prompts * num_images_per_prompt,
            height,
            width,
            dtype=embeds.dtype,
            device=device,
            generator=generator,
            latents=latents,
        )

        # 6. Denoise
        latents = denoise(
            self,
            latents,
            told,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            num_inference_steps=num_inference_steps,
            step_arguments=accepted(self.scheduler.step, eta=eta, generator=generator),
            negative_prompt_embeds=negative_prompt_embeds,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )

        # 7. Decode
        output = self.decode(latents, generator, output_type)
        self.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def decode(
        self, latents: Latents, generator: Generator | None, output_type: str
    ) -> StableDiffusionPipelineOutput:
        """Return what a call's `output_type` asks for of the latents at its end.

        Latents themselves are not judged by a safety checker.

        Raises:
            ConfigError: If the pictures have values that are no numbers.
        """
        if output_type == "latent":
            return _output(latents, None)
        vae: Any = self.vae  # diffusers types its argument as a FloatTensor, which no tensor is
        latents = latents.to(vae.dtype) / vae.config["scaling_factor"]
        images = vae.decode(latents, return_dict=False, generator=generator)[0]
        check_finite(images)
        pictures: Any = self.image_processor.postprocess(images, output_type="pt")
        return self.present(pictures, output_type)

    def present(self, images: safety.Images, output_type: str) -> StableDiffusionPipelineOutput:
        """Return pictures in [0, 1] as `pil`, `np` or `pt`, judged if there is a safety checker."""
        flagged = None
        if self.safety_checker is not None:
            images, flagged = safety.judge(self.safety_checker, self.feature_extractor, images)
        if output_type == "pt":
            return _output(images, flagged)
        pixels = self.image_processor.pt_to_numpy(images)
        if output_type == "np":
            return _output(pixels, flagged)
        return _output(self.image_processor.numpy_to_pil(pixels), flagged)


def sampler_name(scheduler: SchedulerMixin) -> str:
    """Return the short name of a sampler of the released demo, else the name of its class."""
    for name in SAMPLERS:
        if type(named_scheduler(name)) is type(scheduler):
            return name
    return type(scheduler).__name__


def _defaults(unet: UNet2DConditionModel, vae_scale_factor: int) -> GenerationConfig:
    """Return the release's defaults at the size that the U-Net says it was made for, if it does."""
    side = unet.config["sample_size"]
    if not isinstance(side, int):
        return GenerationConfig()
    return GenerationConfig(height=side * vae_scale_factor, width=side * vae_scale_factor)


def _dtype_of(part: str, kwargs: Mapping[str, Any]) -> torch.dtype:
    """Return the precision that `from_pretrained` was asked for, of one part."""
    dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))
    if isinstance(dtype, dict):
        dtype = dtype.get(part, dtype.get("default"))
    return torch.float32 if dtype is None else dtype


def _output(images: Any, flagged: list[bool] | None) -> StableDiffusionPipelineOutput:  # noqa: ANN401 -- list of PIL pictures, array or tensor
    return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)


def accepted(function: Callable[..., object], **arguments: object) -> dict[str, Any]:
    """Return those of the arguments that `function` takes: samplers differ."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
