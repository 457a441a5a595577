"""Configurations in and out of files, and changed by path: frozen dataclasses through pydantic.

This module holds no configuration itself: each lives in the file of what it configures, as a frozen
keyword-only dataclass. Reading is lax where text is: `1e-3`, which YAML calls a string, is a float.
"""

import dataclasses
import difflib
import functools
import json
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kosmosg.errors import ConfigError

T = TypeVar("T")


def to_dict(cfg: object) -> dict[str, Any]:
    """Return the configuration as JSON-ready dicts, lists, strings, numbers, booleans and None."""
    return _adapter(type(cfg)).dump_python((cfg,), mode="json")[0]


def to_yaml(cfg: object) -> str:
    """Return the configuration as YAML that `load` reads back."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True)


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Return the configuration of class `cls` that `data` describes.

    Raises:
        ConfigError: If a field is unknown, missing or has a value of the wrong kind.
    """
    try:
        return _adapter(cls).validate_python((data,))[0]
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(cls, one) for one in error.errors())) from None


def load(cls: type[T], path: Path | str) -> T:
    """Return the configuration of class `cls` kept in a JSON or YAML file.

    Raises:
        ConfigError: If the file is missing, is neither JSON nor YAML, or does not fit `cls`.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give an existing JSON or YAML file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}: {reason}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {data!r}, not a mapping of field names to values")
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def save(cfg: object, path: Path | str) -> None:
    """Write the configuration as JSON or YAML (by suffix), whole or not at all.

    Raises:
        ConfigError: If the suffix is neither, or the file cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    text = json.dumps(to_dict(cfg), indent=2) + "\n" if path.suffix == ".json" else to_yaml(cfg)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def override(cfg: T, changes: Sequence[str]) -> T:
    """Return a copy of `cfg` with each `path=value` of `changes` applied in order.

    Args:
        cfg: A configuration; it is not changed.
        changes: Such as `optim.lr=3e-4`, `sources.0.weight=2` (an item of a list), `resume=null`,
            `sizes=[64, 128]`. Values are YAML.

    Raises:
        ConfigError: If a path or value is wrong; it names the nearest path there is.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class OptimConfig:
        ...     lr: float = 1e-3
        >>> override(OptimConfig(), ["lr=3e-4"])
        OptimConfig(lr=0.0003)
    """
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"{change!r} is not a change; write path=value, such as optim.lr=3e-4"
            )
        cfg = _set(cfg, path, text)
    return cfg


def _set(cfg: T, path: str, text: str) -> T:
    """Return `cfg` with the value at `path` read from `text`: as YAML, else as the bare string.

    The second reading lets a field of type str take `007`, `yes` or `a: b`, which YAML would read
    as something else. An item of a mapping that is not there yet is made, and what holds the
    mapping: `data.sources.NAME.paths=FOLDER`.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    first: ConfigError | None = None
    for making in (False, True):
        for read in [value] if value == text else [value, text]:
            try:
                return from_dict(type(cfg), _changed(cfg, path, read, making=making))
            except ConfigError as error:
                first = first or error
    assert first is not None  # the loops ran
    raise first


def _changed(cfg: object, path: str, value: object, *, making: bool) -> dict[str, Any]:
    root = to_dict(cfg)
    at: object = root
    *parents, last = path.split(".")
    made = False
    for part in parents:
        if making and isinstance(at, dict) and at.get(part) is None:
            made = made or part not in at
            at[part] = {}
        at = _step(type(cfg), at, path, part)
    if making and not made:
        raise ConfigError(f"{path} leads to no new item of a mapping")
    if isinstance(at, dict):
        at[last] = value  # a wrong name is found by from_dict
    else:
        _step(type(cfg), at, path, last)
        assert isinstance(at, list)  # anything else cannot be stepped into
        at[int(last)] = value
    return root


def _step(cls: type, at: object, path: str, part: str) -> object:
    if isinstance(at, dict):
        if part in at:
            return at[part]
        problem = f"there is no {part!r} in it"
    elif isinstance(at, list):
        if part.isdecimal() and int(part) < len(at):
            return at[int(part)]
        problem = f"{part!r} is no index below {len(at)}"
    else:
        problem = f"{part!r} would lie inside the value {at!r}"
    raise ConfigError(f"no field {path!r}: {problem}{_nearest(cls, path)}")


@functools.cache
def _adapter(cls: type) -> TypeAdapter:
    # Pydantic takes no settings beside a bare dataclass, but a container hands its own down to it.
    boxed = tuple[cls]  # pyright: ignore[reportInvalidTypeForm]
    return TypeAdapter(boxed, config=ConfigDict(extra="forbid"))


def _explain(cls: type, error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"][1:])
    if error["type"] == "unexpected_keyword_argument":
        return f"no field {path!r}{_nearest(cls, path)}"
    if error["type"] == "missing":
        return f"{path} is missing; give it a value"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{path or cls.__name__} = {error['input']!r}: {message}"


def _nearest(cls: type, path: str) -> str:
    """Return "; did you mean ...?" for a wrong path, or the names there are when none is near."""
    paths = list(_paths(cls))
    near = difflib.get_close_matches(path, paths, n=1, cutoff=0.75)
    if not near:  # a right name at the wrong depth, such as lr for optim.lr
        name = path.rpartition(".")[2]
        near = [one for one in paths if one.rpartition(".")[2] == name]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; the fields are {', '.join(one for one in paths if '.' not in one)}"


def _paths(cls: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        for inner in _dataclasses_in(hints[field.name]):
            yield from _paths(inner, f"{prefix}{field.name}.")


def _dataclasses_in(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _dataclasses_in(argument)


def _check_suffix(path: Path) -> None:
    if path.suffix not in {".json", ".yaml", ".yml"}:
        raise ConfigError(f"{path} must end in .json, .yaml or .yml, not {path.suffix!r}")
