"""Words and pictures as they are typed: a file that is a picture is one, all else is words."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kosmosg.errors import PromptError
from kosmosg.note import Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def read_parts(arguments: Sequence[str]) -> list[str | Picture]:
    """Return the words and pictures that the arguments are.

    Raises:
        PromptError: If an argument is the path of a picture that does not exist or is damaged.
    """
    return [open_picture(word) if _names_a_picture(word) else word for word in arguments]


def open_picture(name: str) -> Picture:
    """Return the picture in a file.

    Raises:
        PromptError: If it does not exist, is no picture or is damaged.
    """
    from kosmosg.images import open_image

    path = Path(name)
    image = open_image(path)
    with path.open("rb") as file:
        return Picture(
            path=path, image=image, sha256=hashlib.file_digest(file, "sha256").hexdigest()
        )


def _names_a_picture(argument: str) -> bool:
    looks = argument.lower().endswith(SUFFIXES)
    try:
        exists = Path(argument).is_file()
    except OSError:  # too long for a name
        exists = False
    if looks and not exists:
        raise PromptError(
            f"{argument!r} looks like a picture, but there is no such file; check the path "
            "(words must not end like the name of a picture)"
        )
    return exists and (looks or _holds_a_picture(Path(argument)))


def _holds_a_picture(path: Path) -> bool:
    """Return whether a file without a picture's suffix starts like a picture."""
    from PIL import Image, UnidentifiedImageError

    from kosmosg.images import FORMATS

    try:
        with Image.open(path, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # a picture, but a bad one: opening it says what is wrong
