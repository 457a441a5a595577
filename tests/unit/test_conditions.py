"""A condition as a file: the same numbers back, provenance beside them, others refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kosmosg import conditions, drawing
from kosmosg.conditions import Condition
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.note import Picture
from toys.model import EMBED_DIM, NUM_QUERIES, SIZE, toy_picture, toy_pipeline
from toys.sampling import stable_diffusion

SHAPE = (1, NUM_QUERIES, EMBED_DIM)
CAT = Picture(path=Path("photos/cat.png"), image=toy_picture(1), sha256="a" * 64)


def condition(seed: int = 0, *, dtype: torch.dtype = torch.float32, pictures: bool = True):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(3)]
    return Condition(
        prompt_embeds=rows[0],
        negative_prompt_embeds=rows[1],
        picture_prompt_embeds=rows[2] if pictures else None,
        provenance={"prompt": ["a cat"], "shape": [NUM_QUERIES, EMBED_DIM]},
    )


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_saved_is_loaded(tmp_path, dtype, pictures):
    made = condition(dtype=dtype, pictures=pictures)
    conditions.save(made, tmp_path / "c.safetensors")
    read = conditions.load(tmp_path / "c.safetensors")
    assert torch.equal(read.prompt_embeds, made.prompt_embeds)
    assert torch.equal(read.negative_prompt_embeds, made.negative_prompt_embeds)
    assert read.prompt_embeds.dtype == dtype
    assert (read.picture_prompt_embeds is not None) == pictures
    if made.picture_prompt_embeds is not None:
        assert torch.equal(read.picture_prompt_embeds, made.picture_prompt_embeds)
    assert read.provenance == made.provenance
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_encoding_says_what_and_its_embeds_are_the_pipelines(tmp_path):
    pipe = toy_pipeline()
    made = drawing.encode(pipe, ["a photo of", CAT, "on the snow"], "a dog")
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(["a photo of", CAT.image, "on the snow"], "a dog")
        alone, _ = pipe.encode_prompt([CAT.image])
    assert torch.equal(made.prompt_embeds, embeds)
    assert torch.equal(made.negative_prompt_embeds, negative)
    assert torch.equal(made.picture_prompt_embeds, alone)
    conditions.save(made, tmp_path / "c")
    read = conditions.load(tmp_path / "c").provenance
    cat = {"picture": "cat.png", "sha256": "a" * 64}
    assert read["prompt"] == ["a photo of", cat, "on the snow"]
    assert (read["negative_prompt"], read["dtype"]) == ("a dog", "float32")
    assert read["shape"] == [NUM_QUERIES, EMBED_DIM]


@pytest.mark.parametrize("prompt", [["a cat"], [CAT]])
def test_a_prompt_of_one_kind_has_no_picture_embeds(prompt):
    assert drawing.encode(toy_pipeline(), prompt).picture_prompt_embeds is None


def test_a_condition_draws_in_stable_diffusion_what_the_prompt_draws(tmp_path):
    pipe = toy_pipeline()
    conditions.save(drawing.encode(pipe, ["a photo of", CAT]), tmp_path / "c")
    read = conditions.load(tmp_path / "c")
    stable = stable_diffusion(pipe)
    theirs = stable(
        prompt_embeds=read.prompt_embeds,
        negative_prompt_embeds=read.negative_prompt_embeds,
        num_inference_steps=3,
        guidance_scale=3.0,
        height=SIZE,
        width=SIZE,
        generator=[torch.Generator().manual_seed(4)],
    ).images[0]
    ours = drawing.draw(pipe, ["a photo of", CAT], seeds=[4]).images[0]
    assert ours.tobytes() == theirs.tobytes()


# ------------------------------------------------------------------------------------- blending


def test_a_blend_is_linear_and_its_ends_are_exact():
    a, b = condition(1), condition(2)
    assert torch.equal(conditions.blend(a, b, 0.0).prompt_embeds, a.prompt_embeds)
    assert torch.equal(conditions.blend(a, b, 1.0).negative_prompt_embeds, b.negative_prompt_embeds)
    blended = conditions.blend(a, b, 0.25)
    for name in ("prompt_embeds", "negative_prompt_embeds", "picture_prompt_embeds"):
        expected = 0.75 * getattr(a, name) + 0.25 * getattr(b, name)
        torch.testing.assert_close(getattr(blended, name), expected)
    assert blended.provenance == {"blend": 0.25, "of": [a.provenance, b.provenance]}


def test_a_blend_has_picture_embeds_where_both_have():
    assert (
        conditions.blend(condition(1), condition(2, pictures=False), 0.5).picture_prompt_embeds
        is None
    )


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_0_to_1_is_refused(weight):
    with pytest.raises(ConfigError, match=r"the blend is .*; give a number from 0"):
        conditions.blend(condition(), condition(), weight)


def test_conditions_of_two_sizes_are_refused():
    wide = Condition(
        prompt_embeds=torch.zeros(1, 77, 768),
        negative_prompt_embeds=torch.zeros(1, 77, 768),
        picture_prompt_embeds=None,
        provenance={},
    )
    with pytest.raises(ConfigError, match="6 x 16 cannot be blended with one of 77 x 768"):
        conditions.blend(condition(), wide, 0.5)


# ------------------------------------------------------------------------------------- refusals

GOOD = {"prompt_embeds": torch.zeros(SHAPE), "negative_prompt_embeds": torch.zeros(SHAPE)}
SAID = {"kosmosg": json.dumps({"version": 1})}


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"a": torch.zeros(1)}, SAID, "holds a; a condition has prompt_embeds and"),
        (GOOD | {"more": torch.zeros(SHAPE)}, SAID, "holds more, negative_prompt_embeds"),
        ({"prompt_embeds": torch.zeros(SHAPE)}, SAID, "holds prompt_embeds;"),
        (GOOD | {"prompt_embeds": torch.zeros(6, 16)}, SAID, r"prompt_embeds is \(6, 16\)"),
        (GOOD | {"prompt_embeds": torch.zeros(2, 6, 16)}, SAID, r"is \(2, 6, 16\); all are 1 x"),
        (GOOD | {"prompt_embeds": torch.zeros(1, 5, 16)}, SAID, "all are 1 x queries x embed"),
        (GOOD | {"prompt_embeds": torch.zeros(SHAPE, dtype=torch.int8)}, SAID, "of finite numbers"),
        (GOOD | {"prompt_embeds": torch.zeros(SHAPE).to(torch.float8_e4m3fn)}, SAID, "of finite n"),
        (GOOD | {"prompt_embeds": torch.full(SHAPE, torch.nan)}, SAID, "not of finite numbers"),
        (GOOD, None, "does not say how it was made"),
        (GOOD, {"kosmosg": "not JSON"}, "does not say how it was made"),
        (GOOD, {"kosmosg": "[]"}, "does not say how it was made"),
        (GOOD, {"kosmosg": "[" * 100_000}, "does not say how it was made"),
        (GOOD, {"kosmosg": '{"version": 9}'}, "has version 9, this kosmosg reads version 1"),
    ],
)
def test_a_file_that_is_no_condition_is_refused(tmp_path, tensors, metadata, words):
    save_file(tensors, tmp_path / "c", metadata=metadata)
    with pytest.raises(CheckpointError, match=words) as caught:
        conditions.load(tmp_path / "c")
    assert "kosmosg encode" in str(caught.value)


def test_a_damaged_missing_or_large_file_is_refused(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(CheckpointError, match="there is no file"):
        conditions.load(path)
    conditions.save(condition(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        conditions.load(path)
    torch.save({"prompt_embeds": torch.zeros(SHAPE)}, path)  # a pickle
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        conditions.load(path)
    with path.open("wb") as file:
        file.truncate(conditions.MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="more than any condition"):
        conditions.load(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*lost/c: No such file"):
        conditions.save(condition(), tmp_path / "lost" / "c")
