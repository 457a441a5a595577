"""Torch checkpoints of strangers, read without executing anything in them.

A pickle is a program. Python's unpickler runs it with whatever it names; this one knows a few
dozen names, exactly, and gives each a meaning of its own: a name is a record of two strings, an
object a record of its state. No attribute of anything is ever looked up, nothing is imported and
nothing is called but the functions below, so there is nothing that a file could reach.
"""

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kosmosg.convert.archive import Archive, read_archive
from kosmosg.convert.inert import OBJECTS, STORAGES, TYPES, Inert, Name, Storage
from kosmosg.convert.stored import StoredTensor, extent
from kosmosg.errors import CheckpointError

_INT64 = 2**63
_MAX_DIMS = 8


def load(path: Path) -> Any:  # noqa: ANN401 -- whatever the file holds
    """Return the data of a torch file: dicts, lists, tuples, plain values, tensors not yet read.

    Objects are `Inert`, classes `Name`; `inert.options` reads the former.

    Raises:
        CheckpointError: If the file is damaged, or its pickle names or does what none of a
            checkpoint of Kosmos-G or Stable Diffusion needs.
    """
    archive = read_archive(path)
    try:
        return _Machine(archive).run()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: its pickle is damaged ({type(error).__name__}); fetch the file again"
        ) from None


