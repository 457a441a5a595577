import pickle
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.data import samples, tars
from kosmosg.data.measure import measure
from kosmosg.data.order import Order
from kosmosg.data.records import Caption, Document, Edit
from kosmosg.data.rows import PackedRows, batch_rows, blend, fill_rate, pack_shards
from kosmosg.data.skips import Skips
from kosmosg.errors import ConfigError, DataError
from kosmosg.sequence import IGNORED, encode_document, encode_row
from kosmosg.tokenizer import Tokenizer
from toys.parts import IMAGE_SIZE, NUM_LATENTS, TOKENIZER, WORDS

PICTURE = Image.new("RGB", (4, 4), "red")
SEQ_LEN = 24
SIZES = {"num_latents": NUM_LATENTS, "image_size": IMAGE_SIZE}


def document(rng, key):
    """A page of sentences and pictures; now and then a sentence longer than a row."""
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.3:
            parts.append(PICTURE)
        lengths = rng.integers(1, 9, 3) if rng.random() < 0.9 else [60]
        parts.append("".join(f"{' '.join(rng.choice(WORDS[:10], n))}. " for n in lengths))
    return Document(key=key, parts=tuple(parts))


@dataclass
class Tars:
    """Shards on the disk, read by place; it counts what is read."""

    paths: list
    read: Counter = field(default_factory=Counter)

    @property
    def num_shards(self):
        return len(self.paths)

    def shard(self, index):
        return Tar(self, index, list(tars.read_index(self.paths[index])))

    def fingerprint(self, index):
        state = self.paths[index].stat()
        return f"{self.paths[index].name} {state.st_size} {state.st_mtime_ns}"


@dataclass
class Tar:
    source: Tars
    index: int
    found: list

    def __len__(self):
        return len(self.found)

    def __getitem__(self, index):
        sample = self.found[index]
        self.source.read[sample.key] += 1
        with self.source.paths[self.index].open("rb") as file:
            return samples.from_bytes(sample.key, tars.read_sample(file, sample))


def write(path, records):
    """A record that is bytes already is written as they are."""
    files = [
        (record[0], record[1])
        if isinstance(record, tuple)
        else (record.key, samples.to_bytes(record))
        for record in records
    ]
    tars.write_shard(path, files)
    return path


def shards(folder, counts=(9, 14, 1, 11), name="s"):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    return Tars(
        [
            write(folder / f"{i:03}.tar", [document(rng, f"{name}-{i}-{j}") for j in range(count)])
            for i, count in enumerate(counts)
        ]
    )


def packed(source, skips=None, **options):
    return pack_shards(
        source,
        TOKENIZER,
        num_latents=NUM_LATENTS,
        seq_len=SEQ_LEN,
        skips=skips or Skips(),
        **options,
    )


def stream(source, seed=0, window=2, skips=None):
    return PackedRows(source, packed(source), seed=seed, window=window, skips=skips or Skips())


def keys(rows):
    return [row.key for row in rows]


def real(labels):
    return labels[labels != IGNORED].tolist()


def test_lengths_are_those_of_the_sequence():
    records = [Document(key="d", parts=("a red cat", PICTURE)), Document(key="e", parts=(" ",))]
    found = measure(records, TOKENIZER, num_latents=NUM_LATENTS)
    assert found.lengths.counts.tolist() == [2, 0]
    assert found.lengths.sizes.tolist() == [len(TOKENIZER.encode("a red cat")), NUM_LATENTS + 2]
    assert found.lengths.pictures.tolist() == [False, True]
    assert [str(error) for error in found.errors] == ["record e has neither words nor pictures"]


def test_rows_in_order_predict_what_the_documents_do(tmp_path):
    source = shards(tmp_path)
    rows = stream(source, seed=None)
    encoded = [encode_row(row.segments, TOKENIZER, **SIZES) for row in rows.batch(0, rows.num_rows)]
    assert max(len(row.input_ids) for row in encoded) == SEQ_LEN
    records = [source.shard(i)[j] for i in range(4) for j in range(len(source.shard(i)))]
    alone = [encode_document(record.parts, TOKENIZER, **SIZES) for record in records]
    assert [index for row in encoded for index in real(row.labels)] == [
        index for one in alone for index in real(one.labels)
    ]
    assert sum(int(row.image_mask.sum()) for row in encoded) == sum(
        int(one.image_mask.sum()) for one in alone
    )
    shown = [len(row.pixel_values) for row in encoded if row.pixel_values is not None]
    assert sum(shown) == sum(len(one.pixel_values) for one in alone if one.pixel_values is not None)
    filled = sum(len(row.input_ids) for row in encoded) / (SEQ_LEN * len(encoded))
    assert fill_rate(packed(source)) == pytest.approx(filled)


