import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.errors import DataError
from kosmosg.evaluate.coco import moments_of_drawn, moments_of_real, open_benchmark
from kosmosg.evaluate.features import Encoder
from kosmosg.evaluate.inception import NUM_FEATURES
from toys.benchmarks import picture, save_coco


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_coco(tmp_path_factory.mktemp("coco") / "coco")


def eye(seen: list[Image.Image]) -> Encoder:
    """An encoder that keeps what it is shown."""

    def features(images: list[Image.Image]) -> torch.Tensor:
        seen.extend(image.copy() for image in images)
        return torch.stack(
            [torch.full((NUM_FEATURES,), float(np.asarray(image).mean())) for image in images]
        )

    return Encoder(name="means", sha256="0", view="", pictures=features)


def test_as_released_draws_annotations_as_python_samples_them(dataset: Path) -> None:
    benchmark = open_benchmark(dataset, "as-released", num_captions=20)
    words = ["a dog", "a red cat", "a hat on a dog", "a blue creature"]
    captions = [words[(n + i) % 4] for n in range(12) for i in (0, 1)]
    random.seed(0)
    assert [task.prompt for task in benchmark.tasks] == random.sample(captions, 20)
    assert len(benchmark.real) == 12


def test_clean_draws_one_caption_a_picture_and_compares_with_those_pictures(dataset: Path) -> None:
    benchmark = open_benchmark(dataset, "clean", num_captions=9)
    assert len({path.name for path in benchmark.real}) == 9
    words = ["a dog", "a red cat", "a hat on a dog", "a blue creature"]
    for task, path in zip(benchmark.tasks, benchmark.real, strict=True):
        assert task.prompt == words[int(path.stem[-12:]) % 4]
    assert len({task.seeds for task in benchmark.tasks}) == 9


def test_real_pictures_are_seen_as_the_protocol_says(dataset: Path) -> None:
    released, clean = [], []
    count = moments_of_real(open_benchmark(dataset, "as-released", num_captions=4), eye(released))
    assert count.count == 12
    assert {image.size for image in released} == {(256, 256)}
    moments = moments_of_real(open_benchmark(dataset, "clean", num_captions=4), eye(clean))
    assert moments.count == 4
    expected = np.mean([np.asarray(image).mean() for image in clean])
    assert float(moments.mean[0]) == pytest.approx(expected, abs=1e-3)
    assert all(image.width == image.height <= 51 for image in clean)


def test_shrinking_without_antialias_is_torchs(tmp_path: Path) -> None:
    folder = save_coco(tmp_path / "coco", pictures=2)
    path = folder / "val2014" / "COCO_val2014_000000000000.jpg"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (512, 512, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    seen: list[Image.Image] = []
    moments_of_real(open_benchmark(folder, "as-released", num_captions=2), eye(seen))
    whole = np.asarray(Image.open(path), np.float64)
    # At half the size each pixel is the mean of four, and antialias would take sixteen.
    quarters = whole.reshape(256, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(seen[0], np.float64) - quarters).max() <= 1


def test_drawn_pictures_are_read_whole(dataset: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark(dataset, "clean", num_captions=3)
    for task in benchmark.tasks:
        (path,) = task.paths(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(3, (64, 64)).save(path)
    seen: list[Image.Image] = []
    assert moments_of_drawn(benchmark, tmp_path, eye(seen)).count == 3
    assert {image.size for image in seen} == {(64, 64)}


def test_what_is_missing_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations_trainval2014\.zip"):
        open_benchmark(tmp_path, "clean")
    with pytest.raises(DataError, match="has 12 captions to draw from, and 30000"):
        open_benchmark(dataset, "clean")
    folder = save_coco(tmp_path / "coco", pictures=2)
    (folder / "val2014" / "COCO_val2014_000000000001.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000001.jpg is missing; unpack COCO's val2014.zip"):
        open_benchmark(folder, "clean", num_captions=2)
    (folder / "annotations" / "captions_val2014.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="cannot read"):
        open_benchmark(folder, "clean", num_captions=2)
