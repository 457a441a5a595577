"""Reading ahead: in a thread or in any number of processes, for any number of ranks."""

import errno
import os
import re
import signal
import time
from contextlib import closing

import pytest
import torch

from kosmosg.data.mixture import Mixture, rank_slice, read_slice
from kosmosg.data.shards import Shards
from kosmosg.data.skips import Skips
from kosmosg.data.sources import DataConfig, Opened, SourceConfig, open_stream
from kosmosg.errors import ConfigError, DataError, KosmosGError
from kosmosg.train.prefetch import Plan
from kosmosg.train.workers import AHEAD, read_ahead
from toys.tars import KINDS, Names, names_of, write_records, write_tars
from toys.training import Pairs, Regression

SIZE = 12


def word(key, files):
    text = files["txt"].decode()
    if text.startswith("bad"):
        raise DataError(f"record {key} is bad", reason="bad word")
    return text


def blend(folder, *, limit=1.0):
    """Three shuffled sources, 2:2:1; opened anew, as another process would."""
    skips = Skips(limit=limit)
    sources = {}
    for seed, name in enumerate(("a", "b", "c")):
        paths = sorted((folder / name).glob("*.tar"))
        sources[name] = Shards(paths, decode=word, seed=seed, skips=skips, window=2)
    return Opened(stream=Mixture(sources, {"a": 2, "b": 2, "c": 1}, seed=0), skips=skips)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blend")
    for name in ("a", "b", "c"):
        write_tars(folder / name, [5, 8, 3, 6], prefix=name)
    return folder


def plan(stream, *, steps=range(8), rank=0, num_ranks=1, micro_batch=2, stage=None):
    return Plan(
        stage=stage or Names(),
        stream=stream,
        steps=steps,
        indices=rank_slice(SIZE, rank=rank, num_ranks=num_ranks),
        global_batch_size=SIZE,
        micro_batch=micro_batch,
    )


def read(a_plan, *, workers):
    """Return the names of each step, each with its index in the global batch."""
    with closing(read_ahead(a_plan, workers=workers)) as reading:
        return {
            step: [
                (piece.first_index + place, name)
                for piece in pieces
                for place, name in enumerate(names_of(piece.batch))
            ]
            for step, pieces in reading
        }


def test_the_union_of_ranks_is_the_single_rank_whatever_the_workers(folder):
    whole = blend(folder)
    expected = {step: list(enumerate(whole.batch(step, SIZE))) for step in range(8)}
    assert len({name for step in expected.values() for _, name in step}) > 50
    for num_ranks in (1, 2, 4):
        for workers in (0, 1, 2):
            ranks = [
                read(plan(blend(folder), rank=rank, num_ranks=num_ranks), workers=workers)
                for rank in range(num_ranks)
            ]
            for step, names in expected.items():
                assert [name for rank in ranks for name in rank[step]] == names


def test_going_on_with_other_ranks_and_workers_gives_the_same_records(folder):
    whole = read(plan(blend(folder)), workers=0)
    first = [
        read(plan(blend(folder), steps=range(3), rank=rank, num_ranks=2), workers=1)
        for rank in (0, 1)
    ]
    then = read(plan(blend(folder), steps=range(3, 8), micro_batch=5), workers=2)
    joined = {step: first[0][step] + first[1][step] for step in range(3)} | then
    assert joined == whole


