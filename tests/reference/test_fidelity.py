"""Our FID beside torch-fidelity's, on the same random weights; needs `pip install torch-fidelity`.

It comes with torchvision, which neither features nor FID need and which has no build beside every
torch: empty modules stand for it.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kosmosg.evaluate.features import inception
from kosmosg.evaluate.inception import Inception, resize_as_tensorflow
from kosmosg.evaluate.metrics import Moments, frechet_distance

CPU = torch.device("cpu")


class _Empty(ModuleType):
    """A module in which every name is a class of its own."""

    __path__: list[str] = []  # noqa: RUF012  # pyright: ignore[reportIncompatibleVariableOverride] -- a package with no files

    def __getattr__(self, name: str) -> type | ModuleType:
        if name.startswith("__"):
            raise AttributeError(name)
        if module := sys.modules.get(f"{self.__name__}.{name}"):
            return module
        return type(name, (), {})


@pytest.fixture(scope="module")
def theirs(monkeypatch_module: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed: FID was not compared with it")
    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
            module = _Empty(f"torchvision{name}")
            monkeypatch_module.setitem(sys.modules, module.__name__, module)
    return importlib.import_module("torch_fidelity")


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Inception()
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(state, path)
    return path


def pictures(count: int, *, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 8, 10, 3), np.uint8)
    return [Image.fromarray(block).resize((80, 64), Image.Resampling.BICUBIC) for block in blocks]


def test_features_and_fid_equal_torch_fidelitys(theirs: Any, weights: Path, tmp_path: Path) -> None:
    state = {
        **torch.load(_as_torch(weights, tmp_path)),
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
    }
    torch.save(state, tmp_path / "theirs.pth")
    network = theirs.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "theirs.pth")
    )
    ours = inception(weights, resize="tensorflow", device=CPU)
    sets, features = [pictures(12, seed=1), pictures(12, seed=2)], []
    for one in sets:
        stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in one]))
        (expected,) = network(stacked.permute(0, 3, 1, 2))
        found = ours.pictures(one)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        features.append((found, expected))
    metric = importlib.import_module("torch_fidelity.metric_fid")
    statistics = [metric.fid_features_to_statistics(expected) for _, expected in features]
    expected_fid = metric.fid_statistics_to_metric(*statistics, verbose=False)
    moments = [Moments.of_none(2048), Moments.of_none(2048)]
    for one, (found, _) in zip(moments, features, strict=True):
        one.add(found)
    (value,) = expected_fid.values()
    assert frechet_distance(*moments) == pytest.approx(value, rel=1e-4)


def test_resizing_equals_torch_fidelitys(theirs: Any) -> None:
    del theirs
    module = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    picture = torch.randint(0, 256, (3, 37, 512), dtype=torch.uint8)
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(
        picture[None].float(), size=(299, 299), align_corners=False
    )
    assert (resize_as_tensorflow([picture]) - expected).abs().max() < 1e-3


def _as_torch(weights: Path, folder: Path) -> Path:
    from safetensors.torch import load_file

    path = folder / "state.pth"
    torch.save(load_file(weights), path)
    return path
