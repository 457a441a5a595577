"""Small tars of records, and what reads their names back."""

from pathlib import Path

import torch
from torch import Tensor, nn

from kosmosg.data.records import Caption, Edit, Example, Record
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import write_shard
from toys.stages import Examples


def write_tars(folder: Path, counts: list[int], *, prefix: str = "") -> list[Path]:
    """Tars of one-word samples: `KEY.txt`, as many in each as told."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for tar, count in enumerate(counts):
        paths.append(folder / f"{tar:03}.tar")
        names = [f"{prefix}{tar}-{sample}" for sample in range(count)]
        write_shard(paths[-1], [(name, {"txt": name.encode()}) for name in names])
    return paths


def write_records(folder: Path, kinds: dict[type[Record], list[int]]) -> dict[type[Record], Path]:
    """Folders of tars with toy records, one a kind: as many records in each tar as told."""
    source = {type(record): record for record in Examples().batch(0, 3)}
    made = {}
    for kind, counts in kinds.items():
        made[kind] = folder / kind.__name__.lower()
        made[kind].mkdir(parents=True)
        files = to_bytes(source[kind])
        for tar, count in enumerate(counts):
            samples = [(f"{kind.__name__}-{tar}-{i}", files) for i in range(count)]
            write_shard(made[kind] / f"{tar:03}.tar", samples)
    return made


KINDS: tuple[type[Record], ...] = (Example, Edit, Caption)


class Names:
    """A stage whose batches are the records' names: as numbers, for processes to send."""

    trainable = ("*",)

    def collate(self, records: list[object]) -> Tensor:
        names = [getattr(record, "key", record) for record in records]
        return torch.tensor([list(str(name).encode().ljust(24)) for name in names])

    def weight(self, batch: Tensor) -> int:
        return len(batch)

    def loss(
        self, model: nn.Module, batch: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        raise NotImplementedError


def names_of(batch: Tensor) -> list[str]:
    return [bytes(row.tolist()).decode().strip() for row in batch]
