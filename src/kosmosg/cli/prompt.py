"""Words and pictures as they are typed: a file that is a picture is one, all else is words."""

import stat
from collections.abc import Sequence
from pathlib import Path

from kosmosg.errors import PromptError
from kosmosg.note import Picture

MAX_PICTURES = 64
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def read_parts(arguments: Sequence[str]) -> list[str | Picture]:
    """Return the words and pictures that the arguments are; a file named twice is opened once.

    Raises:
        PromptError: If an argument is the path of a picture that does not exist or is damaged, or
            there are more than any model takes.
    """
    names = [word for word in arguments if _names_a_picture(word)]
    if len(names) > MAX_PICTURES:
        raise PromptError(
            f"the prompt has {len(names)} pictures; more than {MAX_PICTURES} are not even opened"
        )
    opened = {name: open_picture(name) for name in dict.fromkeys(names)}
    return [opened.get(word, word) for word in arguments]


def open_picture(name: str) -> Picture:
    """Return the picture in a file.

    Raises:
        PromptError: If it does not exist, is no picture or is damaged.
    """
    from kosmosg.hashes import of_file
    from kosmosg.images import open_image

    path = Path(name)
    return Picture(path=path, image=open_image(path), sha256=of_file(path))


def _names_a_picture(argument: str) -> bool:
    from kosmosg.images import is_address

    if argument == "-" or is_address(argument):
        what = "an address" if argument != "-" else "standard input"
        raise PromptError(f"{argument[:60]!r} is {what}; save the picture and name the file")
    looks = argument.lower().endswith(SUFFIXES)
    try:
        mode = Path(argument).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        mode = None
    except OSError:  # too long for a name, or may not be looked at
        mode = stat.S_IFREG if looks and len(argument) < 256 else None
    if looks and mode is None:
        raise PromptError(
            f"{argument[-60:]!r} looks like a picture, but there is no such file; check the path "
            "(words must not end like the name of a picture)"
        )
    if mode is None or looks:
        return looks
    if stat.S_ISREG(mode):
        return _holds_a_picture(Path(argument))
    return not stat.S_ISDIR(mode)  # a directory may have the name of a word; a device has not


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
