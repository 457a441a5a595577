"""Groups of like length: little padding, the same number of groups whatever the lengths."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.sequence import Encoded
from kosmosg.train.lengths import by_length, group, padding


def sequences(lengths):
    """Return sequences of these lengths, whose ids tell whose they are."""
    return [
        Encoded(
            input_ids=torch.full((length,), 10 + number),
            image_mask=torch.zeros(length, dtype=torch.bool),
            pixel_values=None,
        )
        for number, length in enumerate(lengths)
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 8))
def test_no_cut_into_groups_takes_less_room(lengths, num_groups):
    found = by_length(lengths, num_groups=num_groups)
    assert sorted(place for some in found for place in some) == list(range(len(lengths)))
    assert len(found) == min(num_groups, len(lengths))
    assert all(some == sorted(some) for some in found)

    def least(rest, groups):  # every cut of the sorted lengths, tried
        if groups == 1:
            return len(rest) * rest[-1]
        return min(
            end * rest[end - 1] + least(rest[end:], groups - 1)
            for end in range(1, len(rest) - groups + 2)
        )

    taken = sum(len(some) * max(lengths[place] for place in some) for some in found)
    assert taken == least(sorted(lengths), len(found))


def test_one_group_is_the_batch_in_its_order():
    assert by_length([3, 1, 2], num_groups=1) == [[0, 1, 2]]
    together = group(sequences([3, 1, 2]), num_groups=1, pad_id=1)
    assert together.rows.tolist() == [0, 1, 2]
    assert together.batches[0].input_ids.tolist() == [[10, 10, 10], [11, 1, 1], [12, 12, 1]]


def test_rows_find_each_sequence_again():
    lengths = [7, 2, 9, 3, 2, 8]
    groups = group(sequences(lengths), num_groups=3, pad_id=1)
    rows = [row for batch in groups.batches for row in batch.input_ids]
    found = [rows[row][: lengths[number]] for number, row in enumerate(groups.rows.tolist())]
    assert [row.unique().tolist() for row in found] == [[10 + number] for number in range(6)]
    assert padding(groups.batches) == pytest.approx(1 - 31 / (3 * 3 + 2 * 8 + 1 * 9))


def test_nothing_to_group_is_refused():
    for lengths, num_groups in (([], 1), ([1], 0)):
        with pytest.raises(ValueError, match="both must be at least 1"):
            by_length(lengths, num_groups=num_groups)


def caption_lengths(rng, count):
    """Positions of captions from the web, as far as they are known: see docs/results.md."""
    return np.clip(rng.lognormal(np.log(15), 0.6, count), 4, 85).astype(int).tolist()


def test_padding_of_captions_is_below_a_tenth():
    """56 captions, the paper's batch on each of 64 GPUs, in eight groups."""
    rng = np.random.default_rng(0)
    shares = {1: [], 8: []}
    for _ in range(50):
        encoded = sequences(caption_lengths(rng, 56))
        for num_groups, found in shares.items():
            groups = group(encoded, num_groups=num_groups, pad_id=1)
            found.append(padding(groups.batches))
    assert np.mean(shares[1]) > 0.6
    assert np.mean(shares[8]) < 0.08
    assert max(shares[8]) < 0.1


def test_padding_of_stage_3_is_below_a_tenth():
    """16 prompts and the null prompt: words alone, and one to three pictures of 66 positions."""
    rng = np.random.default_rng(0)
    shares = {1: [], 6: []}
    for _ in range(50):
        words = caption_lengths(rng, 16)
        pictures = rng.choice([0, 1, 2, 3], p=[0.2, 0.5, 0.2, 0.1], size=16)
        lengths = [count + 66 * shown for count, shown in zip(words, pictures, strict=True)]
        for num_groups, found in shares.items():
            found.append(
                padding(group(sequences([*lengths, 1]), num_groups=num_groups, pad_id=1).batches)
            )
    assert np.mean(shares[1]) > 0.5
    assert np.mean(shares[6]) < 0.07
    assert max(shares[6]) < 0.1
