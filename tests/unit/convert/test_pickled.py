"""Files that would run something when loaded: each is refused, and nothing runs."""

import argparse
import collections
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from kosmosg.convert import inert, pickled
from kosmosg.convert.stored import StoredTensor
from kosmosg.errors import CheckpointError
from toys.files import Reduces, torch_file

# Text of this would have 2^60 brackets: each tuple holds the one before twice.
BOMB = b"\x80\x02)" + b"2\x86" * 60


def assert_one_line(error: CheckpointError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that the attacks of this module make where they succeed."""
    return tmp_path / "it-ran"


def attacks(marker: Path) -> dict[str, bytes]:
    touch = f"touch {marker}"
    word = f"open({str(marker)!r}, 'w').close()"
    call = b"(X" + struct.pack("<I", len(touch)) + touch.encode() + b"tR."
    namespace = argparse.Namespace()
    namespace.decoder_layers = Reduces(eval, word)
    omega = b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81}X\x08\x00\x00\x00_content"
    long_name = b"\x8c\x05torch\x8c\x09os.system\x93"
    return {
        "os.system": pickle.dumps(Reduces(os.system, touch), protocol=2),
        "eval": pickle.dumps({"model": Reduces(eval, word)}, protocol=2),
        "exec in protocol 4": pickle.dumps({"model": [Reduces(exec, word)]}, protocol=4),
        "eval in a Namespace": pickle.dumps({"args": namespace}, protocol=2),
        "os.system in omegaconf": omega + b"cos\nsystem\n" + call[:-1] + b"sb.",
        "a dotted name": b"\x80\x04" + long_name + call,
        "a dotted name in GLOBAL": b"\x80\x02ctorch\nos.system\n" + call,
        "a space in a name": b"\x80\x02ctorch os\nsystem\n" + call,
        "getattr": pickle.dumps(Reduces(getattr, "x", "upper"), protocol=2),
        "importlib": b"\x80\x02cimportlib\nimport_module\nX\x02\x00\x00\x00os\x85R.",
        "_reconstructor": b"\x80\x02ccopyreg\n_reconstructor\n(cargparse\nNamespace\n"
        b"c__builtin__\nobject\nNtR.",
        "INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cargparse\nNamespace\no.",
        "NEWOBJ_EX": b"\x80\x04cargparse\nNamespace\n)}\x92.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "a call of a type": b"\x80\x02c__builtin__\ndict\n)R.",
        "a new type": b"\x80\x02c__builtin__\nlist\n)\x81.",
        "a call of a result": b"\x80\x02cargparse\nNamespace\n)R)R.",
        "state of a class": b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aNsb.",
        "state of a list": b"\x80\x02]}b.",
        "items of an object": b"\x80\x02cargparse\nNamespace\n)\x81K\x01K\x02s.",
        "appending to a dict": b"\x80\x02}K\x01a.",
        "a memo bomb": b"\x80\x02]r\xff\xff\xff\x7f.",
        "a text memo bomb": b"\x80\x02]p99999999999\n.",
        "a huge number": b"\x80\x02\x8b\x10\x00\x00\x00" + b"\x7f" * 16 + b".",
        "a persistent id in text": b"Pos.system\n.",
        "a persistent id that is no storage": b"\x80\x02X\x02\x00\x00\x00osQ.",
        "tuples in tuples as a name": BOMB + b"X\x01\x00\x00\x00a\x93.",
        "tuples in tuples as a module": BOMB + b"X\x01\x00\x00\x00aq\x000h\x00\x93.",
        "tuples in tuples as a key": BOMB + b"q\x000}h\x00Ns.",
        "tuples in tuples as a storage": BOMB + b"q\x000(X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nh\x00Nh\x00tQ.",
        "a tuple as key": b"\x80\x02})K\x01s.",
        "a dict of a list": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        "an unknown buffer": b"\x80\x05\x97.",
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_an_attack_is_refused_in_one_line_and_nothing_runs(
    name: str, tmp_path: Path, marker: Path
) -> None:
    path = torch_file(tmp_path / "evil.pt", attacks(marker)[name])
    with pytest.raises(CheckpointError, match=r"evil\.pt is refused: its pickle") as caught:
        pickled.load(path)
    assert_one_line(caught.value)
    assert not marker.exists()


def test_the_attacks_are_real(marker: Path) -> None:
    for name in ("os.system", "eval", "eval in a Namespace", "exec in protocol 4"):
        pickle.loads(attacks(marker)[name])
        assert marker.exists(), name
        marker.unlink()


def test_a_refused_name_is_said(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "evil.pt", pickle.dumps(Reduces(os.system, "true"), protocol=2))
    with pytest.raises(CheckpointError, match=r"names posix\.system, which no checkpoint needs"):
        pickled.load(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02X\xff\xff\x00\x00ab.",
     b"\x80\x02\x86.", b"\x80\x02t.", b"nonsense", b"\x80\x02ctorch\nSize\n)R."],
)  # fmt: skip
def test_a_damaged_pickle_is_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bad\.pt: its pickle is damaged") as caught:
        pickled.load(torch_file(tmp_path / "bad.pt", data))
    assert_one_line(caught.value)


def test_depth_costs_nothing(tmp_path: Path) -> None:
    """A million tuples in one another: the reader has no recursion that they could exhaust."""
    path = torch_file(tmp_path / "deep.pt", b"\x80\x02)" + b"\x85" * 1_000_000 + b".")
    value = pickled.load(path)
    for _ in range(1_000_000):
        (value,) = value
    assert value == ()


def test_a_pickle_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "big.pt", b"\x80\x02" + b"N" * (16 * 2**20 + 1) + b".")
    with pytest.raises(CheckpointError, match="its pickle has 16777220 bytes, more than"):
        pickled.load(path)


def tensor(
    *, kind="FloatStorage", key="0", numel=6, start=0, shape=(2, 3), stride=(3, 1), own=None
) -> bytes:
    """The pickle of one tensor whose layout says whatever it likes."""
    location = ("storage", inert.Name("torch", kind), key, "cpu", numel)
    call = (location if own is None else own, start, shape, stride, False)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + _value(call) + b"R."


def _value(value) -> bytes:
    if isinstance(value, inert.Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, tuple):
        made = b"(" + b"".join(_value(one) for one in value) + b"t"
        return made + (b"Q" if value[:1] == ("storage",) else b"")
    return pickle.dumps(value, protocol=2)[2:-1]


STORAGE = {"0": struct.pack("<6f", *range(6))}


def test_a_tensor_is_read_where_it_lies(tmp_path: Path) -> None:
    for arguments, expected in (
        ({}, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]),
        ({"shape": (3, 2), "stride": (1, 3)}, [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]),
        ({"shape": (), "stride": (), "start": 4}, 4.0),
        ({"shape": (0, 3), "stride": (3, 1)}, []),
    ):
        found = pickled.load(torch_file(tmp_path / "one.pt", tensor(**arguments), STORAGE))
        assert isinstance(found, StoredTensor)
        assert found.read().tolist() == expected
        assert found.read().is_contiguous()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"start": 1}, "larger than its storage"),
        ({"shape": (3, 3)}, "larger than its storage"),
        ({"shape": (2, 3), "stride": (2**40, 1)}, "larger than its storage"),
        ({"shape": (10**12,), "stride": (0,)}, "larger than its storage"),
        ({"shape": (-1, 3)}, "shape that cannot be"),
        ({"start": -6}, "shape that cannot be"),
        ({"shape": (2.0, 3)}, "shape that cannot be"),
        ({"shape": (True, 3)}, "shape that cannot be"),
        ({"stride": (1,)}, "without a storage or a shape"),
        ({"shape": (1,) * 9, "stride": (1,) * 9}, "without a storage or a shape"),
        ({"own": "text"}, "without a storage or a shape"),
        ({"numel": 7}, "says 7 elements of a storage of 24 bytes"),
        ({"kind": "DoubleStorage"}, "says 6 elements of a storage of 24 bytes"),
        ({"key": "1"}, "refers to a storage '1' that is not in the file"),
        ({"key": "../0"}, "refers to a storage '../0' that is not in the file"),
        ({"kind": "nn"}, "names torch.nn"),
        ({"kind": "Size"}, "storage of no known type"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(arguments, what: str, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "bad.pt", tensor(**arguments), STORAGE)
    with pytest.raises(CheckpointError) as caught:
        pickled.load(path)
    assert what in str(caught.value)
    assert_one_line(caught.value)


def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    data = {
        "part": base[1:3, ::2],
        "turned": base.T,
        "half": base.half(),
        "brain": base.bfloat16(),
        "parameter": torch.nn.Parameter(base.clone()),
        "counts": torch.arange(3),
        "plain": {"a": [1, -2, 3.5, None, True, "é", b"bytes", (1, 2, 3, 4)], "size": base.shape},
        "ordered": collections.OrderedDict(x=1),
        "default": collections.defaultdict(list, y=2),
        "counter": collections.Counter("aab"),
    }
    for protocol in (2, 4):
        path = tmp_path / f"saved{protocol}.pt"
        torch.save(data, path, pickle_protocol=protocol)
        found = pickled.load(path)
        assert found.keys() == data.keys()
        for name, value in data.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[name].read(), value)
                assert found[name].dtype == value.dtype
        assert found["ordered"] == {"x": 1}
        assert found["default"] == {"y": 2}
        assert found["counter"] == {"a": 2, "b": 1}
        if protocol == 4:  # before, bytes are a call of a codec
            assert found["plain"]["a"] == [1, -2, 3.5, None, True, "é", b"bytes", (1, 2, 3, 4)]
        assert found["plain"]["size"] == (4, 6)


def test_options_are_read_at_one_level(tmp_path: Path) -> None:
    options = argparse.Namespace(decoder_layers=3, name="x")
    path = tmp_path / "options.pt"
    torch.save({"args": options, "cfg": None}, path)
    found = pickled.load(path)
    assert inert.options(found["args"]) == {"decoder_layers": 3, "name": "x"}
    assert inert.options(found["cfg"]) == {}
    assert inert.options([1, 2]) == {}


def test_what_lightning_puts_beside_the_weights_is_inert(tmp_path: Path) -> None:
    checkpoint = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    score = pickle.dumps(np.float64(0.25), protocol=2)[2:-1]
    data = b"\x80\x02}X\x09\x00\x00\x00callbacks}" + checkpoint + score + b"ss."
    for path in (
        torch_file(tmp_path / "sd.ckpt", data),
        torch_file(tmp_path / "sd.ckpt", data.replace(b"numpy._core", b"numpy.core")),
    ):
        [(kind, value)] = pickled.load(path)["callbacks"].items()
        assert kind.name == "ModelCheckpoint"
        assert type(value) is inert.Inert
        assert value.kind.name == "scalar"
