"""Pictures of evaluation sets are known by id and by what they look like."""

from pathlib import Path

import pytest
from PIL import Image

from kosmosg.construct.leaks import Leaks, hash_pictures, read_hashes, to_text
from kosmosg.construct.phash import centre_square, phash
from kosmosg.errors import DataError
from toys.photos import as_jpeg, photo


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """DreamBench's folders and COCO's names."""
    folder = tmp_path / "sets"
    (folder / "dog").mkdir(parents=True)
    (folder / "dog/00.jpg").write_bytes(as_jpeg(photo(0), 90))
    (folder / "COCO_val2014_000000391895.jpg").write_bytes(as_jpeg(photo(1), 90))
    return folder


def leaks_of(folder: Path) -> Leaks:
    files = sorted(folder.rglob("*.jpg"))
    (folder / "hashes.txt").write_text(to_text(hash_pictures(folder, files)))
    return read_hashes([folder / "hashes.txt"])


@pytest.mark.parametrize("kept", ["whole", "square", "small square"])
def test_a_picture_is_found_whole_cropped_and_resized(sets: Path, kept: str) -> None:
    leaks = leaks_of(sets)
    image = photo(0) if kept == "whole" else centre_square(photo(0))
    image = image.resize((40, 40), Image.Resampling.BICUBIC) if kept == "small square" else image
    assert leaks.find(phash(image), {}) == "dog/00.jpg"
    assert leaks.find(phash(photo(2)), {}) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"source_id": "dog/00"}, "dog/00.jpg"),
        ({"source_id": "dog/00.png"}, "dog/00.jpg"),
        ({"source_id": "00"}, None),  # names anything
        ({"source_id": "000000391895"}, "COCO_val2014_000000391895.jpg"),
        ({"source_id": "COCO_train2014_000000391895"}, "COCO_val2014_000000391895.jpg"),
        ({"url": "http://x.org/val2017/000000391895.jpg?a=1"}, "COCO_val2014_000000391895.jpg"),
        ({"url": "http://[x/"}, None),
        ({"source_id": "", "url": "/"}, None),
    ],
)
def test_a_picture_is_found_by_its_id(sets: Path, said: dict[str, str], found: str | None) -> None:
    assert leaks_of(sets).find(phash(photo(2)), said) == found


@pytest.mark.parametrize("name", ["00", "dog", "000010000", "folder.v2"])
def test_a_bare_name_of_a_flat_folder_is_no_id(name: str) -> None:
    """Any collection may have a picture of that name, such as the keys that img2dataset counts."""
    leaks = Leaks(hashes=(0,), names=(f"{name}.jpg",))
    assert leaks.find(2**64 - 1, {"source_id": name, "url": f"{name}.jpg"}) is None
    assert leaks.find(0, {"source_id": "another"}) == f"{name}.jpg"


def test_an_id_of_open_images_is_one() -> None:
    leaks = Leaks(hashes=(0,), names=("000a1249af2bc5f0.jpg",))
    assert leaks.find(2**64 - 1, {"source_id": "000a1249af2bc5f0"}) == "000a1249af2bc5f0.jpg"


def test_each_distance_up_to_three_is_found() -> None:
    leaks = Leaks(hashes=(0xF0F0,), names=("a.jpg",))
    assert leaks.find(0xF0F0 ^ 0b111 << 30, {}) == "a.jpg"
    assert leaks.find(0xF0F0 ^ 0b1111 << 30, {}) is None


def test_files_add_up_and_the_sum_tells_them_apart(sets: Path, tmp_path: Path) -> None:
    leaks_of(sets)
    (tmp_path / "more.txt").write_text(to_text([(5, "x.jpg")]))
    both = read_hashes([sets / "hashes.txt", tmp_path / "more.txt"])
    assert both.names[-1] == "x.jpg"
    assert both.sum != read_hashes([sets / "hashes.txt"]).sum


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "holds no perceptual hashes; make it with"),
        ("", "holds no perceptual hashes"),
        ("# kosmosg perceptual hashes 2\n", "holds no perceptual hashes"),
        ("# kosmosg perceptual hashes 1\n12  a.jpg\n", "line 2: no hash and name"),
    ],
)
def test_what_is_no_file_of_hashes(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "x.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_hashes([tmp_path / "x.txt"])


def test_a_damaged_picture_is_named(sets: Path) -> None:
    (sets / "dog/00.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"dog/00\.jpg is not a picture"):
        leaks_of(sets)
