import pytest

from kosmosg.construct.entities import MAX_TAGS, parse_tags, rule_finder


@pytest.mark.parametrize(
    ("caption", "tags", "kept"),
    [
        ("a dog on a bench", ["dog", "bench"], ["dog", "bench"]),
        ("a Dog and a BENCH", ["dog", "Bench"], ["dog", "Bench"]),
        ("a dog", ["cat", "do", "og", "", " ", "dog"], ["dog"]),
        ("a dog and a dog", ["dog", "Dog", " dog "], ["dog"]),
        ("a red dog, Black and white", ["red", "Black", "white", "dog"], ["dog"]),
        # NUMERICS section 9: a tag inside another tag is dropped, the longer one is not.
        ("a dog in a dog house", ["dog", "dog house"], ["dog house"]),
        ("a hot dog near a dogsled", ["dog", "dogsled"], ["dog", "dogsled"]),
        ("a man's hat-stand", ["man's", "hat-stand", "man", "hat"], ["man's", "hat-stand"]),
        ("c++ (a book)", ["c++", "(a", "book", "a.*k", "\\bbook"], ["book"]),
        ("a big  dog", ["big  dog"], []),
        ("a Käfer", ["Käfer", "fer"], ["Käfer"]),
        ("a dog", ["dog, cat", "dog\ncat"], []),
    ],
)
def test_tags_are_words_of_the_caption_and_things(
    caption: str, tags: list[str], kept: list[str]
) -> None:
    assert parse_tags(tags, caption) == kept


def test_of_very_many_tags_the_first_are_looked_at() -> None:
    words = [f"thing{number}" for number in range(3000)]
    assert parse_tags(words, " ".join(words)) == words[:MAX_TAGS]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a red fox with a hat on the beach", ["red fox", "hat", "beach"]),
        ("a photo of a man wearing sunglasses and a scarf", ["man", "sunglasses", "scarf"]),
        ("two dogs, one cat next to the old building", ["dogs", "one cat", "old building"]),
        ("the red and the blue", []),
        ("", []),
    ],
)
def test_the_rule_finds_what_stands_between_small_words(caption: str, found: list[str]) -> None:
    assert rule_finder()([caption, "a dog"]) == [found, ["dog"]]
