import pytest

from kosmosg.data.readers.folders import read_folders
from kosmosg.data.records import Caption, Edit
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError
from toys.foreign import picture, plain, png, write


def lay(root, **files):
    """Write files: a number is the picture of that seed, a text a text; __ is a slash."""
    for name, what in files.items():
        path = root / name.replace("__", "/")
        for part in what if isinstance(what, tuple) else (what,):
            if isinstance(part, int):
                write(path.with_name(path.name + ".png"), png(part))
            else:
                write(path.with_name(path.name + ".txt"), part)


def read(path):
    skips = Skips(limit=1.0)
    return list(read_folders(path, skips=skips)), skips


def edit(key, controls, target, text):
    return Edit(
        key=key,
        caption="",
        before=tuple(picture(seed) for seed in controls),
        instruction=text,
        after=picture(target),
        provenance={"target": f"target/{key}.png"},
    )


def test_one_control(tmp_path):
    lay(tmp_path, target__dog=(1, "make it run\n"), target__dog_1=2, target__cat="a cat")
    lay(tmp_path, control__dog=3, control__dog_1=4, captions__dog_1="make it sit")
    records, skips = read(tmp_path)
    assert [plain(record) for record in records] == [
        plain(Caption(key="cat", text="a cat")),
        plain(edit("dog", [3], 1, "make it run")),
        plain(edit("dog_1", [4], 2, "make it sit")),
    ]
    assert skips.num_skipped == 0


def test_controls_in_numbered_folders_are_shown_in_the_order_of_the_numbers(tmp_path):
    lay(tmp_path, target__a=(1, "words"), control_10__a=10, control_2__a=2, control_1__a=5)
    records, _ = read(tmp_path)
    assert [plain(record) for record in records] == [plain(edit("a", [5, 2, 10], 1, "words"))]


@pytest.mark.parametrize(
    ("target", "controls"),
    [
        ("folder_path", ("control_path_1", "control_path_2")),
        ("image_directory", ("control_directory", "control_directory_1")),
        ("Targets", ("control_0", "control_1")),
    ],
)
def test_the_names_that_other_trainers_give(tmp_path, target, controls):
    write(tmp_path / target / "a.png", png(1))
    write(tmp_path / target / "a.txt", "words")
    for seed, name in enumerate(controls, start=2):
        write(tmp_path / name / "a.jpg", png(seed))
    (record,), _ = read(tmp_path)
    assert plain(record.before) == plain((picture(2), picture(3)))
    assert record.provenance == {"target": f"{target}/a.png"}


def test_numbered_controls_of_one_folder_go_to_their_own_target(tmp_path):
    """The pain of musubi-tuner #678: image1 took the controls of image10 to image19."""
    lay(tmp_path, target__a1=(1, "one"), target__a10=(2, "ten"))
    lay(tmp_path, control__a1_0=3, control__a1_1=4, control__a10_0=5, control__a10_10=7)
    write(tmp_path / "control" / "a10_9.jpg", png(6))
    records, _ = read(tmp_path)
    assert [plain(record) for record in records] == [
        plain(edit("a1", [3, 4], 1, "one")),
        plain(edit("a10", [5, 6, 7], 2, "ten")),
    ]


def test_what_is_missing_is_named_exactly(tmp_path):
    for stem in ("whole", "alone", "silent", "empty"):
        write(tmp_path / "target" / f"{stem}.png", png(1))
        write(tmp_path / "target" / f"{stem}.txt", "" if stem == "empty" else "words")
    (tmp_path / "target" / "silent.txt").unlink()
    for stem in ("whole", "silent", "empty", "aimless"):
        write(tmp_path / "control_1" / f"{stem}.png", png(2))
        write(tmp_path / "control_2" / f"{stem}.png", png(2))
    (tmp_path / "control_2" / "whole.png").rename(tmp_path / "control_2" / "whole.webp")
    write(tmp_path / "target" / "half.png", png(1))
    write(tmp_path / "control_1" / "half.png", png(1))
    records, skips = read(tmp_path)
    assert [record.key for record in records] == ["whole"]
    assert skips.named == {
        "missing target": [
            f"{tmp_path}/control_1/aimless.png has no target: target/ holds the pictures to be"
            " made, and none of them is aimless; add it, or remove the control"
        ],
        "missing control": [
            f"{tmp_path}/target/alone.png has no control: there is no alone in control_1/ and"
            " control_2/; add it, or remove the target",
            f"{tmp_path}/target/half.png has no control: there is no half in control_2/; add it,"
            " or remove the target",
        ],
        "no caption": [
            f"{tmp_path}/target/empty.txt is empty; write what to do",
            f"{tmp_path}/target/silent.png has no text: write target/silent.txt or"
            " captions/silent.txt",
        ],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"control__a": 1, "control__b": "x"}, "no target/ beside control/; put the pictures to"),
        ({"target__a": 1, "targets__a": 1, "control__a": 1}, "target/ and targets/ beside control"),
        ({"target__a": 1}, "has target/, the pictures to be made, and no control/"),
        ({"a": 1}, "neither target/ and control/, nor pictures with a .txt"),
    ],
)
def test_which_folder_is_what_must_be_clear(tmp_path, files, message):
    lay(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_two_pictures_of_one_name_are_a_mistake(tmp_path):
    lay(tmp_path, target__a=1, control__a=2)
    write(tmp_path / "control" / "a.jpg", png(3))
    with pytest.raises(DataError, match="have one name; which is meant"):
        read(tmp_path)


def test_a_folder_of_pictures_with_their_captions(tmp_path):
    lay(tmp_path, a=(1, "a dog"), b=2, words="only words")
    records, skips = read(tmp_path)
    assert [plain(record) for record in records] == [
        plain(Caption(key="a", text="a dog", image=picture(1))),
        plain(Caption(key="words", text="only words")),
    ]
    assert skips.reasons == {"no caption": 1}


def test_pictures_with_their_captions_may_lie_in_folders(tmp_path):
    lay(tmp_path, b=(1, "a dog"), a__b=(2, "a cat"), a__c__d=3)
    records, skips = read(tmp_path)
    assert [plain(record) for record in records] == [
        plain(Caption(key="a/b", text="a cat", image=picture(2))),
        plain(Caption(key="b", text="a dog", image=picture(1))),
    ]
    assert str(tmp_path / "a" / "c" / "d.png") + " has no d.txt" in skips.named["no caption"][0]


def test_two_pictures_of_one_caption_are_a_mistake(tmp_path):
    lay(tmp_path, a__b=(1, "a dog"))
    write(tmp_path / "a" / "b.jpg", png(2))
    with pytest.raises(DataError, match=r"b.png and b.jpg have one name"):
        read(tmp_path)
