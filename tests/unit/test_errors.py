import pickle

import pytest

from kosmosg import errors


@pytest.mark.parametrize("name", ["ConfigError", "PromptError", "DataError", "CheckpointError"])
def test_every_error_is_caught_as_kosmosgerror(name: str) -> None:
    with pytest.raises(errors.KosmosGError, match="the value and the remedy"):
        raise getattr(errors, name)("the value and the remedy")


def test_data_error_keeps_its_reason_across_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.DataError("shard-3.tar: 17.png", reason="bad png")))
    assert (str(error), error.reason) == ("shard-3.tar: 17.png", "bad png")


def test_data_error_has_a_default_reason() -> None:
    assert errors.DataError("x").reason == "bad record"
