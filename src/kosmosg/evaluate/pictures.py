"""Drawing a benchmark's pictures: by batch, over ranks, and on from wherever a run stopped."""

import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from tqdm import tqdm

from kosmosg import config
from kosmosg.errors import ConfigError
from kosmosg.images import open_image
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.samplers import sampler
from kosmosg.sequence import Prompt

RUN_FILE = "run.json"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_POLL_S = 1.0
# What a result says of the noise.
SEEDS = {
    "seed": "each picture its own, of its subject, prompt and number",
    "released": "0 anew for every batch",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A prompt and the seeds of its pictures, which are `name`-0, `name`-1 and so on."""

    name: str
    prompt: Prompt | str
    seeds: tuple[int, ...]

    def paths(self, folder: Path) -> list[Path]:
        """Return where its pictures lie."""
        return [folder / f"{self.name}-{number}.png" for number in range(len(self.seeds))]


def seeds_sha256(tasks: Iterable[Task]) -> str:
    """Return a sha256 of the seeds of all pictures."""
    total = hashlib.sha256()
    for task in tasks:
        total.update(f"{task.name} {task.seeds}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How pictures are drawn.

    `batch` is in prompts. `noise` says where a picture's noise comes from: `seed`, its own seed,
    whatever its batch; `released`, as in the release, whose batches all began with the same one.
    """

    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    batch: int
    noise: Literal["seed", "released"] = "seed"


def draw(
    pipe: KosmosGPipeline,
    tasks: Sequence[Task],
    folder: Path,
    settings: DrawConfig,
    *,
    rank: int = 0,
    num_ranks: int = 1,
) -> None:
    """Draw this rank's share of the pictures that are not there yet.

    A batch is drawn whole or, if all its pictures are there, not at all, so that a run that was
    stopped ends with the same pictures as one that was not. Those that are there stay as they are.

    Raises:
        ConfigError: If a setting cannot work.
        PromptError: If the model cannot read a prompt.
    """
    pipe.scheduler = sampler(
        settings.scheduler,
        pipe.scheduler.config,
        num_inference_steps=settings.num_inference_steps,
    )
    pipe.set_progress_bar_config(disable=True)
    size = settings.batch
    batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    mine = batches[rank::num_ranks]
    missing = [batch for batch in mine if not all(_there(task, folder) for task in batch)]
    done = sum(len(task.seeds) for batch in mine for task in batch) - _pictures(missing)
    with tqdm(
        total=done + _pictures(missing), initial=done, unit="picture", dynamic_ncols=True
    ) as bar:
        for batch in missing:
            for task, images in zip(batch, _drawn(pipe, batch, settings), strict=True):
                for path, image in zip(task.paths(folder), images, strict=True):
                    if not _is_whole(path):
                        _write(path, image)
            bar.update(_pictures([batch]))


def wait(tasks: Sequence[Task], folder: Path) -> None:
    """Return when every rank has drawn its share.

    The pictures themselves say so. A process group would answer no signal while it waits, and its
    store is not emptied when torchrun starts ranks anew.
    """
    missing = _missing([path for task in tasks for path in task.paths(folder)])
    with tqdm(
        total=len(missing), unit="picture", desc="other ranks", dynamic_ncols=True,
        disable=not missing,
    ) as bar:  # fmt: skip
        while missing:
            time.sleep(_POLL_S)
            still = _missing(missing)
            bar.update(len(missing) - len(still))
            missing = still


def read(task: Task, folder: Path) -> list[Image.Image]:
    """Return the pictures of a task.

    Raises:
        PromptError: If one is missing or damaged.
    """
    return [open_image(path) for path in task.paths(folder)]


def open_run(folder: Path, kept: object) -> None:
    """Keep what a run is made with in its folder, or pass a folder that was made with the same.

    Raises:
        ConfigError: If its pictures were drawn otherwise.
    """
    path, now = folder / RUN_FILE, config.to_dict(kept)
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}; choose another folder") from None
        other = [name for name in {**now, **before} if before.get(name) != now.get(name)]
        if other:
            name = sorted(other)[0]
            raise ConfigError(
                f"{folder} holds pictures drawn otherwise: {name} was {before.get(name)}, and is"
                f" {now.get(name)} now; choose another folder, or the settings of {path}"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    replace(path, (json.dumps(now, indent=1) + "\n").encode())


def replace(path: Path, data: bytes) -> None:
    """Write a file of a run whole, or not at all."""
    # Ranks in containers of their own may have the same process id.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _drawn(
    pipe: KosmosGPipeline, batch: Sequence[Task], settings: DrawConfig
) -> list[list[Image.Image]]:
    count = len(batch[0].seeds)  # of every task of a benchmark
    noise = {
        "seed": lambda: {"generator": [_generator(seed) for task in batch for seed in task.seeds]},
        "released": lambda: {"latents": _released_noise(pipe, len(batch), count, settings)},
    }[settings.noise]()
    images: list[Image.Image] = pipe(
        [[task.prompt] if isinstance(task.prompt, str) else list(task.prompt) for task in batch],
        num_images_per_prompt=count,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        height=settings.height,
        width=settings.width,
        **noise,
    ).images
    return [images[start : start + count] for start in range(0, len(images), count)]


def _released_noise(
    pipe: KosmosGPipeline, num_prompts: int, count: int, settings: DrawConfig
) -> torch.Tensor:
    """Return the noise of any batch of the release: of seed 0, its prompts the inner order.

    Source:
        NUMERICS sections 7 and 11.
    """
    factor = pipe.vae_scale_factor
    shape = (settings.height // factor, settings.width // factor)
    drawn = torch.randn(
        (count, num_prompts, pipe.unet.config["in_channels"], *shape), generator=_generator(0)
    )
    return drawn.transpose(0, 1).flatten(0, 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pictures(batches: Sequence[Sequence[Task]]) -> int:
    return sum(len(task.seeds) for batch in batches for task in batch)


def _there(task: Task, folder: Path) -> bool:
    return not _missing(task.paths(folder))


def _missing(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    """Return whether a picture is there up to its end, which a power cut may have taken."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_PNG_END)))
            return file.read() == _PNG_END
    except FileNotFoundError:
        return False


def _write(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, buffer.getvalue())
