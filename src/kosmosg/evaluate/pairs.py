"""UNO's prompts of two subjects: its file, and its sentences with pictures in place of nouns."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from kosmosg.errors import DataError, PromptError
from kosmosg.images import open_image
from kosmosg.sequence import Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A prompt of two subjects.

    Args:
        text: In words alone.
        subjects: The folders of their pictures.
        prompt: With pictures in place of their nouns.
    """

    text: str
    subjects: tuple[str, ...]
    prompt: Prompt

    @property
    def template(self) -> str:
        """The words of the prompt, `{}` for a picture."""
        return " ".join(part if isinstance(part, str) else "{}" for part in self.prompt)


def read_pairs(path: Path, folder: Path, nouns: Mapping[str, str]) -> list[Pair]:
    """Return the prompts of `dreambench_multiip.json`.

    It is a list of objects with a `prompt` and, in `image_paths`, pictures such as
    `./dreambooth/dataset/dog/02.jpg`, of which the last two parts count.

    Args:
        path: Of the file.
        folder: Of the subjects' folders.
        nouns: Of the subjects.

    Raises:
        DataError: If it has another structure, or names what DreamBench does not have.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        told = [(str(item["prompt"]), [str(one) for one in item["image_paths"]]) for item in items]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path} as UNO's pairs: {error}; get it again") from None
    pairs: list[Pair] = []
    images: dict[Path, Image.Image] = {}
    for text, shown in told:
        places = [PurePosixPath(one) for one in shown]
        subjects = tuple(place.parent.name for place in places)
        if unknown := [one for one in subjects if one not in nouns]:
            raise DataError(f"{path}: {unknown[0]!r} is no subject of DreamBench; get it again")
        paths = [folder / place.parent.name / place.name for place in places]
        for one in paths:
            images[one] = images.get(one) or opened(one)
        prompt = interleaved(text, [nouns[one] for one in subjects], [images[one] for one in paths])
        pairs.append(Pair(text=text, subjects=subjects, prompt=prompt))
    return pairs


def interleaved(text: str, nouns: Sequence[str], pictures: Sequence[Image.Image]) -> Prompt:
    """Return a sentence with pictures in place of their nouns, whose articles go too.

    Alike nouns are told apart by their order.

    Raises:
        DataError: If a noun is not in the sentence as often as it is shown.

    Example:
        >>> dog = Image.new("RGB", (8, 8)); hat = Image.new("RGB", (8, 8))
        >>> [x if isinstance(x, str) else "picture" for x in
        ...  interleaved("a dog and a red hat in the snow", ["dog", "hat"], [dog, hat])]
        ['picture', 'and a red', 'picture', 'in the snow']
    """
    found: list[tuple[int, int, Image.Image]] = []
    for noun, picture in zip(nouns, pictures, strict=True):
        pattern = rf"\b(?:(?:a|an|the)\s+)?{re.escape(noun)}\b"
        free = [
            match.span()
            for match in re.finditer(pattern, text, re.IGNORECASE)
            if not any(match.start() < end and start < match.end() for start, end, _ in found)
        ]
        if not free:
            raise DataError(
                f"{text!r} does not name {noun!r} as often as it is shown; each picture in"
                " image_paths needs its noun in the prompt"
            )
        found.append((*free[0], picture))
    parts: Prompt = []
    last = 0
    for start, end, picture in sorted(found, key=lambda one: one[0]):
        parts += [*([before] if (before := text[last:start].strip()) else []), picture]
        last = end
    return [*parts, *([after] if (after := text[last:].strip()) else [])]


def opened(path: Path) -> Image.Image:
    """Return a picture of the data set.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        return open_image(path)
    except PromptError as error:
        raise DataError(str(error)) from None
