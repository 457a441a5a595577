"""Arguments that anybody may have written, compared with the functions that are to take them."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kosmosg.errors import ConfigError
from kosmosg.note import MAX_SIDE, MAX_STEPS

_LAX = ConfigDict(arbitrary_types_allowed=True)
# Of drawing.load, drawing.draw and the pipeline's call: no settings, or elsewhere in a note.
_NO_SETTINGS = (
    *("self", "model", "encoder", "pipe", "prompt", "seeds", "encoded", "free_encoder"),
    *("timesteps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"),
    *("arguments", "prompt_embeds", "negative_prompt_embeds", "picture_prompt_embeds"),
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs", "cross_attention_kwargs"),
)


def checked(arguments: Mapping[str, Any], *takers: Callable[..., Any]) -> dict[str, Any]:
    """Return arguments that anybody may have written, after comparing them with the functions.

    Args:
        arguments: By name.
        takers: The functions that between them take these.

    Raises:
        ConfigError: If a name is no setting, a value is of another kind than annotated, or a
            number is beyond what can be drawn.
    """
    hints: dict[str, Any] = {}
    for taker in reversed(takers):
        own = typing.get_type_hints(inspect.unwrap(taker), include_extras=True)
        hints |= {name: own[name] for name in inspect.signature(taker).parameters if name in own}
    valid = {}
    for name, value in arguments.items():
        if name not in hints or name in _NO_SETTINGS:
            raise ConfigError(
                f"{name[:80]!r} is no setting of this kosmosg; use the one that knew it"
            )
        try:
            valid[name] = TypeAdapter(hints[name], config=_LAX).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"{name} = {str(value)[:80]!r}: {reason}") from None
    for name, most in (
        ("width", MAX_SIDE),
        ("height", MAX_SIDE),
        ("num_inference_steps", MAX_STEPS),
    ):
        if name in valid and not 1 <= (valid[name] or 1) <= most:
            raise ConfigError(f"{name} is {valid[name]}; give 1 to {most}")
    return valid
