import io
import json
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from kosmosg.data.compose import Composed
from kosmosg.data.records import Caption, Document, Edit, Example
from kosmosg.data.samples import to_bytes
from kosmosg.data.sources import DataConfig, SourceConfig, find_tars, open_stream, open_validation
from kosmosg.data.tars import write_shard
from kosmosg.errors import ConfigError, DataError
from toys.model import toy_picture
from toys.tars import KINDS, write_records, write_tars


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def config(**paths):
    return DataConfig(sources={name: SourceConfig(paths=str(path)) for name, path in paths.items()})


def test_stage_3_is_a_blend_of_composed_records(tmp_path):
    kinds = write_records(tmp_path, {kind: [4, 3] for kind in KINDS})
    weights = {Example: 2, Edit: 2, Caption: 1}
    sources = {
        kind.__name__: SourceConfig(paths=(str(kinds[kind] / "*.tar"),), weight=weights[kind])
        for kind in KINDS
    }
    opened = open_stream(DataConfig(sources=sources), stage="instruct")
    records = opened.batch(0, 35)
    assert all(isinstance(record, Composed) for record in records)
    for start in range(0, 35, 5):
        names = Counter(record.key.partition("-")[0] for record in records[start : start + 5])
        assert names == {"Example": 2, "Edit": 2, "Caption": 1}
    again = open_stream(DataConfig(sources=sources), stage="instruct").batch(3, 5)
    assert [(r.key, len(r.prompt)) for r in again] == [
        (r.key, len(r.prompt)) for r in records[15:20]
    ]
    other = open_stream(DataConfig(sources=sources, seed=1), stage="instruct").batch(0, 35)
    assert [record.key for record in other] != [record.key for record in records]