def test_a_row_that_holds_whole_documents_is_their_sequences(tmp_path):
    first, second = Document(key="a", parts=("a cat.", PICTURE)), Caption(key="b", text="the hat")
    source = Tars([write(tmp_path / "0.tar", [first, second])])
    (row,) = stream(source).batch(0, 1)
    assert row.documents == ("a", "b")
    joined = encode_row(row.segments, TOKENIZER, **SIZES)
    alone = [
        encode_document(parts, TOKENIZER, **SIZES) for parts in (("a cat.", PICTURE), ("the hat",))
    ]
    for name in ("input_ids", "image_mask", "labels"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(one, name) for one in alone]))
    assert joined.document_ids.tolist() == [0] * len(alone[0].input_ids) + [1] * len(
        alone[1].input_ids
    )


def test_an_epoch_has_each_row_once_and_the_next_has_another_order(tmp_path):
    rows = stream(shards(tmp_path))
    first, second = keys(rows.batch(0, rows.num_rows)), keys(rows.batch(1, rows.num_rows))
    assert len(set(first)) == rows.num_rows > 20
    assert set(first) == set(second)
    assert first != second
    again = pickle.loads(pickle.dumps(rows))  # as a worker gets it
    assert keys(again.batch(1, rows.num_rows)) == second
    assert keys(stream(shards(tmp_path), seed=1).batch(0, rows.num_rows)) != first


def test_any_step_gives_what_an_uninterrupted_run_saw(tmp_path):
    source = shards(tmp_path)
    rows = stream(source)
    size = 7
    steps = 3 * rows.num_rows // size  # three epochs, whose ends fall inside a batch
    seen = [keys(rows.batch(step, size)) for step in range(steps)]
    for step in (0, 5, steps - 1):
        assert keys(stream(source).batch(step, size)) == seen[step]
    # Half of each batch on each of two ranks.
    halves = [keys(stream(source).batch(2 * 5 + rank, size)) for rank in range(2)]
    assert halves[0] + halves[1] == keys(stream(source).batch(5, 2 * size))


def test_shards_are_mixed_within_windows_only():
    order = Order([4, 3, 5, 2, 6], seed=3, window=2)
    found = [order[number] for number in range(20)]
    assert sorted(found) == [
        (s, r) for s, count in enumerate((4, 3, 5, 2, 6)) for r in range(count)
    ]
    runs = list(dict.fromkeys(shard for shard, _ in found))
    ends = np.cumsum([(4, 3, 5, 2, 6)[shard] for shard in runs])
    assert {shard for shard, _ in found[: ends[1]]} == set(runs[:2])
    assert {shard for shard, _ in found[ends[1] : ends[3]]} == set(runs[2:4])
    assert [order[number] for number in range(20, 40)] != found
    plain = Order([2, 0, 1], seed=None, window=2)
    assert [plain[number] for number in range(4)] == [(0, 0), (0, 1), (2, 0), (0, 0)]


def damaged_shard(path):
    rng = np.random.default_rng(5)
    good = [document(rng, f"d{i}") for i in range(6)]
    broken = {"json": b"{", "png": b""}
    edit = Edit(key="edit", caption="", before=(PICTURE,), instruction="red", after=PICTURE)
    blank = Document(key="blank", parts=("  ", "\n"))
    half = samples.to_bytes(Document(key="half", parts=("a cat", PICTURE)))
    half["1.png"] = half["1.png"][:40]
    records = [*good[:2], ("json", broken), good[2], edit, ("half", half), blank, *good[3:]]
    return write(path, records), good


def test_damaged_records_take_no_room_and_are_counted(tmp_path):
    path, good = damaged_shard(tmp_path / "0.tar")
    skips = Skips(limit=0.9)
    bad = packed(Tars([path]), skips)
    assert skips.num_kept == 6
    assert skips.reasons == {
        "bad json": 1,
        "wrong kind": 1,
        "unreadable picture": 1,
        "empty record": 1,
    }
    (tmp_path / "good").mkdir()
    source = Tars([write(tmp_path / "good/0.tar", good)])
    assert bad[0].num_rows == packed(source)[0].num_rows
    assert bad[0].fill == packed(source)[0].fill
    reading = Skips()
    rows = PackedRows(Tars([path]), bad, seed=None, skips=reading)
    for row, other in zip(
        rows.batch(0, rows.num_rows), stream(source, seed=None).batch(0, rows.num_rows), strict=True
    ):
        assert row.documents == other.documents
        assert [segment.ends for segment in row.segments] == [s.ends for s in other.segments]
    assert reading.num_skipped == 0
    with pytest.raises(DataError, match="4 of 10 records were left out"):
        packed(Tars([path]), Skips(limit=0.1, least=10))


