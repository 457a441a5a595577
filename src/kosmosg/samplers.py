"""The samplers that people know Stable Diffusion 1.5 by, by their names."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kosmosg.errors import ConfigError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

_RELEASED = ("dpms", "ddim", "pndm")
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpms_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpms_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpms_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
NAMES = (*_RELEASED, *_OTHERS)


def check_name(name: str) -> None:
    """Pass the name of a sampler.

    Raises:
        ConfigError: If there is none of that name; it says the nearest, and all there are.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, n=1)
        hint = f"did you mean {near[0]}? The" if near else "the"
        raise ConfigError(f"no scheduler named {name[:80]!r}; {hint} names are {', '.join(NAMES)}")


def sampler(name: str, config: Mapping[str, Any], *, num_inference_steps: int) -> "SchedulerMixin":
    """Return the sampler of a name, on the noise schedule that a model was trained with.

    Args:
        name: dpms, ddim and pndm are the released model's, settings and all; the others have the
            settings of their class in diffusers. lcm and tcd want a U-Net distilled for them.
        config: Of the model's own sampler.
        num_inference_steps: That it must be able to make.

    Raises:
        ConfigError: If there is no such sampler, or it cannot make so many steps.

    Source:
        NUMERICS section 10 for the released three.
    """
    import diffusers

    from kosmosg.model.image_decoder import NOISE_SCHEDULE, scheduler

    check_name(name)
    if name in _OTHERS:
        kind, own = _OTHERS[name]
        noise = {key: config.get(key, value) for key, value in NOISE_SCHEDULE.items()}
        made = getattr(diffusers, kind)(**noise, **own)
    else:
        made: Any = scheduler(name)  # pyright: ignore[reportArgumentType] -- one of its names
    try:
        made.set_timesteps(num_inference_steps)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{name} cannot make {num_inference_steps} steps ({reason}); use fewer steps"
        ) from None
    return made
