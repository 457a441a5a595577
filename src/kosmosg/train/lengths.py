"""Sequences in groups of like length, so that little of what is computed is padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kosmosg.sequence import Batch, Encoded, collate


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """A micro-batch's sequences in groups, each padded to its own longest.

    `rows` says for each sequence, in the order in which they were given, which row it is of all
    groups' rows one after another.
    """

    batches: tuple[Batch, ...]
    rows: Int[Tensor, " batch"]

    def to(self, device: torch.device | str) -> "Groups":
        """Return them on another device."""
        batches = tuple(batch.to(device) for batch in self.batches)
        return Groups(batches=batches, rows=self.rows.to(device))


def group(encoded: Sequence[Encoded], *, num_groups: int, pad_id: int) -> Groups:
    """Return sequences collated in groups of like length; 1 is one batch in the order given.

    Raises:
        ValueError: If there are none.
    """
    places = by_length([len(one.input_ids) for one in encoded], num_groups=num_groups)
    batches = tuple(collate([encoded[place] for place in some], pad_id=pad_id) for some in places)
    order = torch.tensor([place for some in places for place in some])
    return Groups(batches=batches, rows=order.argsort())


def by_length(lengths: Sequence[int], *, num_groups: int) -> list[list[int]]:
    """Return the places of `lengths` in groups, such that the padded groups take least room.

    The shortest come first; places in a group keep their order. There are always `num_groups` of
    them, or as many as there are lengths, whatever these are: ranks that share a sharded model have
    to call it equally often.

    Raises:
        ValueError: If there are no lengths, or no groups.

    Example:
        >>> by_length([9, 2, 8, 2, 3], num_groups=2)
        [[1, 3, 4], [0, 2]]
    """
    if not lengths or num_groups < 1:
        raise ValueError(f"{len(lengths)} lengths in {num_groups} groups; both must be at least 1")
    count = len(lengths)
    order = sorted(range(count), key=lambda place: lengths[place])
    longest = np.array([0, *(lengths[place] for place in order)], dtype=float)
    ends = np.arange(count + 1)
    # What a group takes that begins behind `row` sequences and ends behind `column` of them.
    taken = (ends[None] - ends[:, None]) * longest[None]
    taken[ends[:, None] >= ends[None]] = np.inf
    least = np.where(ends == 0, 0.0, np.inf)  # of no groups
    begins = []
    for _ in range(min(num_groups, count)):
        totals = least[:, None] + taken
        begins.append(totals.argmin(0))
        least = totals.min(0)
    groups: list[list[int]] = []
    end = count
    for begin in reversed(begins):
        groups.append(sorted(order[int(begin[end]) : end]))
        end = int(begin[end])
    return groups[::-1]


def padding(batches: Sequence[Batch]) -> float:
    """Return the share of all batches' positions that are padding, 0 to 1."""
    real = sum(int(batch.attention_mask.sum()) for batch in batches)
    return 1 - real / sum(batch.attention_mask.numel() for batch in batches)
