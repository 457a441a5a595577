"""Look in at every step, and stop early: `python examples/watch.py [MODEL]`."""

import sys

from torch import Tensor

from kosmosg import KosmosGPipeline

model = sys.argv[1] if len(sys.argv) > 1 else "nano"


def watch(
    pipe: KosmosGPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Print how far the latents are from plain noise, whose spread is 1."""
    spread = tensors["latents"].std().item()
    print(f"step {step + 1} of {pipe.num_timesteps}, t = {timestep:.0f}, spread {spread:.2f}")
    pipe._interrupt = step == 9  # ten steps are enough for today
    return {}  # or the tensors to go on with


pipe = KosmosGPipeline.from_pretrained(model)
pipe.set_progress_bar_config(disable=True)
image = pipe("a red creature in the snow", callback_on_step_end=watch).images[0]
image.save("watch.png")
