"""Items through a step in batches, so that one poisoned item costs no more than itself."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from kosmosg.construct.job import describe
from kosmosg.data.records import Record
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError

T = TypeVar("T")


def records_of(
    make: Callable[[Sequence[T]], Sequence[Record | DataError]],
    items: Iterable[tuple[str, T]],
    *,
    size: int,
    skips: Skips,
) -> Iterator[Record]:
    """Yield the records that `make` makes of the items, in their order; the rest is skipped.

    Where it raises anything for a batch, it gets the batch's items again one by one, and those for
    which it raises again are skipped, by name.

    Args:
        make: Returns a record or what is wrong for each item that it is given.
        items: Each with a name that messages call it.
        size: Of a batch.
    """
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, size)):
        for (name, _), result in zip(batch, _tried(make, batch), strict=True):
            if isinstance(result, DataError):
                skips.skip(result)
            elif isinstance(result, Exception):
                skips.skip(DataError(f"{name}: {describe(result)}", reason=type(result).__name__))
            else:
                yield result


def _tried(
    make: Callable[[Sequence[T]], Sequence[Record | DataError]], batch: Sequence[tuple[str, T]]
) -> Sequence[Record | Exception]:
    try:
        return make([item for _, item in batch])
    except Exception as error:  # noqa: BLE001 -- whatever a model or a decoder raises
        if len(batch) == 1:
            return [error]
        return [_tried(make, [item])[0] for item in batch]
