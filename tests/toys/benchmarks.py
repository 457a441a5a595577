"""DreamBench and COCO in their true layouts, at toy size."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from kosmosg.evaluate.dreambench import facts


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return a picture that looks like those of nearby seeds times ten."""
    rng = np.random.default_rng(seed // 10)
    blocks = rng.integers(0, 256, (5, 5, 3)).astype(np.float64)
    blocks += 20 * np.random.default_rng(seed).standard_normal(blocks.shape)
    image = Image.fromarray(blocks.clip(0, 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.BICUBIC)


def save_dreambench(folder: Path, *, pictures: int = 2) -> Path:
    """Write as many pictures of each subject; the chosen one is among them."""
    known = facts()
    for number, (subject, chosen) in enumerate(sorted(known.reference.items())):
        names = {chosen, *(f"{i:02d}" for i in range(6))}
        place = folder / subject
        place.mkdir(parents=True)
        for index, name in enumerate(sorted(names, key=lambda one: one != chosen)[:pictures]):
            picture(10 * number + index, (48, 40)).save(place / f"{name}.jpg", quality=95)
    return folder


def save_coco(folder: Path, *, pictures: int = 12) -> Path:
    """Write pictures with two captions each."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    images = []
    for number in range(pictures):
        name = f"COCO_val2014_{number:012d}.jpg"
        picture(10 * number, (60, 40 + number)).save(folder / "val2014" / name)
        images.append({"id": number, "file_name": name})
    words = ["a dog", "a red cat", "a hat on a dog", "a blue creature"]
    annotations = [
        {"id": 2 * n + i, "image_id": n, "caption": f"{words[(n + i) % 4]} "}
        for n in range(pictures)
        for i in (0, 1)
    ]
    data = {"images": images, "annotations": annotations}
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(data))
    return folder
