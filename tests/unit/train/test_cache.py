"""What frozen parts say, kept on disk: whole or not there, and never another model's."""

import errno
import os

import pytest
import torch

from kosmosg.errors import KosmosGError
from kosmosg.train.cache import TensorCache, fingerprint, key_of


def held(one: TensorCache, key: str) -> dict[str, torch.Tensor]:
    found = one.get(key)
    assert found is not None
    return found


def tensors(seed=0, dtype=torch.float32):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return {"hidden": values, "text": values[0]}


def cache(folder, name="a" * 64):
    return TensorCache(folder, fingerprint=name)


def shards(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_put_is_there_for_every_reader(tmp_path, dtype):
    reader = cache(tmp_path)
    assert reader.get("one") is None
    writer = cache(tmp_path)
    writer.put({"one": tensors(1, dtype), "two": tensors(2, dtype)})
    writer.put({"three": tensors(3, dtype)})
    for whole in (reader, writer, cache(tmp_path)):
        for seed, key in enumerate(("one", "two", "three"), 1):
            found = held(whole, key)
            for name, value in tensors(seed, dtype).items():
                assert found[name].dtype == dtype
                assert found[name].equal(value)
    assert len(shards(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_another_fingerprint_finds_nothing(tmp_path):
    cache(tmp_path).put({"one": tensors()})
    assert cache(tmp_path, "b" * 64).get("one") is None


def test_without_entries_nothing_is_written(tmp_path):
    cache(tmp_path).put({})
    assert not shards(tmp_path)


def flip(path):
    """Damage the last byte, which is the last tensor's."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def garble(path):
    path.write_bytes(b"\xff" * 40)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, garble, empty])
@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_damaged_entry_is_written_anew(tmp_path, damage, opened):
    whole = cache(tmp_path)
    whole.put({"one": tensors(1)})
    if opened == "before":
        assert whole.get("one") is not None
    damage(shards(tmp_path)[0])
    again = whole if opened == "before" else cache(tmp_path)
    assert again.get("one") is None
    again.put({"one": tensors(1)})
    assert held(again, "one")["hidden"].equal(tensors(1)["hidden"])
    assert held(cache(tmp_path), "one")["hidden"].equal(tensors(1)["hidden"])


def test_damage_leaves_the_neighbours(tmp_path):
    cache(tmp_path).put({"one": tensors(1), "two": tensors(2)})
    flip(shards(tmp_path)[0])
    left = cache(tmp_path)
    assert [left.get(key) is None for key in ("one", "two")].count(True) == 1


def test_another_shard_stands_in_for_a_damaged_one(tmp_path):
    whole = cache(tmp_path)
    whole.put({"one": tensors(1)})
    whole.put({"one": tensors(1), "two": tensors(2)})
    for path in shards(tmp_path):
        data = path.read_bytes()
        flip(path)
        assert held(cache(tmp_path), "one")["text"].equal(tensors(1)["text"])
        path.write_bytes(data)


def test_a_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(KosmosGError, match=r"cannot use the cache .*file"):
        cache(tmp_path / "file")
    whole = cache(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(KosmosGError, match="No space left on device; make room"):
        whole.put({"one": tensors()})


class Configured(torch.nn.Linear):
    def __init__(self, heads):
        super().__init__(2, 2, dtype=torch.float32)
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.config = {"heads": heads, "_name_or_path": os.urandom(4).hex()}


def test_a_fingerprint_is_of_weights_configuration_and_facts():
    plain = fingerprint("float32", part=Configured(1))
    assert plain == fingerprint("float32", part=Configured(1))
    changed = Configured(1)
    changed.weight.data[0, 0] += 1e-7
    others = {
        fingerprint("bfloat16", part=Configured(1)),
        fingerprint("float32", other=Configured(1)),
        fingerprint("float32", part=Configured(2)),
        fingerprint("float32", part=changed),
        fingerprint("float32", part=Configured(1).bfloat16()),
    }
    assert len(others | {plain}) == 6


def test_a_key_is_of_types_shapes_and_contents():
    ids = torch.tensor([1, 2, 3, 4])
    keys = [
        key_of(ids),
        key_of(ids, ids),
        key_of(ids.int()),
        key_of(ids.view(2, 2)),
        key_of(torch.tensor([1, 2, 3, 5])),
    ]
    assert len(set(keys)) == 5
    assert key_of(ids[::2]) == key_of(torch.tensor([1, 3]))
