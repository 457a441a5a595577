from kosmosg.data.records import Caption, Document, Edit
from kosmosg.data.samples import to_bytes
from kosmosg.data.stats import Histogram, collect
from toys.shards import example, one_of_each, picture, tar_of, write


def test_bounds_belong_to_the_upper_side():
    histogram = Histogram(bounds=(2, 4))
    for value in (1, 2, 3.9, 4, 100):
        histogram.add(value)
    assert histogram.counts == [1, 2, 2]
    assert (histogram.least, histogram.most, histogram.mean) == (1, 100, 22.18)
    assert Histogram(bounds=(2,)).mean == 0


def test_everything_is_counted(tmp_path):
    wide = picture(1, (400, 100))
    records = [
        *one_of_each(),
        Document(key="d1", parts=(wide, wide, "one two three four five six")),
        Edit(key="i1", caption="", before=(wide,), instruction="go", after=wide),
    ]
    tars = [write(tmp_path / "a.tar", records)]
    tars.append(write(tmp_path / "b.tar", [Caption(key="c0", text="w " * 50)]))
    tars.append(tar_of(tmp_path / "c.tar", {"x.json": b"{", "c1.json": b"[]"}))
    (tmp_path / "d.tar").write_text("no tar")
    tars.append(tmp_path / "d.tar")
    stats = collect(tars)
    assert stats.num_shards == 4
    assert stats.num_records == {"document": 2, "caption": 3, "example": 1, "edit": 2}
    assert stats.left_out == {"bad json": 2, "unreadable shard": 1}
    assert stats.num_keys_twice == 2
    assert stats.num_bytes["example"] == sum(map(len, to_bytes(example()).values()))
    assert stats.num_masks == 1
    assert stats.sides.num_values == 10
    assert stats.sides.counts[:3] == [6, 4, 0]
    assert (stats.sides.least, stats.sides.most) == (6, 100)
    assert stats.aspects.counts == [0, 0, 6, 0, 0, 4, 0]
    assert (stats.aspects.least, stats.aspects.most) == (1.5, 4)
    assert stats.words.least == 0
    assert stats.words.most == 50
    assert stats.entities_per_example.counts[2] == 1
    assert stats.pictures_per_document.counts == [0, 1, 1, 0, 0, 0, 0, 0]


def test_a_limit(tmp_path):
    tar = write(tmp_path / "a.tar", one_of_each())
    assert collect([tar], limit=2).num_records.total() == 2