def test_slices_that_begin_anywhere_are_read_and_wrong_ranks_refused():
    stream = Pairs(0)
    for num_ranks in (1, 2, 3, 5):
        slices = [rank_slice(7, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        assert [index for one in slices for index in one] == list(range(7))
        read_names = [
            record.key
            for one in slices
            for record in read_slice(stream, 3, one, global_batch_size=7)
        ]
        assert read_names == [f"pair-{index}" for index in range(21, 28)]
    for rank, num_ranks in ((2, 2), (-1, 2), (0, 9)):
        with pytest.raises(ConfigError, match="ranks count from 0"):
            rank_slice(8, rank=rank, num_ranks=num_ranks)


def test_batches_are_equal_to_the_bit(tmp_path):
    """Real records of stage 3, whose pictures go from process to process."""
    from kosmosg.train.stage3_instruct import InstructStage
    from toys.stages import toys

    kinds = write_records(tmp_path, {kind: [3, 2] for kind in KINDS})
    sources = {kind.__name__: SourceConfig(paths=str(path)) for kind, path in kinds.items()}
    made = toys()
    stage = InstructStage(
        tokenizer=made.tokenizer,
        num_latents=made.model.mllm.config["num_latents"],
        image_size=made.model.mllm.config["image_size"],
        target_size=16,
        image_decoder=made.image_decoder,
        trainable=("*",),
        condition_drop=0.1,
        loss_weighting="uniform",
        min_snr_gamma=None,
    )

    def batches(workers):
        opened = open_stream(DataConfig(sources=sources), stage="instruct")
        a_plan = plan(opened, stage=stage, steps=range(3))
        with closing(read_ahead(a_plan, workers=workers)) as reading:
            return [(piece, piece.batch) for _, pieces in reading for piece in pieces]

    expected = batches(0)
    for workers in (1, 2):
        for (piece, batch), (other, theirs) in zip(expected, batches(workers), strict=True):
            assert (piece.first_index, piece.weight, piece.keys) == (
                other.first_index, other.weight, other.keys,
            )  # fmt: skip
            assert torch.equal(batch.target_images, theirs.target_images)
            for name in ("input_ids", "attention_mask", "image_mask", "pixel_values"):
                ours, other_tensor = (
                    getattr(one.sequences.batches[0], name) for one in (batch, theirs)
                )
                assert (ours is None) == (other_tensor is None)
                assert ours is None or (
                    torch.equal(ours, other_tensor) and ours.dtype == other_tensor.dtype
                )


class Fails(Pairs):
    def __init__(self, error):
        super().__init__(0)
        self.error = error

    def batch(self, step, size):
        if step * size >= 2 * SIZE:
            raise self.error
        return super().batch(step, size)


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (DataError("record x: no", reason="why"), DataError, "^record x: no$"),
        (ValueError("of a library"), ValueError, "^of a library$"),
        (Unpicklable("this", "that"), (Unpicklable, KosmosGError), "this and that$"),
    ],
)
def test_an_exception_comes_through_with_its_words(error, expected, words, workers):
    seen = []
    with closing(read_ahead(plan(Fails(error), stage=Regression()), workers=workers)) as reading:
        steps = (seen.append(step) for step, _ in reading)
        with pytest.raises(expected) as caught:
            list(steps)
    assert seen == [0, 1]
    assert re.search(words, str(caught.value))
    if isinstance(error, DataError):
        assert caught.value.reason == "why"
    if workers:
        assert "in batch\n    raise self.error" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_skips_are_counted_here(tmp_path, workers):
    for name in ("a", "b", "c"):
        write_tars(tmp_path / name, [4, 4], prefix="bad" if name == "c" else name)
        if name == "c":
            write_tars(tmp_path / name, [4], prefix="c")  # the first tar is good, the other bad
    stream = blend(tmp_path)
    read(plan(stream), workers=workers)
    again = blend(tmp_path)
    again.batch(0, 8 * SIZE)
    assert stream.skips.reasons == again.skips.reasons
    assert stream.skips.num_kept == again.skips.num_kept == 8 * SIZE
    assert stream.skips.reasons["bad word"] > 5
    assert len(stream.skips.named["bad word"]) == 5
    with pytest.raises(DataError, match="were left out, more than 5%"):
        read(plan(blend(tmp_path, limit=0.05), steps=range(100)), workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_limit_is_for_all_that_was_read_not_for_one_process_or_piece(tmp_path, workers):
    paths = [
        *write_tars(tmp_path / "good", [580, 400], prefix="good"),
        *write_tars(tmp_path / "bad", [20], prefix="bad"),
    ]
    paths = [paths[0], paths[2], paths[1]]
    skips = Skips(limit=0.1)
    shards = Shards(paths, decode=word, seed=0, skips=skips, order="stored")
    a_plan = Plan(
        stage=Names(),
        stream=Opened(stream=shards, skips=skips),
        steps=range(4),
        indices=range(240),
        global_batch_size=240,
        micro_batch=120,
    )
    assert len(read(a_plan, workers=workers)) == 4
    assert 20 <= skips.num_skipped < 40


class Marks(Pairs):
    """Leaves a mark for each reading, whichever process reads."""

    def __init__(self, path):
        super().__init__(0)
        self.file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def batch(self, step, size):
        os.write(self.file, b".")
        return super().batch(step, size)


def test_only_a_few_micro_batches_are_read_ahead(tmp_path):
    marks = Marks(tmp_path / "marks")
    a_plan = plan(marks, stage=Regression(), steps=range(10**9))
    with closing(read_ahead(a_plan, workers=2)) as reading:
        _, pieces = next(iter(reading))
        assert len(pieces) == 6
        time.sleep(0.3)
        assert (tmp_path / "marks").stat().st_size == 6 + 2 * AHEAD
    os.close(marks.file)


class NoRoom(Names):
    """Its batches cannot be written into memory for another process."""

    class Batch(list):
        def __reduce__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    def collate(self, records):
        return self.Batch(records)


def test_why_a_process_ended_is_said(folder, capfd):
    a_plan = plan(blend(folder), stage=NoRoom())
    with pytest.raises(KosmosGError, match="ended with code 1"):
        read(a_plan, workers=1)
    assert "No space left on device" in capfd.readouterr().err


class Slow(Pairs):
    def batch(self, step, size):
        time.sleep(0.02)
        return super().batch(step, size)


def test_a_process_that_dies_is_named_and_none_is_left():
    a_plan = plan(Slow(0), stage=Regression(), steps=range(50))
    with closing(read_ahead(a_plan, workers=2)) as reading:
        processes = [process.number for process in reading._processes]
        steps = iter(reading)
        next(steps)
        os.kill(processes[1], signal.SIGKILL)
        words = rf"pid {processes[1]}\) was ended by SIGKILL; if memory was short"
        with pytest.raises(KosmosGError, match=words):
            list(steps)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def stuck_word(key, files):
    if key == "1-2":
        time.sleep(600)
    return word(key, files)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_that_hangs_is_named(tmp_path, workers):
    paths = write_tars(tmp_path, [20, 5])
    skips = Skips()
    stream = Shards(paths, decode=stuck_word, seed=0, skips=skips, order="stored")
    a_plan = plan(Opened(stream=stream, skips=skips), steps=range(9))
    reading = read_ahead(a_plan, workers=workers, timeout_s=0.5)
    steps = []
    with closing(reading), pytest.raises(DataError) as caught:
        steps.extend(step for step, _ in reading)
    assert steps == [0]
    told = str(caught.value)
    assert told.count("nothing from the") == 1
    assert f"for 0.5 s; the last record that it began to read: {paths[1]}: 1-2;" in told
    if workers:
        assert re.search(r"^worker \d: nothing from the process that reads ahead \(pid \d+\)", told)
