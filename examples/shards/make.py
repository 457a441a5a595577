"""The example shards: `python examples/shards/make.py [DIR]`, some of the toy world's records.

They are what training streams give, so none shows a creature that is held out.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import write_shard
from kosmosg.toyworld.streams import RecordStream, stage1_stream, stage3_stream
from kosmosg.toyworld.version import VERSION

SEED = 2026
SHARDS = {
    "documents": (Document, stage1_stream, 16),
    "captions": (Caption, stage3_stream, 16),
    "examples": (Example, stage3_stream, 10),
    "edits": (Edit, stage3_stream, 12),
}


def records(name: str) -> list[Record]:
    """Return the records of a shard: the stream's first of this kind."""
    kind, stream, number = SHARDS[name]
    found = (one for one in endless(stream(SEED)) if isinstance(one, kind))
    said = {"source": "toyworld", "toyworld": VERSION.split()[0], "license": "MIT"}
    return [replace(one, provenance=said | {"source_id": one.key}) for one in islice(found, number)]


def endless(stream: RecordStream) -> Iterator[Record]:
    """Yield the records of a stream."""
    step = 0
    while True:
        yield from stream.batch(step, 40)
        step += 1


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for shard in SHARDS:
        samples = ((record.key, to_bytes(record)) for record in records(shard))
        number = write_shard(directory / f"{shard}.tar", samples)
        print(f"{shard}.tar: {number} records")
