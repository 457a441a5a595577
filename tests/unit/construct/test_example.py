from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from kosmosg.construct.entities import rule_finder
from kosmosg.construct.example import (
    MAX_PHRASES,
    NO_ENTITIES,
    NOT_FOUND,
    ONE_MASK,
    Source,
    Steps,
    construct,
)
from kosmosg.data.records import Example
from kosmosg.data.samples import from_bytes, to_bytes
from kosmosg.errors import DataError

HUES = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
# What each word looks like in these pictures.
THINGS = {"fox": "red", "frog": "green", "whale": "blue"}


def picture(*things: str, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Blocks on grey, side by side, the first at the left of the centre square."""
    image = Image.new("RGB", size, "grey")
    for number, thing in enumerate(things):
        left = (size[0] - min(size)) // 2 + 4 + 12 * number
        image.paste(HUES[THINGS[thing]], (left, 8, left + 8, 24))
    return image


def by_hue(images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
    """A segmenter of a real kind: it looks at the pixels, at a resolution of its own."""
    assert 0 < len(images) == len(phrases) <= MAX_PHRASES
    maps = []
    for image, phrase in zip(images, phrases, strict=True):
        pixels = np.asarray(image.resize((80, 80), Image.Resampling.NEAREST)).astype(int)
        wanted = HUES.get(THINGS.get(phrase.split()[-1], ""), (999, 999, 999))
        near = np.abs(pixels - wanted).sum(-1) < 40
        maps.append(np.where(near, 0.95, 0.02).astype(np.float32))
    return maps


def captioner(images: Sequence[Image.Image]) -> list[str]:
    assert images  # never asked of nothing
    said = []
    for image in images:
        seen = {image.getpixel((x, 16)) for x in range(0, image.width, 2)}
        things = [f"a big {thing}" for thing, hue in THINGS.items() if HUES[hue] in seen]
        said.append(" and ".join(things))
    return said


STEPS = Steps(captioner=captioner, finder=rule_finder(), segmenter=by_hue)


def test_a_picture_becomes_an_example() -> None:
    source = Source(key="a", image=picture("fox", "whale"), provenance={"source_id": "a"})
    (made,) = construct([source], STEPS, size=40, provenance={"kosmosg": "1"})
    assert isinstance(made, Example)
    assert made.caption == "a big fox and a big whale"
    assert [(e.mention, e.start, e.end) for e in made.entities] == [
        ("big fox", 2, 9),
        ("big whale", 16, 25),
    ]
    assert made.image.size == (40, 40)  # the centre square
    assert dict(made.provenance) == {"source_id": "a", "kosmosg": "1"}
    fox, whale = made.entities
    assert fox.mask is not None
    truth = np.zeros((40, 40), bool)
    truth[8:24, 4:12] = True
    np.testing.assert_array_equal(np.asarray(fox.mask.convert("L")) > 0, truth)
    assert fox.crop.size == fox.cutout.size == (40, 40)
    # The box of a thing 8 wide and 16 high is square: the cutout is white beside the thing.
    assert fox.cutout.getpixel((2, 20)) == (255, 255, 255)
    assert fox.cutout.getpixel((18, 20)) == (255, 0, 0)
    assert whale.cutout.getpixel((20, 20)) == (0, 0, 255)


def test_an_example_goes_through_a_shard() -> None:
    (made,) = construct([Source(key="a", image=picture("fox"))], STEPS, size=40)
    assert isinstance(made, Example)
    back = from_bytes("a", to_bytes(made))
    assert isinstance(back, Example)
    assert back.entities[0].mention == "big fox"
    assert np.array_equal(np.asarray(back.entities[0].crop), np.asarray(made.entities[0].crop))


def test_a_batch_is_one_by_one_and_keeps_its_order() -> None:
    sources = [
        Source(key=f"{number}", image=picture(*things))
        for number, things in enumerate([("fox",), ("whale", "frog"), ("frog", "fox", "whale")])
    ]
    together = construct(sources, STEPS, size=40)
    for source, made in zip(sources, together, strict=True):
        (alone,) = construct([source], STEPS, size=40)
        assert isinstance(made, Example)
        assert isinstance(alone, Example)
        assert made.key == source.key
        assert to_bytes(made) == to_bytes(alone)


def test_more_phrases_than_the_segmenter_takes_at_once() -> None:
    sources = [Source(key=f"{n}", image=picture("fox", "whale", "frog")) for n in range(16)]
    made = construct(sources, STEPS, size=40)
    assert [len(one.entities) for one in made if isinstance(one, Example)] == [3] * 16


def test_a_caption_that_is_there_needs_no_captioner() -> None:
    silent = Steps(captioner=None, finder=rule_finder(), segmenter=by_hue)
    known = Source(key="a", image=picture("fox"), caption="  my  fox ")
    unknown = Source(key="b", image=picture("fox"))
    first, second = construct([known, unknown], silent, size=40)
    assert isinstance(first, Example)
    assert first.caption == "my fox"
    assert isinstance(second, DataError)
    assert second.reason == "no caption"


def test_what_the_segmenter_does_not_find_is_left_out_and_named() -> None:
    source = Source(key="a", image=picture("fox"), caption="a fox, a hat and a unicorn")
    (made,) = construct([source], STEPS, size=40)
    assert isinstance(made, Example)
    assert [entity.mention for entity in made.entities] == ["fox"]
    assert made.provenance[NOT_FOUND] == "hat, unicorn"


@pytest.mark.parametrize("caption", ["a hat", "it is red and blue"])
def test_a_picture_in_which_nothing_is_found(caption: str) -> None:
    source = Source(key="a", image=picture("fox"), caption=caption)
    (left_out,) = construct([source], STEPS, size=40)
    assert isinstance(left_out, DataError)
    assert left_out.reason == NO_ENTITIES
    assert "a:" in str(left_out)
    (kept,) = construct([source], STEPS, size=40, without_entities="keep")
    assert isinstance(kept, Example)
    assert kept.entities == ()


def confused(images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
    """A segmenter that takes a whale for a fox."""
    return by_hue(images, [phrase.replace("whale", "fox") for phrase in phrases])


def test_a_record_that_shows_one_thing_under_two_names_is_left_out() -> None:
    steps = Steps(captioner=captioner, finder=rule_finder(), segmenter=confused)
    sources = [
        Source(key="a", image=picture("fox", "frog")),
        Source(key="b", image=picture("frog", "fox", "whale")),
        Source(key="c", image=picture("frog")),
    ]
    made = construct(sources, steps, size=40, max_overlap=0.5)
    assert [one.key if isinstance(one, Example) else one.reason for one in made] == [
        "a",
        ONE_MASK,
        "c",
    ]
    assert "picture b: two things of 'a big fox and" in str(made[1])
    assert [e.mention for e in made[2].entities] == ["big frog"]  # with a map of its own
    # The paper has no such rule.
    (kept,) = construct(sources[1:2], steps, size=40)
    assert [e.mention for e in kept.entities] == ["big fox", "big frog", "big whale"]
    assert kept.entities[0].mask.tobytes() == kept.entities[2].mask.tobytes()


def test_a_thing_that_another_wears_is_no_second_name_of_it() -> None:
    def nested(images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        maps = [np.full((40, 40), 0.02, np.float32) for _ in images]
        for one, phrase in zip(maps, phrases, strict=True):
            one[4 : 12 if "hat" in phrase else 36, 8:32] = 0.95
        return maps

    steps = Steps(captioner=None, finder=rule_finder(), segmenter=nested)
    source = Source(key="a", image=picture("fox"), caption="a fox with a hat")
    (made,) = construct([source], steps, size=40, max_overlap=0.5)
    assert [entity.mention for entity in made.entities] == ["fox", "hat"]


def test_one_bad_picture_or_answer_leaves_the_others_alone() -> None:
    def finder(captions: Sequence[str]) -> list[list[str] | DataError]:
        return [
            DataError("no answer", reason="answer not understood") if "frog" in one else ["fox"]
            for one in captions
        ]

    steps = Steps(captioner=captioner, finder=finder, segmenter=by_hue)
    bad = Image.new("F", (40, 40))
    images = [picture("fox"), bad, picture("frog"), picture(), picture("fox")]
    sources = [Source(key=f"{number}", image=image) for number, image in enumerate(images)]
    made = construct(sources, steps, size=40)
    assert [one.key if isinstance(one, Example) else one.reason for one in made] == [
        "0",
        "unreadable picture",
        "answer not understood",
        "no caption",
        "4",
    ]


def test_a_caption_as_long_as_a_book_is_left_out() -> None:
    source = Source(key="a", image=picture("fox"), caption="fox " * 501)
    (made,) = construct([source], STEPS, size=40)
    assert isinstance(made, DataError)
    assert made.reason == "caption too long"


def test_the_whole_picture_can_be_kept() -> None:
    source = Source(key="a", image=picture("fox", size=(90, 40)))
    (made,) = construct([source], STEPS, size=20, picture="whole")
    assert isinstance(made, Example)
    assert made.image.size == (45, 20)
    assert made.entities[0].mask is not None
    assert made.entities[0].mask.size == (45, 20)
    assert made.entities[0].crop.size == (20, 20)


def test_crops_come_from_the_full_resolution() -> None:
    image = picture("fox", size=(400, 400))
    for x in range(4, 12):  # stripes that the resized picture would not have
        image.paste((255, 0, 0) if x % 2 else (235, 0, 0), (x, 8, x + 1, 24))
    (made,) = construct([Source(key="a", image=image, caption="fox")], STEPS, size=32)
    assert isinstance(made, Example)
    row = np.asarray(made.entities[0].crop)[16, 8:24, 0].astype(int).tolist()
    assert max(row) - min(row) >= 15


def test_mentions_are_the_released_loaders() -> None:
    # NUMERICS section 9: a mention reaches to the end of its word; a colour is none; tags are
    # taken from left to right in what is left of the caption.
    def finder(captions: Sequence[str]) -> list[list[str]]:
        return [["whale", "red", "fox"] for _ in captions]

    steps = Steps(captioner=None, finder=finder, segmenter=by_hue)
    caption = "red fox-cub, a whale."
    (made,) = construct([Source(key="a", image=picture("fox", "whale"), caption=caption)], steps)
    assert isinstance(made, Example)
    assert [(e.mention, e.start) for e in made.entities] == [("fox-cub", 4), ("whale", 15)]
