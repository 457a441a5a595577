"""Each thing that can be wrong with a shard is found where it is, and nothing hides another."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg.data.looking import find_tars
from kosmosg.data.records import Caption, Document, Edit
from kosmosg.data.samples import to_bytes
from kosmosg.data.tars import read_index
from kosmosg.data.validate import Report, validate
from kosmosg.errors import DataError
from toys.shards import entity, example, one_of_each, picture, tar_of, write

FILES = to_bytes(example("k"))
FIELDS = json.loads(FILES["json"])


def look(*tars, **options):
    report = Report()
    return list(validate(tars, report, **options)), report


def member(name, data):
    """The files of an example in which one is replaced, or gone."""
    files = {f"k.{file}": content for file, content in (FILES | {name: data}).items()}
    return {file: content for file, content in files.items() if content is not None}


def changed(indent=None, **changes):
    return member("json", json.dumps(FIELDS | changes, indent=indent).encode())


def second(**changes):
    return [FIELDS["entities"][0], FIELDS["entities"][1] | changes]


def test_good_shards_are_counted_and_nothing_is_said(tmp_path):
    tars = [write(tmp_path / f"{record.key}.tar", [record]) for record in one_of_each()]
    problems, report = look(*tars)
    assert problems == []
    assert (report.num_shards, report.num_wrong, report.num_files_unused) == (5, 0, 0)
    assert report.num_records == {"document": 1, "caption": 2, "example": 1, "edit": 1}
    assert report.num_pictures == {"document": 1, "caption": 1, "example": 1, "edit": 3}
    assert report.num_words == {"document": 3, "caption": 4, "example": 7, "edit": 7}


@pytest.mark.parametrize(
    ("files", "where", "reason", "what"),
    [
        (member("json", None), ("", 0, 0), "no json", "has no json beside"),
        (member("json", b'{"kind":\n  oops}'), ("k.json", 2, 3), "bad json", "Expecting value"),
        (member("json", b'{"a":\n"\xff"}'), ("k.json", 2, 2), "bad json", "codec can't decode"),
        (member("json", b"[1]"), ("k.json", 0, 0), "bad json", "not an object"),
        (changed(format_version=9), ("k.json", 0, 0), "another format version", "version 9"),
        (changed(kind="poem"), ("k.json", 0, 0), "unknown kind", "kind 'poem' is none of"),
        (
            changed(indent=1, entities=second(start="2")),
            ("k.json", 15, 13),
            "bad field start",
            "field 'entities[1].start' is '2', expected a whole number",
        ),
        (
            changed(indent=1, entities=[{"mention": "dog"}]),
            ("k.json", 5, 3),
            "bad field start",
            "field 'entities[0].start' is 'nothing'",
        ),
        (changed(indent=1, caption=[]), ("k.json", 3, 13), "bad field caption", "'caption' is []"),
        (
            changed(indent=1, provenance={"url": 3}),
            ("k.json", 23, 10),
            "bad field provenance",
            "field 'provenance.url' is 3",
        ),
        (changed(entities=second(start=1)), ("k.json", 0, 0), "mentions overlap", "'cat' at 1"),
        (
            changed(entities=second(start=11)),
            ("k.json", 0, 0),
            "mention not in caption",
            "reads ' cat' where the mention 'cat'",
        ),
        (
            member("0.crop.png", None),
            ("k.json", 1, 122),
            "missing picture",
            "picture '0.crop.png' of field 'entities[0].crop' is not in the sample",
        ),
        (member("png", FILES["png"][:60]), ("k.png", 0, 0), "unreadable picture", "is damaged"),
        (
            member("1.cutout.png", FILES["1.cutout.png"][:60]),
            ("k.1.cutout.png", 0, 0),
            "unreadable picture",
            "the picture is a damaged picture",
        ),
        (
            member("0.mask.png", FILES["0.mask.png"][:45]),
            ("k.0.mask.png", 0, 0),
            "unreadable picture",
            "the picture is a damaged picture",
        ),
        (
            member(
                "0.mask.png",
                to_bytes(Caption(key="", text="", image=Image.new("1", (9, 6))))["png"],
            ),
            ("k.0.mask.png", 0, 0),
            "empty mask",
            "all black",
        ),
        (
            member(
                "0.mask.png", to_bytes(Caption(key="", text="", image=picture(1, (6, 9))))["png"]
            ),
            ("k.json", 0, 0),
            "mask of another size",
            "the mask of 'dog' is 6 x 9, the picture 9 x 6",
        ),
    ],
)
def test_each_fault_is_named_with_its_place(tmp_path, files, where, reason, what):
    problems, report = look(tar_of(tmp_path / "s.tar", files))
    assert [(one.reason, (one.member, one.line, one.column)) for one in problems] == [
        (reason, where)
    ]
    assert what.replace("is damaged", "is a damaged picture") in problems[0].what
    assert (problems[0].shard, problems[0].key) == (str(tmp_path / "s.tar"), "k")
    assert (report.num_wrong, report.num_records.total()) == (1, 0)
    line = str(problems[0])
    assert line.startswith(f"{tmp_path / 's.tar'}: k")
    assert "\n" not in line
    assert "record k" not in line


def test_one_fault_does_not_hide_another(tmp_path):
    files = member("json", b"{")
    files |= {"k.0.crop.png": b"none", "k.1.mask.png": b"none", "z.json": b"{"}
    problems, report = look(tar_of(tmp_path / "s.tar", files))
    assert [(one.member, one.reason) for one in problems] == [
        ("k.json", "bad json"),
        ("k.0.crop.png", "unreadable picture"),
        ("k.1.mask.png", "unreadable picture"),
        ("z.json", "bad json"),
    ]
    assert report.reasons == {"bad json": 2, "unreadable picture": 2}
    assert report.num_wrong == 2


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Caption(key="k", text="  "), "text"),
        (Document(key="k", parts=(picture(1), "")), "text"),
        (example("k", caption="", entities=()), "caption"),
        (
            Edit(key="k", caption="", before=(picture(1),), instruction="", after=picture(2)),
            "instruction",
        ),
        (
            Edit(
                key="k",
                caption="",
                before=(picture(1),),
                instruction="a",
                after=picture(2),
                after_caption=" ",
            ),
            "after_caption",
        ),
    ],
)
def test_empty_texts_are_named(tmp_path, record, field):
    problems, _ = look(write(tmp_path / "s.tar", [record]))
    before = to_bytes(record)["json"].decode().partition(f'"{field}": ')
    assert [(one.reason, one.line, one.column) for one in problems] == [
        ("empty text", 1, len(before[0] + before[1]) + 1)
    ]


def test_keys_are_unique_across_shards(tmp_path):
    one, other = (write(tmp_path / f"{name}.tar", one_of_each()[:2]) for name in "ab")
    twice = tar_of(tmp_path / "c.tar", {"x.json": b"{", "y.json": b"{"} | {"./x.json": b"{"})
    problems, report = look(one, other, twice)
    assert [(p.key, p.what) for p in problems if p.reason == "key twice"] == [
        ("d0", f"another sample in {one} has this key; name each record once"),
        ("c0", f"another sample in {one} has this key; name each record once"),
    ]
    assert report.num_wrong == 2 + 3


def test_a_key_twice_in_one_shard(tmp_path):
    files = {f"k.{name}": data for name, data in to_bytes(one_of_each()[2]).items()}
    path = tmp_path / "s.tar"
    tar_of(path, {**files, "l.json": files["k.json"]})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"l.json", b"k.json", 1))  # its checksum is off by one now
    problems, _ = look(path)
    assert [one.reason for one in problems] == ["damaged shard"]
    header = data[1024:1536].replace(b"l.json", b"k.json", 1)
    checksum = int(header[148:154], 8) - 1
    header = header[:148] + b"%06o" % checksum + header[154:]
    path.write_bytes(data[:1024] + header + data[1536:])
    problems, _ = look(path)
    assert [(one.key, one.reason) for one in problems] == [("k", "key twice")]


def test_shards_that_break_off_are_named_with_the_byte_and_the_rest_is_read(tmp_path):
    records = [Caption(key=f"c{i}", text="words", image=picture(i)) for i in range(6)]
    half = write(tmp_path / "half.tar", records)
    offset = [sample.members["png"].offset for sample in read_index(half)][3]
    half.write_bytes(half.read_bytes()[: offset + 10])
    nothing = tar_of(tmp_path / "nothing.tar", {"README": b"no sample"})
    (tmp_path / "text.tar").write_text("no tar")
    whole = write(tmp_path / "whole.tar", [example("good")])
    problems, report = look(half, nothing, tmp_path / "text.tar", whole)
    assert [(one.shard, one.reason) for one in problems] == [
        (str(half), "cut-off shard"),
        (str(tmp_path / "text.tar"), "unreadable shard"),
        (str(nothing), "no sample"),
    ]
    assert f"half.tar: member 'c3.png' at byte {offset - 512} ends" in str(problems[0])
    assert str(problems[0]).count("half.tar") == 1
    # Whether the sample just before the damage was whole, nobody can know.
    assert report.num_records == {"caption": 2, "example": 1}


def test_a_shard_of_which_nothing_was_kept_is_no_mistake(tmp_path):
    write(tmp_path / "none.tar", [])
    problems, report = look(tmp_path / "none.tar")
    assert not problems
    assert report.num_shards_empty == 1
    zeros = tmp_path / "zeros.tar"  # what a download leaves that had only made room
    zeros.write_bytes(bytes(3 * 10240))
    problems, _ = look(zeros)
    assert [one.reason for one in problems] == ["no sample"]


def test_img2dataset_samples_are_told_and_checked(tmp_path):
    png = FILES["png"]
    files = {
        "000.png": png,
        "000.txt": b"a caption",
        "000.json": b'{"url": "u", "width": 3}',
        "001.png": png[:50],
        "001.txt": b"a caption",
        "002.png": png,
        "002.txt": b"line one\nsecond \xff line",
        "003.png": png,
        "003.txt": b" ",
        "004.png": png,
        "004.json": b'{"caption": ""}',
    }
    tar = tar_of(tmp_path / "00000.tar", files)
    problems, report = look(tar, write(tmp_path / "ours.tar", one_of_each()))
    assert [(one.member, one.line, one.column, one.reason) for one in problems] == [
        ("001.png", 0, 0, "unreadable picture"),
        ("002.txt", 2, 8, "bad text"),
        ("003.txt", 0, 0, "empty text"),
        ("004.json", 1, 13, "empty text"),
    ]
    assert report.img2dataset == {str(tar): 5, str(tmp_path / "ours.tar"): 0}
    assert report.num_records["caption"] == 1 + 2


def test_files_that_no_record_names_are_counted(tmp_path):
    tar = tar_of(tmp_path / "s.tar", member("2.crop.png", FILES["png"]) | {"k.cls": b"7"})
    problems, report = look(tar)
    assert (problems, report.num_files_unused) == ([], 2)


def test_a_limit_counts_samples_over_all_shards(tmp_path):
    tars = [
        write(tmp_path / f"{name}.tar", [Caption(key=f"{name}{i}", text="t") for i in range(3)])
        for name in "abc"
    ]
    problems, report = look(*tars, limit=4)
    assert (problems, report.num_records) == ([], {"caption": 4})
    tars[0].write_bytes(tars[0].read_bytes()[:2500])
    problems, report = look(*tars, limit=3)
    assert [one.reason for one in problems] == ["cut-off shard"]  # and none for shards not reached
    assert report.num_records == {"caption": 3}


def test_progress_adds_up_to_the_bytes_of_the_tars(tmp_path):
    tars = [write(tmp_path / "a.tar", one_of_each()), tmp_path / "b.tar"]
    tars[1].write_bytes(b"no tar")
    steps: list[int] = []
    look(*tars, done=steps.append)
    assert sum(steps) == sum(tar.stat().st_size for tar in tars)
    assert min(steps) >= 0


def test_names_cannot_write_to_the_terminal(tmp_path):
    problems, _ = look(tar_of(tmp_path / "s.tar", {"a\x1b[2J\n.json": b"{"}))
    assert str(problems[0]).startswith(
        f"{tmp_path / 's.tar'}: a\\x1b[2J\\n.json, line 1, column 2:"
    )
    assert str(problems[0]).isprintable()


def test_tars_are_found(tmp_path):
    (tmp_path / "in/side").mkdir(parents=True)
    for name in ("in/b.tar", "in/side/a.tar", "in/.hidden.tar", "in/a.txt"):
        (tmp_path / name).touch()
    found = find_tars([tmp_path / "in/a.txt", tmp_path / "in", tmp_path / "in/b.tar"])
    assert [path.name for path in found] == ["a.txt", "b.tar", "a.tar"]
    for path, words in (
        (tmp_path / "gone.tar", "there is no"),
        (tmp_path / "in/side/../../empty", "holds no"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=words):
            find_tars([path])


SHARD: list[bytes] = []


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_a_report_and_no_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "s.tar"
    if not SHARD:
        SHARD.append(write(path, one_of_each()).read_bytes())
    shard = bytearray(SHARD[0])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(shard) - 1))
        shard[start : start + data.draw(st.integers(1, 40))] = data.draw(st.binary(max_size=40))
    path.write_bytes(shard)
    problems, report = look(path)
    assert report.num_records.total() <= 5
    assert all(str(one).isprintable() for one in problems)
    assert bool(problems) == bool(report.reasons)


def test_an_entity_of_a_picture_that_is_not_a_record_is_no_crash(tmp_path):
    record = example("k", entities=(entity("a dog and a cat on grass", "dog"),))
    files = to_bytes(record)
    fields = json.loads(files["json"])
    fields["entities"][0]["crop"] = "json"
    files["json"] = json.dumps(fields).encode()
    problems, _ = look(tar_of(tmp_path / "s.tar", {f"k.{n}": d for n, d in files.items()}))
    assert [(one.member, one.reason) for one in problems] == [("k.json", "unreadable picture")]
