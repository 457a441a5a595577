"""A model on its device: loading it, what a picture takes of its memory, LoRA and ControlNets."""

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kosmosg import drawing, memory, safety
from kosmosg.errors import ConfigError
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.serve.batch import num_rows
from kosmosg.serve.tasks import ServeConfig, Slot, Task

CPU_BATCH_BYTES = 2 * 2**30
_PART_OF_GPU = 0.8


class Device:
    """The model, loaded; only the device thread calls what computes.

    Args:
        config: What the server was started with.

    Raises:
        KosmosGError: If the model, a LoRA or a ControlNet cannot be loaded.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.load: dict[str, Any] = {"dtype": config.dtype, "device": config.device}
        if config.quantize is not None:
            self.load["quantize"] = config.quantize
        self.pipe = drawing.load(config.model, **self.load)
        if config.safety_checker is not None:
            safety.attach(self.pipe, config.safety_checker)
        self.pipe.set_progress_bar_config(disable=True)
        side = max(self.pipe.generation_config.width, self.pipe.generation_config.height)
        if config.max_side is not None and config.max_side < side:
            raise ConfigError(f"max_side is {config.max_side} and this model's own side {side}")
        for name, file in config.loras.items():
            self.pipe.load_lora_weights(file.path, adapter_name=name)
        self.controlnets: dict[str, Any] = {}
        for name, file in config.controlnets.items():
            from kosmosg.controlnet import load_controlnet

            self.controlnets[name] = load_controlnet(file.path.parent, self.pipe)
        self._lora: tuple[str, float] | None = None
        if config.loras:
            self.pipe.disable_lora()
        self.row_bytes = measure_row(self.pipe)
        self.batch_bytes = config.batch_bytes or _room(self.pipe.device)

    def bytes_of(self, task: Task) -> int:
        """Return what a pass of the U-Net takes for one picture, at most."""
        defaults = self.pipe.generation_config
        pixels = task.arguments["width"] * task.arguments["height"]
        return round(self.row_bytes * num_rows(task) * pixels / (defaults.width * defaults.height))

    def wear(self, lora: tuple[str, float] | None) -> None:
        """Have the U-Net draw under a LoRA and its scale, or under none."""
        if lora == self._lora:
            return
        if lora is None:
            self.pipe.disable_lora()
        else:
            self.pipe.enable_lora()
            self.pipe.set_adapters([lora[0]], [lora[1]])
        self._lora = lora

    def encode(self, task: Task) -> None:
        """Give a task the condition that all its pictures share.

        Raises:
            PromptError: If the model cannot read its prompt.
        """
        if task.condition is None:
            if task.drawing.seeds:
                task.condition = drawing.encode_for(self.pipe, task.drawing)
            else:
                negative = task.arguments.get("negative_prompt")
                task.condition = drawing.encode(self.pipe, task.drawing.prompt, negative)

    def paint(self, slot: Slot, each_step: Callable[..., dict[str, Any]]) -> Any:  # noqa: ANN401 -- diffusers' output
        """Return a pipeline's output with a picture on a canvas, drawn alone by diffusers' loops.

        Args:
            slot: Which picture.
            each_step: As diffusers' `callback_on_step_end`.

        Raises:
            KosmosGError: If the canvas and the settings do not go together.
        """
        from kosmosg.canvas import (
            Canvas,
            fit,
            paint,
        )  # five pipelines of diffusers: a second of the start

        arguments, condition = slot.task.arguments, slot.task.condition
        assert condition is not None
        size = (arguments["width"], arguments["height"])
        init, mask = arguments.get("init_image"), arguments.get("mask")
        names = {str(file.path): name for name, file in self.config.controlnets.items()}
        canvas = Canvas(
            init_image=None if init is None else fit(init.image, size),
            mask=None if mask is None else mask.image.convert("L"),
            controlnets=[
                self.controlnets[names[str(file.path)]] for file in arguments.get("controlnets", ())
            ],
            control_images=[fit(one.image, size) for one in arguments.get("control_images", ())],
        )
        pipe = copy.copy(self.pipe)  # other threads ask ours for its sampler
        pipe.scheduler = drawing.sampler_of(self.pipe, arguments.get("scheduler"), arguments)
        return paint(
            pipe,
            canvas,
            width=size[0],
            height=size[1],
            num_inference_steps=arguments["num_inference_steps"],
            guidance_scale=arguments["guidance_scale"],
            prompt_embeds=condition.prompt_embeds,
            negative_prompt_embeds=condition.negative_prompt_embeds,
            generator=[torch.Generator().manual_seed(slot.seed)],
            callback_on_step_end=each_step,
        )


@torch.no_grad()
def measure_row(pipe: KosmosGPipeline) -> int:
    """Return the bytes that the U-Net takes at its worst moment for one row of the model's size.

    Measured, for no formula knows which attention a device uses. The first pass is a warm-up too.
    """
    side = pipe.vae_scale_factor
    config = pipe.generation_config
    shape = (1, pipe.unet.config["in_channels"], config.height // side, config.width // side)
    queries = (1, 2, pipe.unet.config["cross_attention_dim"])
    given: dict[str, Any] = {"device": pipe.device, "dtype": pipe.unet.dtype}
    latents, said = torch.zeros(shape, **given), torch.zeros(queries, **given)
    if pipe.device.type == "cuda":
        before = torch.cuda.memory_allocated(pipe.device)
        torch.cuda.reset_peak_memory_stats(pipe.device)
        pipe.unet(latents, 500, encoder_hidden_states=said)
        return torch.cuda.max_memory_allocated(pipe.device) - before
    if pipe.device.type != "cpu":
        pipe.unet(latents, 500, encoder_hidden_states=said)
        return latents.nbytes * 4096
    with Held() as held:
        pipe.unet(latents, 500, encoder_hidden_states=said)
    return held.most


class Held(TorchDispatchMode):
    """Watches how many bytes the tensors made under it hold, together; `most` is the peak.

    The allocators of a CPU and of torch's profiler do not say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 -- of any operation
        """Run an operation and note what it made."""
        del types
        made = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(made):
            if storage._cdata not in given:  # else a view of it, or written into
                given.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _drop(self, size: int) -> None:
        self.now -= size


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()


def _room(device: torch.device) -> int:
    memory.give_back()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return round(free * _PART_OF_GPU)
    return CPU_BATCH_BYTES
