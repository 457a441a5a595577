"""A unit of work: what becomes one shard."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some input that becomes one shard, `name`.tar, whole or not at all."""

    name: str
