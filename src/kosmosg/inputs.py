"""What a call of the pipeline is given beside its prompt, and what is wrong with it."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from kosmosg.errors import ConfigError

# A caller's, whose shapes are checked in words: an underscore is not held against other arguments.
GivenEmbeds = Float[Tensor, "_prompts _queries _embed"]
GivenLatents = Float[Tensor, "_batch _channels _height _width"]


def check_sizes(sizes: Sequence[tuple[str, int, int]]) -> None:
    """Pass (name, value, step) whose value is a positive multiple of the step.

    Raises:
        ConfigError: Naming the first that is not.
    """
    for name, value, step in sizes:
        if value < 1 or value % step:
            raise ConfigError(f"{name} is {value}; give a positive multiple of {step}")


def check_one_of(**given: object) -> None:
    """Pass two arguments of which exactly one is given.

    Raises:
        ConfigError: Naming both.
    """
    if sum(value is not None for value in given.values()) != 1:
        raise ConfigError(f"give either {' or '.join(given)}, and not both")


def check_unread(**given: object) -> None:
    """Pass what is said of a prompt's pictures if nothing is: with `prompt_embeds` it is too late.

    Raises:
        ConfigError: Naming what is given.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{name} is given with prompt_embeds, whose pictures are already read; "
                "give the prompt instead"
            )


def check_choice(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Pass names that are known.

    Raises:
        ConfigError: Naming the first that is not, and all that are.
    """
    for value in given:
        if value not in known:
            raise ConfigError(f"{name} has {value!r}; it may be {', '.join(known)}")


def check_embeds(width: int, **given: GivenEmbeds | None) -> None:
    """Pass conditions of this width, all of the shape of the first.

    Raises:
        ConfigError: If they do not fit the U-Net or one another.
    """
    present = [(name, embeds) for name, embeds in given.items() if embeds is not None]
    for name, embeds in present:
        if embeds.shape[-1] != width:
            raise ConfigError(
                f"{name} is {embeds.shape[-1]} wide and this U-Net's condition {width}; "
                "use the embeds of a model with the same decoder"
            )
    if given["prompt_embeds"] is None:
        return
    first, shape = present[0][0], tuple(present[0][1].shape)
    for name, embeds in present[1:]:
        if embeds.shape != shape:
            raise ConfigError(
                f"{first} is {shape} and {name} {tuple(embeds.shape)}; give both the same shape"
            )
