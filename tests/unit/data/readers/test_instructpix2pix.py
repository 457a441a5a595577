import json

import pytest

from kosmosg.data.readers.instructpix2pix import read_instructpix2pix
from kosmosg.data.records import Edit
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError
from toys.foreign import picture, plain, png, write

PROMPT = {"input": "a horse", "edit": "make it a zebra", "output": "a zebra"}


def folder(root, name, *seeds, prompt=PROMPT):
    write(root / name / "prompt.json", prompt)
    for seed in seeds:
        write(root / name / f"{seed}_0.jpg", png(seed))
        write(root / name / f"{seed}_1.jpg", png(seed + 1))
    notes = [json.dumps({"seed": seed, "clip_sim_dir": seed / 10}) for seed in seeds]
    write(root / name / "metadata.jsonl", "\n".join(notes))


def read(path):
    skips = Skips(limit=1.0)
    return list(read_instructpix2pix(path, skips=skips)), skips


def edit(key, seed):
    return Edit(
        key=key,
        caption="a horse",
        before=(picture(seed),),
        instruction="make it a zebra",
        after=picture(seed + 1),
        after_caption="a zebra",
        provenance={"seed": str(seed), "clip_sim_dir": str(seed / 10)},
    )


@pytest.mark.parametrize("shard", ["", "shard-00/"])
def test_each_seed_that_is_listed_is_a_record(tmp_path, shard):
    folder(tmp_path, f"{shard}0000001", 20, 30, 40)
    folder(tmp_path, f"{shard}0000002", 50)
    listed = [[f"{shard}0000002", ["50"]], [f"{shard}0000001", ["40", "20"]]]
    write(tmp_path / "seeds.json", listed)
    records, skips = read(tmp_path)
    assert [plain(record) for record in records] == [
        plain(edit(f"{shard}0000002/50", 50)),
        plain(edit(f"{shard}0000001/40", 40)),
        plain(edit(f"{shard}0000001/20", 20)),
    ]
    assert skips.num_skipped == 0


def test_without_a_list_all_pairs_are_found(tmp_path):
    folder(tmp_path, "b", 50)
    folder(tmp_path, "a", 30, 20)
    assert [record.key for record in read(tmp_path)[0]] == ["a/20", "a/30", "b/50"]


def test_bad_entries_are_skipped_and_named(tmp_path):
    folder(tmp_path, "a", 20, 30)
    (tmp_path / "a" / "20_1.jpg").unlink()
    folder(tmp_path, "b", 40, prompt={"input": "a horse"})
    folder(tmp_path, "c", 50, prompt={"input": "a", "edit": "b"})
    write(tmp_path / "c" / "metadata.jsonl", "{")
    listed = [["a", ["20", "30"]], ["b", ["40"]], ["../x", ["1"]], ["a", ["../20"]], ["gone", [1]]]
    write(tmp_path / "seeds.json", [*listed, 7, ["c", [50]]])
    records, skips = read(tmp_path)
    assert [record.key for record in records] == ["a/30", "c/50"]
    assert records[1].after_caption is None
    assert skips.reasons == {
        "missing picture": 1,
        "bad field edit": 1,
        "path outside": 1,
        "bad entry": 2,
        "unreadable file": 1,
        "bad json": 1,
    }
    assert "20_1.jpg is missing, the pair of 20_0.jpg" in skips.named["missing picture"][0]


def test_what_is_no_data_set_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no folder with a prompt"):
        read(tmp_path)
    write(tmp_path / "seeds.json", {"a": 1})
    with pytest.raises(DataError, match="no list"):
        read(tmp_path)
