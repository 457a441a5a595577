from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as done
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg.evaluate.pictures import DrawConfig, Task, draw, open_run, read, replace, wait
from toys.model import toy_picture, toy_pipeline

SETTINGS = DrawConfig(
    scheduler="ddim", num_inference_steps=2, guidance_scale=3.0, height=32, width=32, batch=2
)


def tasks() -> list[Task]:
    prompts = [["a", toy_picture(1)], "a red cat", [toy_picture(2), "in snow"], "a dog", "a hat"]
    return [
        Task(name=f"s{n}/{n:02d}", prompt=prompt, seeds=(10 * n, 10 * n + 1))  # pyright: ignore[reportArgumentType]
        for n, prompt in enumerate(prompts)
    ]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_picture_depends_on_its_prompt_and_seed_alone(tmp_path: Path) -> None:
    pipe = toy_pipeline()
    draw(pipe, tasks(), tmp_path, SETTINGS)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert names == [f"s{n}/{n:02d}-{i}.png" for n in range(5) for i in (0, 1)]
    generators = [torch.Generator().manual_seed(seed) for seed in (20, 21)]
    expected = pipe(
        [toy_picture(2), "in snow"],
        num_images_per_prompt=2,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=generators,
    ).images
    for i in (0, 1):
        found = pixels(tmp_path / "s2" / f"02-{i}.png")
        assert np.abs(found - np.asarray(expected[i]).astype(int)).max() <= 1
    assert [image.size for image in read(tasks()[0], tmp_path)] == [(32, 32)] * 2


def test_ranks_share_the_pictures_and_a_second_run_draws_what_is_missing(tmp_path: Path) -> None:
    pipe = toy_pipeline()
    draw(pipe, tasks(), tmp_path / "whole", SETTINGS)
    for rank in (0, 1):
        draw(pipe, tasks(), tmp_path / "shared", SETTINGS, rank=rank, num_ranks=2)
        count = len(list((tmp_path / "shared").rglob("*.png")))
        assert count == (6, 10)[rank]
    kept = tmp_path / "shared" / "s0" / "00-0.png"
    lost = tmp_path / "shared" / "s3" / "03-1.png"
    lost.unlink()
    before = kept.stat().st_mtime_ns
    draw(pipe, tasks(), tmp_path / "shared", SETTINGS)
    assert kept.stat().st_mtime_ns == before
    for path in (tmp_path / "whole").rglob("*.png"):
        other = tmp_path / "shared" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes()


def test_a_picture_without_its_end_is_drawn_again_and_others_of_its_batch_stay(
    tmp_path: Path,
) -> None:
    pipe = toy_pipeline()
    draw(pipe, tasks()[:2], tmp_path, SETTINGS)
    torn, beside = (tmp_path / "s0" / f"00-{i}.png" for i in (0, 1))
    whole, before = torn.read_bytes(), beside.stat()
    for left in (whole[:-1], whole[:9] + bytes(len(whole) - 9), b""):
        torn.write_bytes(left)
        draw(pipe, tasks()[:2], tmp_path, SETTINGS)
        assert torn.read_bytes() == whole
    after = beside.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_first_rank_waits_for_the_pictures_of_all(tmp_path: Path) -> None:
    pipe = toy_pipeline()
    draw(pipe, tasks(), tmp_path, SETTINGS, rank=0, num_ranks=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, tasks(), tmp_path)
        assert not done([waiting], timeout=0.2).done
        draw(pipe, tasks(), tmp_path, SETTINGS, rank=1, num_ranks=2)
        assert waiting.result(60) is None
    assert len(list(tmp_path.rglob("*.png"))) == 10


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    (tmp_path / "run.json" / "file").touch()
    with pytest.raises(OSError, match=r"run\.json"):
        replace(tmp_path / "run.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_as_released_every_batch_has_the_same_noise_prompts_inside(tmp_path: Path) -> None:
    settings = DrawConfig(
        scheduler="ddim", num_inference_steps=2, guidance_scale=1.0, height=32, width=32,
        batch=2, noise="released",
    )  # fmt: skip
    pipe = toy_pipeline()
    same = [Task(name=f"{n}", prompt="a cat", seeds=(n, 99)) for n in range(4)]
    draw(pipe, same, tmp_path, settings)
    for n in (0, 1):
        for i in (0, 1):
            assert np.array_equal(
                pixels(tmp_path / f"{n}-{i}.png"), pixels(tmp_path / f"{n + 2}-{i}.png")
            )
    # Row r of the noise belongs to prompt r % 2: the second row is the second prompt's first.
    noise = torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = pipe(
        ["a cat"], latents=noise[1:2], num_inference_steps=2, guidance_scale=1.0
    ).images[0]
    assert np.abs(pixels(tmp_path / "1-0.png") - np.asarray(expected).astype(int)).max() <= 1


def test_a_folder_of_other_pictures_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path / "run", SETTINGS)
    open_run(tmp_path / "run", SETTINGS)
    other = DrawConfig(
        scheduler="ddim", num_inference_steps=9, guidance_scale=3.0, height=32, width=32, batch=2
    )
    with pytest.raises(ConfigError, match="num_inference_steps was 2, and is 9 now"):
        open_run(tmp_path / "run", other)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        open_run(tmp_path / "run", SETTINGS)