def test_what_was_damaged_since_is_left_out_of_its_row_and_counted(tmp_path):
    source = Tars([write(tmp_path / "0.tar", [Caption(key=k, text="a cat") for k in "abc"])])
    skips = Skips()
    rows = PackedRows(source, packed(source), seed=0, skips=skips)
    assert rows.num_rows == 1
    state, data = source.fingerprint(0), source.paths[0].read_bytes()
    source.paths[0].write_bytes(data.replace(b'"a cat"', b'"a cat\n', 1))
    assert rows.batch(0, 1)[0].documents == ("b", "c")
    assert skips.reasons == {"bad json": 1}
    source.paths[0].write_bytes(data.replace(b'"a cat"', b'"a cat\n'))
    with pytest.raises(DataError, match="rows 0 to 15 hold no record that can be read: "):
        rows.batch(0, 1)
    assert state != source.fingerprint(0)


def test_lengths_are_kept_until_something_else_would_come_out(tmp_path):
    source, cache = shards(tmp_path / "data"), tmp_path / "cache"
    skips = Skips()
    first = packed(source, skips, cache_dir=cache)
    assert source.read.total() == 35 == skips.num_kept
    assert len(list(cache.iterdir())) == 4
    source.read.clear()

    def check(num_read, tokenizer=TOKENIZER, num_latents=NUM_LATENTS):
        source.read.clear()
        again = pack_shards(
            source,
            tokenizer,
            num_latents=num_latents,
            seq_len=SEQ_LEN,
            skips=Skips(),
            cache_dir=cache,
        )
        assert source.read.total() == num_read
        return all(np.array_equal(a.bounds, b.bounds) for a, b in zip(first, again, strict=True))

    assert check(0)
    for path, damage in zip(
        cache.iterdir(),
        (
            lambda data: data[:50],
            lambda data: data[:-400] + b"?" * 400,
            lambda data: data[:0],
            lambda data: b"PK" + data,
        ),
        strict=True,
    ):
        path.write_bytes(damage(path.read_bytes()))
    assert check(35)
    assert check(0)
    assert not check(35, num_latents=NUM_LATENTS + 1)
    assert not check(35, tokenizer=Tokenizer.from_words(["a", "."]))
    write(source.paths[2], [Caption(key="new", text="a cat")])
    assert not check(1)
    assert not any(path.name.endswith(".part") for path in cache.iterdir())


def test_kept_lengths_count_what_was_left_out_again(tmp_path):
    path, _ = damaged_shard(tmp_path / "0.tar")
    counts = []
    for _ in range(2):
        skips = Skips(limit=0.9)
        packed(Tars([path]), skips, cache_dir=tmp_path / "cache")
        counts.append((skips.reasons, skips.named, skips.num_kept))
    assert counts[0] == counts[1]
    assert counts[0][0].total() == 4


def test_threads_change_nothing(tmp_path):
    source = shards(tmp_path)
    one, four = packed(source, threads=1), packed(source, threads=4)
    assert all(np.array_equal(a.bounds, b.bounds) for a, b in zip(one, four, strict=True))


def test_nothing_to_pack_is_said(tmp_path):
    source = Tars([write(tmp_path / "0.tar", [])])
    with pytest.raises(ConfigError, match=r"the 1 shards hold nothing to pack \(no records\)"):
        packed(source)
    with pytest.raises(ConfigError, match="rows of 0 shards for a source of 1; pack it again"):
        PackedRows(source, [], seed=0, skips=Skips())


def test_a_batch_has_half_a_million_tokens_of_text_and_pairs_and_a_fifth_of_pages(tmp_path):
    assert batch_rows() == 588
    assert batch_rows(24 * SEQ_LEN, seq_len=SEQ_LEN) == 24
    assert batch_rows(1) == 12
    sources = {
        name: stream(shards(tmp_path / name, name=name))
        for name in ("text", "pairs", "interleaved")
    }
    blended = blend(**sources, seed=0)
    size = 24
    for step in range(3):
        names = Counter(row.documents[0].split("-")[0] for row in blended.batch(step, size))
        assert names == {"text": 10, "pairs": 10, "interleaved": 4}
    blocks = batch_rows() / 12
    assert 5 * blocks * 2048 == pytest.approx(0.5e6, rel=0.01)
    assert 2 * blocks * 2048 == pytest.approx(0.2e6, rel=0.01)
