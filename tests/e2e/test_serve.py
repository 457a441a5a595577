"""The API through the client that people have: OpenAI's own, against a real process with nano."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from kosmosg import conditions
from kosmosg.note import read_png
from kosmosg.replay import replay
from toys.serving import Server, data_url, picture_of, serving

STEPS = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve") / "log", "--mark") as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def creature(repository: Path) -> Path:
    return repository / "docs" / "images" / "creature.png"


def test_models(client: openai.OpenAI):
    (model,) = client.models.list().data
    assert model.id == "nano"
    offer = model.model_dump()["kosmosg"]
    assert offer["max_pictures"] == 8
    assert offer["default_size"] == "64x64"
    assert {"dpms", "euler", "heun"} <= set(offer["schedulers"])


def test_words_to_pictures_that_can_be_replayed(client: openai.OpenAI, tmp_path: Path):
    given: dict[str, Any] = {"prompt": "a red creature in the snow", "n": 2}
    made = client.images.generate(**given, extra_body={"seed": 7, "scheduler": "euler", **STEPS})
    assert made.data is not None
    assert [one.model_dump()["seed"] for one in made.data] == [7, 8]
    path = tmp_path / "out.png"
    path.write_bytes(base64.b64decode(made.data[1].b64_json or ""))
    image, note = read_png(path)
    assert note.prompt == [given["prompt"]]
    assert note.seeds == [8]
    assert note.arguments["num_inference_steps"] == 4
    again = replay(path).image
    # The invisible mark, and two pictures in a pass: which decides the last bits.
    assert np.abs(np.asarray(again, int) - np.asarray(image, int)).max() <= 3
    assert b"trainedAlgorithmicMedia" in path.read_bytes()


def test_a_prompt_in_which_pictures_stand(client: openai.OpenAI, creature: Path):
    picture = {"type": "image_url", "image_url": {"url": data_url(creature)}}
    words: Any = {"type": "text", "text": "in the snow"}

    def draw(*parts: Any) -> np.ndarray:
        more = {"seed": 1, "prompt": list(parts), **STEPS}
        made = client.images.generate(prompt="", extra_body=more)
        assert made.data is not None
        return np.asarray(picture_of(made.data[0].b64_json or ""), int)

    shown = draw(picture, words)
    assert np.abs(shown - draw(picture, words)).max() <= 1
    assert np.abs(shown - draw(words, picture)).max() > 3
    assert np.abs(shown - draw({**picture, "weight": 0.2}, words)).max() > 3


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_formats(client: openai.OpenAI, form: Any):
    made = client.images.generate(
        prompt="a creature", output_format=form, size="64x64", extra_body=STEPS
    )
    assert made.data is not None
    image = picture_of(made.data[0].b64_json or "")
    assert (image.format, image.size) == (form.upper(), (64, 64))
    assert made.output_format == form


def test_a_stream_has_openais_events_and_ours(client: openai.OpenAI):
    more = {"seed": 3, "num_inference_steps": 8}
    events = list(
        client.images.generate(
            prompt="a creature", stream=True, partial_images=2, n=2, extra_body=more
        )
    )
    kinds = [event.type for event in events]
    assert kinds[0] == "kosmosg.queued"
    assert kinds.count("kosmosg.progress") >= 8
    assert kinds.count("image_generation.partial_image") == 4
    assert kinds.count("image_generation.completed") == 2
    assert kinds[-1] == "image_generation.completed"
    last = [event.model_dump() for event in events if event.type == "image_generation.completed"]
    assert {(event["index"], event["seed"]) for event in last} == {(0, 3), (1, 4)}
    assert picture_of(last[0]["b64_json"]).size == (64, 64)


def test_edits_take_many_pictures_and_n(client: openai.OpenAI, creature: Path, tmp_path: Path):
    other = tmp_path / "other.png"
    Image.open(creature).convert("RGB").rotate(90).save(other)
    made = client.images.edit(
        image=[creature, other],
        prompt="<image 2> and <image 1>",
        n=3,
        extra_body={"seed": 5, "weights": [1.0, 0.5], **STEPS},
    )
    assert made.data is not None
    assert [one.model_dump()["seed"] for one in made.data] == [5, 6, 7]
    note = note_of(made.data[0].b64_json or "")
    assert [part.get("picture") for part in note["prompt"] if isinstance(part, dict)] == [
        "picture-2",
        "picture-1",
    ]
    assert note["arguments"]["picture_weights"] == [[0.5, 1.0]]


def test_an_edit_of_one_picture(client: openai.OpenAI, creature: Path):
    made = client.images.edit(image=creature, prompt="in the snow", extra_body=STEPS)
    assert made.data is not None
    (picture, words) = note_of(made.data[0].b64_json or "")["prompt"]
    assert (picture["picture"], words) == ("picture-1", "in the snow")


def test_a_mask_keeps_what_is_not_to_be_painted(
    client: openai.OpenAI, creature: Path, tmp_path: Path
):
    base = Image.open(creature).convert("RGB").resize((64, 64))
    base.save(tmp_path / "base.png")
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))  # transparent on the left: painted there
    mask.save(tmp_path / "mask.png")
    events = client.images.edit(
        image=tmp_path / "base.png",
        mask=tmp_path / "mask.png",
        prompt="a creature",
        stream=True,
        extra_body={"seed": 1, "num_inference_steps": 6},
    )
    made = [event.model_dump() for event in events]
    assert [event["type"] for event in made].count("kosmosg.progress") >= 5
    image = np.asarray(picture_of(made[-1]["b64_json"]), int)
    change = np.abs(image - np.asarray(base, int)).mean(axis=2)
    assert change[:, 40:].mean() < 0.5 * change[:, :24].mean()


def test_a_condition_for_other_peoples_u_net(server: Server, creature: Path, tmp_path: Path):
    prompt = [
        {"type": "text", "text": "a creature"},
        {"type": "image_url", "image_url": {"url": data_url(creature)}},
    ]
    with server.client() as http:
        answer = http.post("/v1/conditions", json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    (tmp_path / "a.safetensors").write_bytes(answer.content)
    condition = conditions.load(tmp_path / "a.safetensors")
    assert condition.prompt_embeds.shape == condition.negative_prompt_embeds.shape
    assert condition.provenance["prompt"][0] == "a creature"


ERRORS: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    ({"prompt": "a zebra"}, openai.BadRequestError, "does not know 'zebra'"),
    ({"prompt": ""}, openai.BadRequestError, "the prompt is empty"),
    ({"prompt": "a creature", "model": "dall-e-3"}, openai.NotFoundError, "this server has nano"),
    ({"prompt": "a creature", "size": "1024x1024"}, openai.BadRequestError, "at most 128 pixels"),
    ({"prompt": "a creature", "size": "63x64"}, openai.BadRequestError, "width is 63"),
    ({"prompt": "a creature", "response_format": "url"}, openai.BadRequestError, "response_format"),
    (
        {"prompt": "a creature", "extra_body": {"steps": 9}},
        openai.BadRequestError,
        "steps: unknown",
    ),
    (
        {"prompt": "a creature", "extra_body": {"scheduler": "eulr"}},
        openai.BadRequestError,
        "did you mean euler",
    ),
    (
        {"prompt": "a creature", "extra_body": {"lora": "none"}},
        openai.BadRequestError,
        "no lora 'none'",
    ),
    (
        {
            "prompt": "",
            "extra_body": {
                "prompt": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
            },
        },
        openai.BadRequestError,
        "nothing is fetched",
    ),
]


@pytest.mark.parametrize(("given", "kind", "message"), ERRORS, ids=lambda value: str(value)[:30])
def test_errors_are_openais(
    client: openai.OpenAI, given: dict[str, Any], kind: type[openai.APIStatusError], message: str
):
    with pytest.raises(kind, match=message) as caught:
        client.images.generate(**given)
    error: Any = caught.value.body
    assert error["type"] == "invalid_request_error"
    assert error["code"]


def test_a_request_that_cannot_be_streamed_is_an_error_at_once(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="does not know 'zebra'"):
        client.images.generate(prompt="a zebra", stream=True)


def test_the_log_has_no_words(server: Server, client: openai.OpenAI):
    client.images.generate(prompt="a purple creature", extra_body=STEPS)
    log = server.log.read_text()
    assert "purple" not in log
    said = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert any(one.get("characters") == len("a purple creature") for one in said)


def note_of(b64_json: str) -> Any:
    text: Any = picture_of(b64_json)
    return json.loads(text.text["kosmosg"])
