from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from kosmosg.construct.segment import (
    clipseg,
    cut,
    dilate,
    largest_overlap,
    largest_part,
    mask_of,
    square_box,
)
from kosmosg.errors import CheckpointError
from kosmosg.tokenizer import Tokenizer
from toys.construct import SIDE, save_clipseg, save_own_clipseg

CPU = torch.device("cpu")


def picture(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clipseg(tmp_path_factory.mktemp("clipseg"))


def test_clipseg_is_what_transformers_computes(theirs: Path) -> None:
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    processor = CLIPSegProcessor.from_pretrained(theirs)
    model = CLIPSegForImageSegmentation.from_pretrained(theirs).eval()
    inputs = processor(text=["dog"], images=[picture(0)], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.sigmoid().reshape(SIDE, SIDE).numpy()
    (found,) = clipseg(theirs, device=CPU, dtype=torch.float32)([picture(0)], ["dog"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert expected.std() > 0.01


def test_a_batch_is_one_by_one(theirs: Path) -> None:
    segment = clipseg(theirs, device=CPU, dtype=torch.float32)
    pictures, phrases = [picture(0), picture(1), picture(0)], ["dog", "a longer phrase", "hat"]
    together = segment(pictures, phrases)
    for one, image, phrase in zip(together, pictures, phrases, strict=True):
        np.testing.assert_allclose(one, segment([image], [phrase])[0], atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-3  # the words matter
    assert segment([], []) == []


def test_half_precision_gives_maps_of_float32(theirs: Path) -> None:
    (whole,) = clipseg(theirs, device=CPU, dtype=torch.float32)([picture(0)], ["dog"])
    (half,) = clipseg(theirs, device=CPU, dtype=torch.bfloat16)([picture(0)], ["dog"])
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() < 0.1


def test_a_phrase_longer_than_the_text_tower_is_cut(theirs: Path) -> None:
    segment = clipseg(theirs, device=CPU, dtype=torch.float32)
    assert segment([picture(0)], ["x" * 200])[0].shape == (SIDE, SIDE)


def test_our_own_clipseg_reads_our_tokenizer(tmp_path: Path) -> None:
    from transformers import CLIPSegForImageSegmentation

    from kosmosg.images import clip_view

    tokenizer = Tokenizer.from_words(["a", "red", "fox", "hat"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    directory = save_own_clipseg(tmp_path / "segmenter", tokenizer.vocab_size)
    found = clipseg(directory, device=CPU, dtype=torch.float32)(
        [picture(0), picture(0)], ["a red fox", "hat"]
    )
    end = tokenizer.vocab_size
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("hat"), end, end, end]])
    model = CLIPSegForImageSegmentation.from_pretrained(directory).eval()
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=clip_view(picture(0), SIDE)[None]).logits
    np.testing.assert_allclose(found[1], logits.sigmoid().reshape(SIDE, SIDE), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_directory_without_a_processor(theirs: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((theirs / name).read_bytes())
    with pytest.raises(CheckpointError, match="processor"):
        clipseg(tmp_path, device=CPU, dtype=torch.float32)


def test_dilation_is_scipys_at_every_width() -> None:
    # scipy.ndimage.grey_dilation(one, size=n) of a single pixel in the middle, NUMERICS section 9.
    spread = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (2, 1), 5: (2, 2)}
    for width, (before, after) in spread.items():
        one = np.zeros((100 * width + 12, 100 * width + 50), bool)
        one[50, 60] = True
        grown = np.zeros_like(one)
        grown[50 - before : 51 + after, 60 - before : 61 + after] = True
        np.testing.assert_array_equal(dilate(one), grown)


def test_dilation_does_not_come_in_again_at_the_other_edge() -> None:
    one = np.zeros((512, 512), bool)
    one[0, 511] = one[511, 0] = True
    grown = dilate(one)
    assert grown.sum() == 2 * 9
    assert grown[:3, 509:].all()
    assert grown[509:, :3].all()


def test_a_small_picture_is_not_dilated() -> None:
    one = np.eye(64, dtype=bool)
    np.testing.assert_array_equal(dilate(one), one)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (mask("##.#", "#..#", "...#"), mask("##..", "#...", "....")),  # the first of equals
        (mask("#..#", "#.##", ".#.."), mask("...#", "..##", "....")),  # corners do not hold
        (mask("#.#.#", "#.#.#", "#####"), mask("#.#.#", "#.#.#", "#####")),
        (mask("#####", "....#", "###.#", "#.#.#", "#...#", "#####"), None),
        (mask("....", "...."), mask("....", "....")),
        (mask("####", "####"), mask("####", "####")),
        (mask(".#", "#."), mask(".#", "..")),
    ],
)
def test_the_largest_part_hangs_together_by_sides(given: np.ndarray, kept: np.ndarray) -> None:
    np.testing.assert_array_equal(largest_part(given), given if kept is None else kept)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_largest_part_is_that_of_a_flood(some: np.ndarray) -> None:
    best: set[tuple[int, int]] = set()
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(some), strict=True)}
    while left:
        part, edge = set(), [min(left)]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.add((y, x))
                edge += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        best = max(best, part, key=len)
    found = largest_part(some)
    assert {(int(y), int(x)) for y, x in zip(*np.nonzero(found), strict=True)} == best


