from pathlib import Path

import pytest

from toys.nano import save_toy_nano


@pytest.fixture(scope="session")
def toy_nano_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy-nano") / "model"
    save_toy_nano(directory)
    return directory
