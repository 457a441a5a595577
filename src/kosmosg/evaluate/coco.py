"""COCO: pictures from thirty thousand captions, and their Fréchet distance to the real ones."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm import tqdm

from kosmosg.data.mixture import seed_of
from kosmosg.errors import DataError, PromptError
from kosmosg.evaluate.features import BATCH, Encoder
from kosmosg.evaluate.inception import NUM_FEATURES
from kosmosg.evaluate.metrics import Moments
from kosmosg.evaluate.pictures import Task, read, seeds_sha256
from kosmosg.evaluate.result import Row
from kosmosg.images import open_image

ProtocolName = Literal["as-released", "clean"]
NUM_CAPTIONS = 30_000
_REAL_SIDE = 256
_NUM_SHOWN = 64
_ANNOTATIONS = Path("annotations/captions_val2014.json")
_PICTURES = Path("val2014")


@dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """What is drawn, and which files are the real pictures.

    Source:
        NUMERICS section 11.
    """

    protocol: ProtocolName
    tasks: Sequence[Task]
    real: Sequence[Path]

    def rules(self) -> dict[str, str]:
        """Return the protocol in words, as a result names it."""
        return {
            "name": self.protocol,
            **(
                {
                    "captions": "random.sample of all annotations, seed 0",
                    "real_pictures": "all of val2014, shorter side 256 without antialias, centre",
                    "drawn_pictures": "as drawn",
                }
                if self.protocol == "as-released"
                else {
                    "captions": "one each of as many pictures, random.sample, seed 0",
                    "real_pictures": "those that the captions are of, centre square",
                    "drawn_pictures": "as drawn",
                }
            ),
        }

    def sums(self) -> dict[str, str]:
        """Return the sha256 of the real pictures' names, of all captions, and of the seeds."""
        names, told = hashlib.sha256(), hashlib.sha256()
        for path in self.real:
            names.update(f"{path.name} {path.stat().st_size}\n".encode())
        for task in self.tasks:
            told.update(f"{task.name} {task.prompt}\n".encode())
        return {
            "pictures": names.hexdigest(),
            "prompts": told.hexdigest(),
            "seeds": seeds_sha256(self.tasks),
        }

    def first(self) -> list[Row]:
        """Return the first pictures for the eye; no one picture has an FID."""
        return [
            Row(name=f"{task.name}-0", subject="", text=str(task.prompt), scores={})
            for task in self.tasks[:_NUM_SHOWN]
        ]


def open_benchmark(
    folder: Path, protocol: ProtocolName, *, num_captions: int = NUM_CAPTIONS
) -> Benchmark:
    """Return the captions to draw and the pictures to compare with.

    Args:
        folder: Of COCO 2014: `annotations/captions_val2014.json` and `val2014/`.
        protocol: Which captions, and which pictures.
        num_captions: How many.

    Raises:
        DataError: If a file is missing, or there are fewer captions.
    """
    annotations, names = _read(folder / _ANNOTATIONS)
    pictures = folder / _PICTURES
    if protocol == "clean":
        first: dict[int, dict[str, object]] = {}
        for one in annotations:
            first.setdefault(int(str(one["image_id"])), one)
        annotations = list(first.values())
    if len(annotations) < num_captions:
        raise DataError(
            f"{folder / _ANNOTATIONS} has {len(annotations)} captions to draw from, and"
            f" {num_captions} are asked for; ask for fewer (--limit)"
        )
    chosen = random.Random(0).sample(annotations, num_captions)
    tasks = [
        Task(
            name=f"{number // 1000:02d}/{number:05d}",
            prompt=str(one["caption"]).strip(),
            seeds=(seed_of("coco", number),),
        )
        for number, one in enumerate(chosen)
    ]
    if protocol == "clean":
        real = [pictures / names[int(str(one["image_id"]))] for one in chosen]
    else:
        real = sorted(pictures.glob("*.jpg"))
    missing = [path for path in real if not path.is_file()]
    if missing or not real:
        raise DataError(
            f"{missing[0] if missing else pictures} is missing; unpack COCO's val2014.zip there"
        )
    return Benchmark(protocol=protocol, tasks=tasks, real=real)


def moments_of_real(benchmark: Benchmark, encoder: Encoder) -> Moments:
    """Return the statistics of the real pictures' features.

    Raises:
        DataError: If a picture cannot be read.
    """
    view = _as_released if benchmark.protocol == "as-released" else _centre
    return _moments((view(_opened(path)) for path in benchmark.real), len(benchmark.real), encoder)


def moments_of_drawn(benchmark: Benchmark, folder: Path, encoder: Encoder) -> Moments:
    """Return the statistics of the drawn pictures' features.

    Raises:
        PromptError: If one is missing or damaged.
    """
    images = (image for task in benchmark.tasks for image in read(task, folder))
    return _moments(images, len(benchmark.tasks), encoder)


def _moments(images: Iterable[Image.Image], count: int, encoder: Encoder) -> Moments:
    moments = Moments.of_none(NUM_FEATURES)
    waiting: list[Image.Image] = []
    with tqdm(total=count, unit="picture", desc="features", dynamic_ncols=True) as bar:
        for image in images:
            waiting.append(image)
            if len(waiting) == BATCH:
                moments.add(encoder.pictures(waiting))
                bar.update(len(waiting))
                waiting.clear()
        if waiting:
            moments.add(encoder.pictures(waiting))
            bar.update(len(waiting))
    return moments


def _centre(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _as_released(image: Image.Image) -> Image.Image:
    """Return a picture at 256 x 256 as torchvision of 2023 resized tensors: without antialias."""
    import numpy as np
    import torch

    width, height = image.size
    short = min(width, height)
    size = (_REAL_SIDE * height // short, _REAL_SIDE * width // short)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
    top, left = (round((side - _REAL_SIDE) / 2) for side in size)
    square = resized[0, :, top : top + _REAL_SIDE, left : left + _REAL_SIDE]
    # torchmetrics' `normalize=True` cuts off what lies between two bytes.
    return Image.fromarray((square * 255).byte().permute(1, 2, 0).numpy())


def _read(path: Path) -> tuple[list[dict[str, object]], dict[int, str]]:
    """Return the annotations and the name of each picture's file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        annotations = [
            {"image_id": int(one["image_id"]), "caption": str(one["caption"])}
            for one in data["annotations"]
        ]
        names = {int(one["id"]): Path(str(one["file_name"])).name for one in data["images"]}
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; unpack COCO's annotations_trainval2014.zip beside val2014/"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error}; unpack it again") from None
    return annotations, names


def _opened(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except PromptError as error:
        raise DataError(str(error)) from None
