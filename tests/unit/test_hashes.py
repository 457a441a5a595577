"""The sha256 of a part changes with its weights and configuration, and with nothing else."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from kosmosg import hashes, release
from kosmosg.drawing import DECODER, ENCODER
from kosmosg.errors import CheckpointError

PARTS = (*ENCODER, *DECODER)


@pytest.fixture
def copy(toy_dir, tmp_path) -> Path:
    return Path(shutil.copytree(toy_dir, tmp_path / "copy"))


def test_a_copy_has_the_same_sums_and_its_name_does_not_count(toy_dir, copy):
    assert hashes.of_parts(copy, PARTS) == hashes.of_parts(toy_dir, PARTS)
    assert list(hashes.of_parts(copy, ("vae",))) == ["vae"]


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_one_byte_changes_the_sum_of_its_part_only(copy, file):
    before = hashes.of_parts(copy, PARTS)
    path = copy / "unet" / file
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    after = hashes.of_parts(copy, PARTS)
    assert {part for part in PARTS if before[part] != after[part]} == {"unet"}


def test_the_sum_is_that_of_the_list_sha256sum_would_print(copy):
    folder = copy / "aligner"
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    listed = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    assert hashes.of_parts(copy, ("aligner",))["aligner"] == (
        hashlib.sha256(listed.encode()).hexdigest()
    )


def test_the_list_in_a_directory_is_believed_until_a_file_changes(copy):
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    known = "".join(f"{'1' * 64}  ./{path.relative_to(copy)}\n" for path in files)
    real = hashes.of_parts(copy, PARTS)
    (copy / hashes.SUMS).write_text(known)
    believed = hashes.of_parts(copy, PARTS)
    assert all(believed[part] != real[part] for part in PARTS)
    later = time.time() + 10
    for path in (copy / "unet").iterdir():
        os.utime(path, (later, later))
    again = hashes.of_parts(copy, PARTS)
    assert {part for part in PARTS if again[part] == real[part]} == {"unet"}


def test_a_list_that_cannot_be_read_is_named(copy):
    (copy / hashes.SUMS).write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"cannot read .*SHA256SUMS"):
        hashes.of_parts(copy, PARTS)


def test_nano_is_hashed_quickly():
    directory = release.find("nano")
    hashes._read.cache_clear()
    began = time.process_time()
    first = hashes.of_parts(directory, PARTS)
    assert time.process_time() - began < 0.3
    began = time.process_time()
    assert hashes.of_parts(directory, PARTS) == first
    assert time.process_time() - began < 0.02
