"""The released model's numbers: the copy of some that lies here, and all of them beside us."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.verify import Golden

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def kept() -> Golden:
    """The small copy in this repository."""
    return Golden(DATA)


@pytest.fixture(scope="session")
def shared(shared_dir: Path) -> Golden:
    """All that the released code recorded; without the shared folder these tests are skipped."""
    return Golden(shared_dir / "golden", shared_dir / "tokenizer")


@pytest.fixture(scope="session")
def golden_with(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """The copy if it holds the file, else all; without either the test is skipped."""

    def find(name: str) -> Golden:
        there = (DATA / name).is_file()
        return request.getfixturevalue("kept" if there else "shared")

    return find


@pytest.fixture(scope="session")
def golden(shared: Golden) -> Path:
    """The folder of all."""
    return shared.directory


@pytest.fixture(scope="session")
def golden_case(golden_with: Callable[[str], Golden]) -> Callable[[str], dict[str, Tensor]]:
    """The tensors of a case by its name."""

    def read(name: str) -> dict[str, Tensor]:
        file = f"cases/{name}.safetensors"
        return load_file(golden_with(file).directory / file)

    return read


@pytest.fixture(scope="session")
def golden_config(kept: Golden) -> dict[str, Any]:
    return kept.config


@pytest.fixture(scope="session")
def golden_model(kept: Golden) -> KosmosG:
    """With N, its weights by the rule."""
    return kept.model


@pytest.fixture(scope="session")
def golden_decoder(kept: Golden) -> ImageDecoder:
    return kept.decoder