def test_stage_2_reads_no_pixel(tmp_path):
    files = to_bytes(Caption(key="c", text="words", image=toy_picture(0, (64, 64))))
    broken = files["png"][: len(files["png"]) // 2]  # its head is whole
    (tmp_path / "a").mkdir()
    write_shard(tmp_path / "a" / "0.tar", [("c", {**files, "png": broken})])
    (record,) = open_stream(config(a=tmp_path / "a"), stage="align").batch(0, 1)
    assert record.text == "words"
    loose = DataConfig(sources=config(a=tmp_path / "a").sources, max_skipped=1.0)
    with pytest.raises(DataError, match="damaged picture"):
        open_stream(loose, stage="instruct").batch(0, 1)


def test_documents_are_for_stage_1_and_others_are_left_out(tmp_path):
    samples = [
        ("d", to_bytes(Document(key="d", parts=("a page",)))),
        ("c", to_bytes(Caption(key="c", text="words"))),
    ]
    write_shard(tmp_path / "0.tar", samples)
    opened = open_stream(config(a=tmp_path), stage="language")
    assert {record.key for record in opened.batch(0, 20)} == {"d"}
    assert opened.skips.named["wrong kind"][0] == (
        "record c is a caption; stage 'language' takes document"
    )


def test_tars_of_img2dataset_are_captions(tmp_path):
    samples = [
        ("000", {"jpg": png(), "txt": b" a dog \n", "json": b'{"url": "x"}'}),
        ("001", {"png": png(), "json": json.dumps({"caption": "a cat"}).encode()}),
        ("002", {"jpg": png()}),
        ("003", {"txt": b"words"}),
        ("004", {"jpg": b"no picture", "txt": b"words"}),
    ]
    write_shard(tmp_path / "0.tar", samples)
    source = SourceConfig(paths=str(tmp_path))
    data = DataConfig(sources={"laion": source}, max_skipped=1.0)
    opened = open_stream(data, stage="align")
    assert {record.text for record in opened.batch(0, 30)} == {"a dog", "a cat", "words"}
    assert opened.skips.reasons.keys() == {"no json", "unreadable picture"}
    (first, *_) = open_stream(data, stage="instruct").batch(0, 1)
    assert isinstance(first, Composed)


def test_records_that_cannot_be_composed_are_counted_and_replaced(tmp_path):
    captions = [Caption(key=f"{index}", text="no picture") for index in range(3)]
    shown = [
        Caption(key=f"s{index}", text="a dog", image=toy_picture(1, (8, 8))) for index in range(6)
    ]
    samples = [(one.key, to_bytes(one)) for one in captions + shown]
    write_shard(tmp_path / "0.tar", samples)
    data = DataConfig(sources={"a": SourceConfig(paths=str(tmp_path))}, max_skipped=1.0)
    opened = open_stream(data, stage="instruct")
    keys = [record.key for record in opened.batch(0, 45)]  # five epochs
    assert set(keys) == {one.key for one in shown}
    assert opened.skips.reasons == {"no target picture": opened.skips.num_skipped}
    assert opened.skips.num_skipped >= 15
    assert opened.skips.num_kept == 45  # one that could not be composed is not kept as well
    again = open_stream(data, stage="instruct")
    assert [record.key for record in again.batch(4, 5)] == keys[20:25]
    write_shard(tmp_path / "0.tar", samples[:3])
    with pytest.raises(DataError, match="17 samples in a row could not be used; the last: caption"):
        open_stream(data, stage="instruct").batch(0, 1)


def test_paths_are_files_folders_and_patterns(tmp_path):
    paths = write_tars(tmp_path / "a", [1, 1, 1])
    assert find_tars(str(tmp_path / "a"), name="s") == paths
    assert find_tars([str(paths[2]), str(tmp_path / "a" / "00[01].tar")], name="s") == [
        paths[2], paths[0], paths[1],
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    for given, words in {
        "nowhere": "data source 's': .*nowhere: there is no such file or folder; correct the path",
        "a/9*.tar": "nothing is called so; correct the pattern",
        "empty": r"the folder has no \*\.tar; name the folder that holds the shards",
    }.items():
        with pytest.raises(ConfigError, match=words):
            find_tars(str(tmp_path / given), name="s")
    with pytest.raises(ConfigError, match=r"has .*000\.tar 2 times; use its weight instead"):
        find_tars([str(paths[0]), str(tmp_path / "a")], name="s")
    with pytest.raises(ConfigError, match="'s' has no paths"):
        find_tars([], name="s")


def test_held_out_records_come_in_their_order_and_from_other_tars(tmp_path):
    for name in "abc":
        captions = [Caption(key=f"{name}{index}", text="words") for index in range(3)]
        samples = [(caption.key, to_bytes(caption)) for caption in captions]
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "0.tar", samples)
    data = config(a=tmp_path / "a")
    assert open_validation(data, stage="align") is None
    held_out = config(b=tmp_path / "b", c=tmp_path / "c").sources
    opened = open_validation(replace(data, validation=held_out), stage="align")
    keys = [record.key for record in opened.batch(0, 6)]
    assert [key for key in keys if key[0] == "b"] == ["b0", "b1", "b2"]
    assert [key for key in keys if key[0] == "c"] == ["c0", "c1", "c2"]
    assert [opened.source(number) for number in range(6)] == [key[0] for key in keys]
    both = replace(data, validation=config(v=tmp_path / "a" / "*.tar").sources)
    with pytest.raises(ConfigError, match=r"is in data\.validation\.v and in data\.sources\.a;"):
        open_validation(both, stage="align")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {}}, "data.sources is empty; name tars"),
        ({"max_skipped": 1.5}, "data.max_skipped = 1.5; it is a share"),
        ({"workers": -1}, "data.workers = -1"),
        ({"seed": -1}, "data.seed = -1"),
        ({"window": 0}, "window is 0 shards"),
    ],
)
def test_numbers_out_of_range_are_named(tmp_path, changes, words):
    write_tars(tmp_path, [1])
    fields = {"sources": {"a": SourceConfig(paths=str(tmp_path))}} | changes
    with pytest.raises(ConfigError, match=words):
        open_stream(DataConfig(**fields), stage="align")
