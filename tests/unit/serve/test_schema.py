import pytest
from pydantic import ValidationError

from kosmosg.serve.schema import EditRequest, GenerationRequest, form_fields, placed, size_of


def test_pictures_stand_where_the_prompt_names_them():
    said = placed("a <image 2> beside <image 1> and <image 2>", num_pictures=2, first=0)
    assert said == ["a ", 1, " beside ", 0, " and ", 1]


def test_without_names_the_pictures_come_first():
    assert placed("in the snow", num_pictures=2, first=0) == [0, 1, "in the snow"]
    assert placed("in the snow", num_pictures=2, first=1) == [1, "in the snow"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<image 3>", "there are 2 pictures"),
        ("<image 0>", "counted from 1"),
        ("<image 2>", "never names <image 1>"),
    ],
)
def test_a_name_without_picture_and_a_picture_without_name_are_errors(prompt: str, message: str):
    with pytest.raises(ValueError, match=message):
        placed(prompt, num_pictures=2, first=0)


def test_with_a_mask_the_first_picture_need_not_be_named():
    assert placed("<image 2> here", num_pictures=2, first=1) == [1, " here"]
    assert placed("<image 1><image 2>", num_pictures=2, first=1) == [0, 1]


def test_a_form_repeats_lists_only():
    assert form_fields([("n", "2"), ("weights[]", "1"), ("weights[]", "0.5")]) == {
        "n": "2",
        "weights": ["1", "0.5"],
    }
    with pytest.raises(ValueError, match="'n' is there twice"):
        form_fields([("n", "2"), ("n", "3")])


def test_a_form_has_texts_and_json_has_types():
    assert EditRequest.model_validate({"prompt": "a", "n": "3", "stream": "true"}).n == 3
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({"prompt": "a", "n": "3"})
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({"prompt": "a", "n": True})


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 3},
        {"n": 11},
        {"response_format": "url"},
        {"background": "transparent"},
        {"size": "64*64"},
        {"guidance_scale": float("nan")},
        {"prompt": [{"type": "image_url", "image_url": {"url": "x"}, "weight": 5}]},
    ],
)
def test_what_cannot_be_done_is_refused(field: dict):
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({"prompt": "a", **field})


def test_sizes():
    assert size_of("auto") is None
    assert size_of("64x32") == (64, 32)
    with pytest.raises(ValueError, match="1 to 2048"):
        size_of("64x4096")
    with pytest.raises(ValueError, match="1 to 2048"):
        size_of("0x64")