class _Machine:
    """The stack and the memo of a pickle, worked through one opcode after another."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:  # noqa: ANN401 -- whatever the file holds
        for opcode, argument, _position in pickletools.genops(self.archive.pickle):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.push_value(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            else:
                self.refuse(f"uses the opcode {name}")
        raise ValueError("no STOP")

    def refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"{self.archive.path} is refused: its pickle {what}, which no checkpoint needs; "
            "do not load it with other programs either unless you trust who made it"
        )

    def push_value(self, value: object) -> None:
        if isinstance(value, int) and abs(value) > _INT64:
            self.refuse("holds a number of more than 64 bits")
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def put(self, index: int) -> None:
        if not 0 <= index < len(self.archive.pickle):
            self.refuse(f"remembers something as number {index}")
        self.memo[index] = self.stack[-1]

    def push_name(self, module: object, name: object) -> None:
        # Here as everywhere: nothing that the file made is turned into text unless it is a str. The
        # text of tuples in tuples may be as long, or as deep, as the file likes.
        if type(module) is not str or type(name) is not str:
            self.refuse("names something by what is no text")
        known = Name(module, name)
        if known not in OBJECTS and known not in TYPES and known not in _CALLS:
            self.refuse(f"names {module[:60]}.{name[:60]}")
        self.stack.append(known)

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or type(function) is not Name:
            self.refuse("calls what is not a function")
        if function in OBJECTS:
            self.stack.append(Inert(function))
        elif function in _CALLS:
            self.stack.append(_CALLS[function](self, *arguments))
        else:
            self.refuse(f"calls {function.module}.{function.name}")

    def new_object(self) -> None:
        _arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Name or kind not in OBJECTS:
            self.refuse("makes an object of what is not a class")
        self.stack.append(Inert(kind))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Inert:
            target.state = state
        elif type(target) is not dict:  # that of an OrderedDict is torch's note of versions
            self.refuse("sets the state of what has none")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            self.refuse("puts items into what is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A nested tuple would be hashed by recursion, as deep as the file likes.
            if type(key) not in (str, int, float, bool, bytes, type(None), Name):
                self.refuse(f"has a {type(key).__name__} as a key")
            target[key] = value

    def new_dict(self, items: list[Any]) -> None:
        self.stack.append({})
        self.set_items(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            self.refuse("appends to what is not a list")
        target.extend(items)

    def storage(self) -> None:
        given = self.stack.pop()
        if type(given) is not tuple or len(given) != 5 or given[0] != "storage":
            self.refuse("refers to something outside that is not a storage")
        _, kind, key, _location, numel = given
        if type(kind) is not Name or kind.module != "torch" or kind.name not in STORAGES:
            self.refuse("has a storage of no known type")
        dtype = STORAGES[kind.name]
        if type(key) is not str or type(numel) is not int:
            self.refuse("has a storage without a number")
        if key not in self.archive.storages:
            self.refuse(f"refers to a storage {key[:20]!r} that is not in the file")
        offset, size, crc = self.archive.storages[key]
        if numel * dtype.itemsize != size:
            self.refuse(f"says {numel} elements of a storage of {size} bytes")
        self.stack.append(Storage(dtype, offset, numel, crc))

    # ----------------------------------------------------------------------- what may be "called"

    def tensor(self, storage: Any, start: Any, shape: Any, stride: Any, *_rest: Any) -> Any:  # noqa: ANN401
        numbers = (start, *shape, *stride) if type(shape) is type(stride) is tuple else (None,)
        if type(storage) is not Storage or len(shape) != len(stride) or len(shape) > _MAX_DIMS:
            self.refuse("has a tensor without a storage or a shape")
        if any(type(n) is not int or n < 0 for n in numbers):
            self.refuse("has a tensor of a shape that cannot be")
        if (
            start + extent(shape, stride) > storage.numel
            or math.prod(shape) > storage.numel  # the same elements shown often
        ):
            self.refuse("has a tensor that is larger than its storage")
        return StoredTensor(
            path=self.archive.path,
            offset=storage.offset + start * storage.dtype.itemsize,
            dtype=storage.dtype,
            shape=shape,
            stride=stride,
            crc=storage.crc if extent(shape, stride) == storage.numel else None,
        )

    def parameter(self, tensor: Any, *_rest: Any) -> Any:  # noqa: ANN401
        return tensor

    def mapping(self, *arguments: Any) -> Any:  # noqa: ANN401
        # An OrderedDict or defaultdict, still empty, or what a Counter counts. Nothing is copied,
        # or a short file could ask for a long list again and again.
        if len(arguments) == 1 and type(arguments[0]) is dict:
            return arguments[0]
        if arguments and type(arguments[0]) not in (Name, type(None)):
            self.refuse("makes a dict of what is none")
        return {}

    def size(self, numbers: Any) -> Any:  # noqa: ANN401
        if type(numbers) is not tuple:
            self.refuse("makes a size of what is none")
        return numbers


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda _m, _a: None,
    "FRAME": lambda _m, _a: None,
    "MARK": lambda m, _a: m.marks.append(len(m.stack)),
    "POP": lambda m, _a: m.stack.pop(),
    "POP_MARK": lambda m, _a: m.since_mark(),
    "DUP": lambda m, _a: m.stack.append(m.stack[-1]),
    "PUT": lambda m, a: m.put(a),
    "BINPUT": lambda m, a: m.put(a),
    "LONG_BINPUT": lambda m, a: m.put(a),
    "MEMOIZE": lambda m, _a: m.put(len(m.memo)),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LIST": lambda m, _a: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, _a: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _a: m.stack.append((m.stack.pop(),)),
    "TUPLE2": lambda m, _a: m.stack.append((m.stack.pop(-2), m.stack.pop())),
    "TUPLE3": lambda m, _a: m.stack.append((m.stack.pop(-3), m.stack.pop(-2), m.stack.pop())),
    "DICT": lambda m, _a: m.new_dict(m.since_mark()),
    "SETITEM": lambda m, _a: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _a: m.set_items(m.since_mark()),
    "APPEND": lambda m, _a: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _a: m.extend(m.since_mark()),
    "GLOBAL": lambda m, a: m.push_name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _a: m.stack_global(),
    "REDUCE": lambda m, _a: m.reduce(),
    "NEWOBJ": lambda m, _a: m.new_object(),
    "BUILD": lambda m, _a: m.build(),
    "BINPERSID": lambda m, _a: m.storage(),
}
_CALLS: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _Machine.tensor,
    Name("torch._utils", "_rebuild_parameter"): _Machine.parameter,
    Name("torch", "Size"): _Machine.size,
    Name("collections", "OrderedDict"): _Machine.mapping,
    Name("collections", "defaultdict"): _Machine.mapping,
    Name("collections", "Counter"): _Machine.mapping,
}
