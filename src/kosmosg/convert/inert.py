"""What the names in a stranger's pickle mean here: records that nothing can be done with."""

from typing import Any, NamedTuple

import torch


class Name(NamedTuple):
    """What the pickle calls a class or function: two strings and no more."""

    module: str
    name: str


class Inert:
    """What the pickle calls an object: the name of its class, and the state it was given."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: Name) -> None:
        self.kind = kind
        self.state: object = None


class Storage(NamedTuple):
    """The bytes that tensors look at, and their sum."""

    dtype: torch.dtype
    offset: int
    numel: int
    crc: int


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "EnumNode")
# Objects without a meaning of their own here: options of fairseq, and what Lightning puts beside
# the weights of Stable Diffusion.
OBJECTS = {
    Name("argparse", "Namespace"),
    Name("omegaconf.base", "Metadata"),
    Name("omegaconf.base", "ContainerMetadata"),
    Name("omegaconf.dictconfig", "DictConfig"),
    Name("omegaconf.listconfig", "ListConfig"),
    *(Name("omegaconf.nodes", node) for node in _NODES),
    Name("_codecs", "encode"),
    Name("numpy", "dtype"),
    Name("numpy.core.multiarray", "scalar"),
    Name("numpy._core.multiarray", "scalar"),
}
TYPES = {
    Name("typing", "Any"),
    *(Name("__builtin__", name) for name in ("dict", "list", "int", "long", "str", "bool")),
    *(Name("builtins", name) for name in ("dict", "list", "int", "float", "str", "bool")),
    Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    Name("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
    *(Name("torch", storage) for storage in STORAGES),
}


def options(value: object) -> dict[str, Any]:
    """Return one level of options, whether a dict, a Namespace or omegaconf's; else none."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        value = state.get("_content") if value.kind.module.startswith("omegaconf.") else state
    if not isinstance(value, dict):
        return {}
    return {key: _value(one) for key, one in value.items() if isinstance(key, str)}


def plain_options(value: object) -> dict[str, str | int | float | bool | None]:
    """Return one level of options, those alone that are single values."""
    kinds = (str, int, float, bool, type(None))
    return {key: one for key, one in options(value).items() if type(one) in kinds}


def _value(one: object) -> object:
    if isinstance(one, Inert) and one.kind.module == "omegaconf.nodes":
        return one.state.get("_val") if isinstance(one.state, dict) else None
    return one
