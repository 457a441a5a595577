"""What a call may ask beyond its prompt: scales, an interval, each picture's weight and window."""

import math
from collections.abc import Sequence
from typing import Any

from kosmosg.errors import ConfigError, PromptError
from kosmosg.sequence import Prompt

Number = float | int
Fractions = Sequence[Number]  # two: where in the schedule something begins and ends
PictureWeights = Sequence[Number] | Sequence[Sequence[Number]]
PictureWindows = Sequence[Fractions] | Sequence[Sequence[Fractions]]
Weights = tuple[float, ...]
Windows = tuple[tuple[float, float], ...]

MAX_WEIGHT = 4.0
WHOLE = (0.0, 1.0)


def scales_of(
    guidance_scale: float, text: float | None, picture: float | None
) -> tuple[float, float]:
    """Return the scales of text and picture guidance; equal ones are the one scale of guidance.

    Raises:
        ConfigError: If one is no number, or they differ and one is below 0.
    """
    scales = {
        "guidance_scale": guidance_scale,
        "text_guidance_scale": guidance_scale if text is None else text,
        "picture_guidance_scale": guidance_scale if picture is None else picture,
    }
    for name, scale in scales.items():
        if not math.isfinite(scale):
            raise ConfigError(f"{name} is {scale}; give a number such as 6")
    _, text, picture = scales.values()
    if text != picture and min(text, picture) < 0:
        raise ConfigError(
            f"text_guidance_scale is {text} and picture_guidance_scale {picture}; "
            "where they differ, give numbers from 0 up"
        )
    return text, picture


def check_guidance(interval: Fractions, rescale: float) -> None:
    """Pass an interval and a rescaling of guidance.

    Raises:
        ConfigError: If they are not fractions.
    """
    try:
        _window(interval)
    except (TypeError, ValueError):
        raise ConfigError(
            f"guidance_interval is {interval}; give two fractions of the schedule, "
            "the smaller first, such as (0.2, 0.8)"
        ) from None
    if not 0 <= rescale <= 1:
        raise ConfigError(f"guidance_rescale is {rescale}; give a number from 0 to 1")


def weights_of(given: PictureWeights | None, prompts: Sequence[Prompt]) -> list[Weights]:
    """Return the weight of each picture of each prompt; 1 where nothing is given.

    Args:
        given: One list of numbers for the only prompt, or a list of such lists.

    Raises:
        PromptError: If they are not as many as the pictures, or not numbers from 0 to 4.
    """
    counts = [_num_pictures(prompt) for prompt in prompts]
    if given is None:
        return [(1.0,) * count for count in counts]
    rows = _rows(given, depth=1, name="picture_weights", counts=counts)
    return [tuple(map(_weight, row)) for row in rows]


def windows_of(given: PictureWindows | None, prompts: Sequence[Prompt]) -> list[Windows]:
    """Return the window of each picture of each prompt; the whole where nothing is given.

    Args:
        given: One list of (start, end) for the only prompt, or a list of such lists.

    Raises:
        PromptError: If they are not as many as the pictures, or not fractions in order.
    """
    counts = [_num_pictures(prompt) for prompt in prompts]
    if given is None:
        return [(WHOLE,) * count for count in counts]
    rows = _rows(given, depth=2, name="picture_windows", counts=counts)
    try:
        return [tuple(map(_window, row)) for row in rows]
    except (TypeError, ValueError):
        raise PromptError(
            f"picture_windows is {given}; give each picture two fractions of the schedule, "
            "the smaller first, such as (0.2, 1.0)"
        ) from None


def steps_in(window: Fractions, num_steps: int) -> range:
    """Return the steps that a window covers; windows that meet share no step and leave none out."""
    return range(round(window[0] * num_steps), round(window[1] * num_steps))


def _num_pictures(prompt: Prompt) -> int:
    return sum(not isinstance(part, str) for part in prompt)


def _rows(given: Any, *, depth: int, name: str, counts: Sequence[int]) -> list[Sequence[Any]]:  # noqa: ANN401 -- nested as deep as it is
    found = _depth(given)
    if not found:
        raise PromptError(f"{name} is {given!r}; give a list, one for each picture")
    nested = found > depth or any(isinstance(one, Sequence) and not one for one in given)
    rows = list(given) if nested else [given]
    if len(rows) != len(counts):
        raise PromptError(
            f"{name} has {len(rows)} lists for {len(counts)} prompts; give one list a prompt"
        )
    for number, (row, count) in enumerate(zip(rows, counts, strict=True), start=1):
        size = len(row) if isinstance(row, Sequence) else 1
        if size != count:
            raise PromptError(
                f"prompt {number} has {count} pictures and {size} {name}; "
                "give one for each picture, in order"
            )
    return rows


def _depth(given: Any) -> int:  # noqa: ANN401 -- nested as deep as it is
    if isinstance(given, str) or not isinstance(given, Sequence):
        return 0
    return 1 + max((_depth(one) for one in given), default=0)


def _weight(value: Any) -> float:  # noqa: ANN401 -- whatever a caller gave
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise PromptError(
            f"a picture's weight is {value}; give a number from 0 (absent) to {MAX_WEIGHT:g}"
        )
    return weight


def _window(value: Any) -> tuple[float, float]:  # noqa: ANN401 -- whatever a caller gave
    start, end = map(float, value)
    if not 0 <= start < end <= 1:
        raise ValueError
    return start, end