@given(
    arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any),
)
def test_a_box_is_in_the_picture_holds_the_mask_and_is_square_where_it_can_be(
    some: np.ndarray,
) -> None:
    left, top, right, bottom = square_box(some)
    height, width = some.shape
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert some[top:bottom, left:right].sum() == some.sum()
    rows, columns = np.flatnonzero(some.any(1)), np.flatnonzero(some.any(0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    assert (right - left, bottom - top) == (min(side, width), min(side, height))


def test_a_box_at_the_edge_is_moved_not_cut() -> None:
    some = np.zeros((10, 10), bool)
    some[0:6, 9] = True
    assert square_box(some) == (4, 0, 10, 6)


def test_the_threshold_is_that_of_interpolated_logits() -> None:
    # Between 0.9 and 0.01 the middle of the logits is 0.23, that of the probabilities 0.455.
    probabilities = np.array([[0.9, 0.01]] * 2, np.float32)
    found = mask_of(probabilities, (3, 2), threshold=0.3)
    np.testing.assert_array_equal(found, [[True, False, False]] * 2)
    assert mask_of(probabilities, (3, 2), threshold=0.2).sum() == 4
    exact = np.full((2, 2), 0.3, np.float32)  # above the threshold, not at it
    assert not mask_of(exact, (2, 2), threshold=0.31).any()
    assert mask_of(exact, (2, 2), threshold=0.29).all()


def test_certain_pixels_have_finite_logits() -> None:
    certain = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(mask_of(certain, (2, 2), threshold=0.3), certain > 0.5)


def test_crop_and_cutout() -> None:
    image = Image.new("RGB", (40, 40), "blue")
    image.paste("red", (20, 10, 30, 20))
    probabilities = np.zeros((40, 40), np.float32)
    probabilities[10:20, 25:30] = 0.9
    probabilities[35, 5] = 0.9  # a smaller part
    part = cut(image, probabilities, threshold=0.3, size=20)
    assert part is not None
    assert part.mask.sum() == 50
    assert part.mask[10:20, 25:30].all()
    assert part.crop.size == part.cutout.size == (20, 20)
    # The box is 22..32 x 10..20: red ends at 30, the mask is 25..30.
    assert [part.crop.getpixel((x, 10)) for x in (0, 10, 19)] == [
        (255, 0, 0),
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert [part.cutout.getpixel((x, 10)) for x in (0, 11, 19)] == [
        (255, 255, 255),
        (255, 0, 0),
        (255, 255, 255),
    ]


def test_nothing_and_everything() -> None:
    image = picture(0, (30, 30))
    assert cut(image, np.zeros((8, 8), np.float32), threshold=0.3, size=30) is None
    part = cut(image, np.ones((8, 8), np.float32), threshold=0.3, size=30)
    assert part is not None
    assert part.mask.all()
    np.testing.assert_array_equal(np.asarray(part.crop), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(part.cutout), np.asarray(image))


def test_a_thing_longer_than_the_other_side_stands_on_white() -> None:
    image = Image.new("RGB", (40, 20), "green")
    part = cut(image, np.ones((8, 8), np.float32), threshold=0.3, size=40)
    assert part is not None
    assert part.crop.size == (40, 40)
    assert part.crop.getpixel((20, 2)) == (255, 255, 255)
    assert part.crop.getpixel((20, 20)) == (0, 128, 0)


def test_overlap_is_of_the_two_that_are_most_alike() -> None:
    left, right, apart = mask("###.", "###."), mask(".###", ".###"), mask("...#", "....")
    assert largest_overlap([left, right]) == pytest.approx(4 / 8)
    assert largest_overlap([apart, left, right]) == pytest.approx(4 / 8)
    assert largest_overlap([left, apart]) == 0
    assert largest_overlap([left, right, left]) == 1
    assert largest_overlap([left]) == largest_overlap([]) == 0


def test_a_part_overlaps_little_with_its_whole() -> None:
    whole = np.ones((10, 10), bool)
    hat = np.zeros((10, 10), bool)
    hat[:2] = True
    assert largest_overlap([whole, hat]) == pytest.approx(0.2)
