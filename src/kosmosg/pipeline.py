"""KosmosGPipeline: prompts of words and pictures to pictures, as a diffusers pipeline."""

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from kosmosg import config, release
from kosmosg.encoding import Embeds, PromptEncoder
from kosmosg.errors import CheckpointError, ConfigError, PromptError
from kosmosg.guidance import guide
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import SchedulerName
from kosmosg.model.image_decoder import scheduler as named_scheduler
from kosmosg.model.kosmosg import KosmosG
from kosmosg.model.mllm import MLLM
from kosmosg.prompts import Prompts, as_batch, check_prompt, is_empty
from kosmosg.release import GenerationConfig
from kosmosg.sequence import Prompt
from kosmosg.tokenizer import Tokenizer

Latents = Float[Tensor, "batch channels height width"]
Condition = Float[Tensor, "rows queries embed"]
# A caller's, whose shapes are checked in words: an underscore is not held against other arguments.
GivenEmbeds = Float[Tensor, "_prompts _queries _embed"]
GivenLatents = Float[Tensor, "_batch _channels _height _width"]
Generator = torch.Generator | list[torch.Generator]
Tensors = dict[str, Tensor]
StepCallback = (
    Callable[["KosmosGPipeline", int, Tensor, Tensors], Tensors]
    | PipelineCallback
    | MultiPipelineCallbacks
)
SAMPLERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class KosmosGPipeline(DiffusionPipeline):
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
        generation_config: What None means in a call; by default what the released demo uses.
    """

    model_cpu_offload_seq = "mllm->aligner->unet->vae"
    _optional_components: ClassVar[list[str]] = ["tokenizer"]
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

    def __init__(
        self,
        *,
        mllm: MLLM | None,
        aligner: AlignerNet | None,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        tokenizer: Tokenizer,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(mllm=mllm, aligner=aligner, unet=unet, vae=vae, scheduler=scheduler)
        # A component, but not of a kind that diffusers can save or load: see from_pretrained.
        self.register_to_config(tokenizer=(None, None))
        self.tokenizer = tokenizer
        self.generation_config = generation_config or GenerationConfig()
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._encoder = PromptEncoder()
        self._guidance_scale = self.generation_config.guidance_scale
        self._cross_attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._interrupt = False

    # What a callback may read, and through the underscored names set, between two steps.
    guidance_scale = property(lambda self: self._guidance_scale)
    do_classifier_free_guidance = property(lambda self: self._guidance_scale > 1)
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
            kwargs: As diffusers takes them: `dtype` (float32 unless given), `variant`, components
                that replace those of the directory. Nothing is ever downloaded.

        Raises:
            CheckpointError: If the directory, a file or a weight is missing, damaged or of another
                format version.
        """
        directory = release.find(pretrained_model_name_or_path)
        kwargs.setdefault("generation_config", release.read_generation_config(directory))
        variant = kwargs.get("variant")
        parts = [name for name in release.PARTS if name not in kwargs]
        release.check_files(directory, parts, variant=variant)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        if "tokenizer" not in kwargs:
            kwargs["tokenizer"] = Tokenizer.from_pretrained(directory / "tokenizer")
        try:
            pipe = super().from_pretrained(str(directory), local_files_only=True, **kwargs)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot load {directory}: {_line(error)}; {release.remedy(directory)}"
            ) from error
        keys = {name: getattr(pipe, name).state_dict() for name in parts}
        release.check_weights(directory, keys, variant=variant)
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
            CheckpointError: If a file cannot be written; then what was there stays as it was.
        """
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
        return cast(KosmosGPipeline, super().from_pipe(pipeline, **kwargs))

    def check_inputs(
        self,
        prompt: Prompts | None,
        *,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        negative_prompt: Prompts | None = None,
        prompt_embeds: GivenEmbeds | None = None,
        negative_prompt_embeds: GivenEmbeds | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
    ) -> None:
        """Pass arguments that a call can work with; `encode_prompt` checks what a prompt says.

        Raises:
            ConfigError: Naming the argument, its value and what it may be.
        """
        for name, value, step in (
            ("height", height, self.vae_scale_factor),
            ("width", width, self.vae_scale_factor),
            ("num_inference_steps", num_inference_steps, 1),
            ("num_images_per_prompt", num_images_per_prompt, 1),
        ):
            if value < 1 or value % step:
                raise ConfigError(f"{name} is {value}; give a positive multiple of {step}")
        if not math.isfinite(guidance_scale):
            raise ConfigError(f"guidance_scale is {guidance_scale}; give a number such as 6")
        if (prompt is None) == (prompt_embeds is None):
            raise ConfigError("give either prompt or prompt_embeds, and not both")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ConfigError("give either negative_prompt or negative_prompt_embeds, not both")
        self._check_embeds(prompt_embeds, negative_prompt_embeds)
        _check_choice("output_type", [output_type], OUTPUT_TYPES)
        _check_choice(
            "callback_on_step_end_tensor_inputs",
            callback_on_step_end_tensor_inputs,
            self._callback_tensor_inputs,
        )

    def _check_embeds(self, embeds: GivenEmbeds | None, negative: GivenEmbeds | None) -> None:
        width = self.unet.config["cross_attention_dim"]
        for name, given in (("prompt_embeds", embeds), ("negative_prompt_embeds", negative)):
            if given is not None and given.shape[-1] != width:
                raise ConfigError(
                    f"{name} is {given.shape[-1]} wide and this U-Net's condition {width}; "
                    "use the embeds of a model with the same decoder"
                )
        if embeds is not None and negative is not None and embeds.shape != negative.shape:
            raise ConfigError(
                f"prompt_embeds is {tuple(embeds.shape)} and negative_prompt_embeds "
                f"{tuple(negative.shape)}; give both the same shape"
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
    ) -> tuple[Condition, Condition | None]:
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

        Raises:
            PromptError: If a prompt cannot be read, or the negative prompts are not as many.

        Source:
            NUMERICS section 7; the released code repeats the whole batch instead (a b a b).
        """
        if prompt_embeds is None:
            prompts = as_batch([] if prompt is None else prompt)
            self._check_prompts(prompts)
            prompt_embeds = self._encode(prompts)
        prompt_embeds = self._rows(prompt_embeds, num_images_per_prompt)
        if not do_classifier_free_guidance:
            return prompt_embeds, None
        if negative_prompt_embeds is None:
            negative = [[""]] if negative_prompt is None else as_batch(negative_prompt)
            self._check_prompts([one for one in negative if not is_empty(one)])
            negative_prompt_embeds = self._encode(negative)
            if len(negative) == 1:
                num_prompts = len(prompt_embeds) // num_images_per_prompt
                negative_prompt_embeds = negative_prompt_embeds.expand(num_prompts, -1, -1)
        negative_prompt_embeds = self._rows(negative_prompt_embeds, num_images_per_prompt)
        if len(negative_prompt_embeds) != len(prompt_embeds):
            raise PromptError(
                f"{len(prompt_embeds)} pictures have {len(negative_prompt_embeds)} negative "
                "conditions; give one negative prompt for all, or one for each prompt"
            )
        return prompt_embeds, negative_prompt_embeds

    def _check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            check_prompt(prompt, self.tokenizer, max_pictures=self.generation_config.max_pictures)

    def _encode(self, prompts: Sequence[Prompt]) -> Embeds:
        if self.mllm is None or self.aligner is None:
            raise ConfigError(
                "this pipeline was made without its mllm or aligner; "
                "give prompt_embeds and negative_prompt_embeds, or load the whole model"
            )
        model = KosmosG(mllm=self.mllm, aligner=self.aligner)
        return self._encoder.encode(prompts, model, self.tokenizer, self._execution_device)

    def _rows(self, embeds: Embeds, num_images_per_prompt: int) -> Condition:
        embeds = embeds.to(self._execution_device, self.unet.dtype)
        return embeds.repeat_interleave(num_images_per_prompt, dim=0)

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
        negative_prompt: Prompts | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | None = None,
        latents: GivenLatents | None = None,
        prompt_embeds: GivenEmbeds | None = None,
        negative_prompt_embeds: GivenEmbeds | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:  # noqa: ANN401 -- ImagePipelineOutput, or a tuple where return_dict is False
        """Return `num_images_per_prompt` pictures of each prompt, one prompt after another.

        The arguments are StableDiffusionPipeline's; what is None is the model's own default.

        Args:
            prompt: Words, a list of words and pictures, or a list of such lists.
            guidance_scale: 1 and below skip the null prompt's half of the work.
            timesteps: The sampler's own, instead of `num_inference_steps` of them.
            eta: Noise that DDIM adds in each step, 0 to 1; other samplers ignore it.
            generator: Where noise comes from: one for all pictures, or one for each.
            output_type: `pil`, `np` or `pt` (in [0, 1]), or `latent` (not decoded).
            callback_on_step_end: Called after each step with the pipeline, the step's number, its
                timestep and the tensors asked for; returns those that it replaces.

        Raises:
            PromptError: If a prompt cannot be read.
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
            num_images_per_prompt=num_images_per_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        # 3. Prompts to conditions
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            negative_prompt,
            num_images_per_prompt,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )

        # 4. Timesteps and noise
        device = self._execution_device
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps, device=device)
            num_inference_steps = len(timesteps)
        latents = self.prepare_latents(
            len(prompt_embeds),
            height,
            width,
            dtype=prompt_embeds.dtype,
            device=device,
            generator=generator,
            latents=latents,
        )

        # 5. Denoise
        latents = self._denoise(
            latents,
            prompt_embeds,
            negative_prompt_embeds,
            num_inference_steps=num_inference_steps,
            step_arguments=_accepted(self.scheduler.step, eta=eta, generator=generator),
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )

        # 6. Decode
        images = self._decode(latents, generator, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        latents: Latents,
        prompt_embeds: Condition,
        negative_prompt_embeds: Condition | None,
        *,
        num_inference_steps: int,
        step_arguments: dict[str, Any],
        callback: StepCallback | None,
        callback_inputs: Sequence[str],
    ) -> Latents:
        """Return the latents after all steps, or as they were when interrupted."""
        if negative_prompt_embeds is not None:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        timesteps, order = self.scheduler.timesteps, self.scheduler.order
        num_warmup_steps = len(timesteps) - num_inference_steps * order
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=num_inference_steps) as progress_bar:  # pyright: ignore[reportCallIssue]
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                noise_pred = self._predict_noise(latents, timestep, prompt_embeds)
                latents = self.scheduler.step(
                    noise_pred, timestep, latents, **step_arguments, return_dict=False
                )[0]
                if callback is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    asked = {name: tensors[name] for name in callback_inputs}
                    tensors |= callback(self, index, timestep, asked)
                    latents, prompt_embeds = tensors["latents"], tensors["prompt_embeds"]
                done = index + 1
                if done == len(timesteps) or (done > num_warmup_steps and done % order == 0):
                    progress_bar.update()
        return latents

    def _predict_noise(
        self, latents: Latents, timestep: Tensor, prompt_embeds: Condition
    ) -> Latents:
        """Return the guided prediction; with guidance `prompt_embeds` has the null half first."""
        guided = self.do_classifier_free_guidance
        noisy_latents = torch.cat([latents] * 2) if guided else latents
        noise_pred = self.unet(
            self.scheduler.scale_model_input(noisy_latents, timestep),
            timestep,
            encoder_hidden_states=prompt_embeds,
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0]
        if not guided:
            return noise_pred
        null_pred, noise_pred = noise_pred.chunk(2)
        return guide(null_pred, noise_pred, guidance_scale=self.guidance_scale)

    def _decode(self, latents: Latents, generator: Generator | None, output_type: str) -> Any:  # noqa: ANN401 -- list of PIL pictures, array or tensor
        if output_type == "latent":
            return latents
        vae: Any = self.vae  # diffusers types its argument as a FloatTensor, which no tensor is
        latents = latents / vae.config["scaling_factor"]
        images = vae.decode(latents, return_dict=False, generator=generator)[0]
        return self.image_processor.postprocess(images, output_type=output_type)


def sampler_name(scheduler: SchedulerMixin) -> str:
    """Return the short name of a sampler of the released demo, else the name of its class."""
    for name in SAMPLERS:
        if type(named_scheduler(name)) is type(scheduler):
            return name
    return type(scheduler).__name__


def _accepted(function: Callable[..., object], **arguments: object) -> dict[str, Any]:
    """Return those of the arguments that `function` takes: samplers differ."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def _check_choice(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            raise ConfigError(f"{name} has {value!r}; it may be {', '.join(known)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
