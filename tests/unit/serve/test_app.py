"""The app in this process, over a toy model with a LoRA and a ControlNet."""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file

from kosmosg import drawing
from kosmosg.note import Picture
from kosmosg.serve.api import create_app
from kosmosg.serve.metrics import Metrics
from kosmosg.serve.run import files_of
from kosmosg.serve.tasks import ServeConfig
from kosmosg.serve.worker import Worker
from toys.model import SIZE, toy_picture, toy_pipeline
from toys.safety import ALWAYS, NEVER, save_checker

PATH = "/v1/images/generations"
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def config(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    folder = tmp_path_factory.mktemp("served")
    pipe = toy_pipeline()
    draw = torch.Generator().manual_seed(1)
    weights = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_v")):
            rows, columns = module.weight.shape
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=draw)
    save_file(weights, folder / "style.safetensors")
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    net.save_pretrained(folder / "net")
    return ServeConfig(
        model=toy_dir,
        loras=files_of("--lora", [f"style={folder / 'style.safetensors'}"]),
        controlnets=files_of("--controlnet", [f"lines={folder / 'net'}"]),
        timeout_s=60.0,
    )


@pytest.fixture(scope="module")
def ask(config: ServeConfig) -> Iterator[Ask]:
    yield from asking(config)


def asking(config: ServeConfig) -> Iterator[Ask]:
    metrics = Metrics()
    worker = Worker(config, metrics)
    app = create_app(worker, metrics=metrics)
    worker.start()
    worker.wait_until_loaded()

    def ask(path: str = PATH, method: str = "POST", **given: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.request(method, path, **given)

        return asyncio.run(once())

    yield ask
    worker.drain()
    assert worker.join(60)


def picture(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)), int)


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def url_of(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(image)).decode()


def by_drawing(config: ServeConfig, load: dict[str, Any], **arguments: Any) -> np.ndarray:
    pipe = drawing.load(config.model, **load)
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(drawing.draw(pipe, ["a red cat"], seeds=[5], **arguments).images[0], int)


def test_a_lora_is_that_of_generate_and_only_where_it_is_named(config: ServeConfig, ask: Ask):
    said = {"prompt": "a red cat", "seed": 5}
    without = picture(ask(json=said))
    under = picture(ask(json={**said, "lora": "style", "lora_scale": 0.5}))
    again = picture(ask(json=said))
    np.testing.assert_array_equal(without, again)
    np.testing.assert_array_equal(without, by_drawing(config, {}))
    load = {"loras": [config.loras["style"]], "lora_scales": [0.5]}
    np.testing.assert_array_equal(under, by_drawing(config, load))
    assert np.abs(under - without).max() > 1


def test_a_condition_asked_for_meanwhile_takes_no_lora_away(config: ServeConfig, ask: Ask):
    said = {"prompt": "a red cat", "seed": 5, "lora": "style", "num_inference_steps": 60}
    with ThreadPoolExecutor(2) as pool:
        drawing_it = pool.submit(ask, json=said)
        while not drawing_it.done():
            assert ask("/v1/conditions", json={"prompt": "a dog"}).status_code == 200
    load = {"loras": [config.loras["style"]], "lora_scales": [1.0]}
    drawn = by_drawing(config, load, num_inference_steps=60)
    np.testing.assert_array_equal(picture(drawing_it.result()), drawn)


def test_our_own_mistakes_are_answered_and_logged(config: ServeConfig, caplog: Any):
    metrics = Metrics()
    app = create_app(Worker(config, metrics), metrics=metrics)

    @app.get("/mistake")
    async def mistake() -> None:
        raise LookupError("ours")

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.get("/mistake")

    answer = asyncio.run(once())
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "LookupError: ours" in caplog.text


def test_a_control_is_that_of_generate(config: ServeConfig, ask: Ask):
    lines = toy_picture(4, (SIZE, SIZE))
    control = {"name": "lines", "image": url_of(lines)}
    answer = ask(json={"prompt": "a red cat", "seed": 5, "control": control})
    own = Picture(path=Path("lines"), image=lines, sha256="0" * 64)
    nets = [config.controlnets["lines"]]
    drawn = by_drawing(config, {}, controlnets=nets, control_images=[own])
    np.testing.assert_array_equal(picture(answer), drawn)


def test_a_mask_is_transparent_or_white(ask: Ask):
    base = toy_picture(3, (SIZE, SIZE))
    white = Image.new("L", (SIZE, SIZE))
    white.paste(255, (0, 0, SIZE // 2, SIZE))
    clear = Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 255))
    clear.paste((200, 0, 0, 0), (0, 0, SIZE // 2, SIZE))
    fields = {"prompt": "a red cat", "seed": "5"}

    def edit(mask: Image.Image) -> httpx.Response:
        files = {"image": ("a", file_of(base)), "mask": ("m", file_of(mask))}
        return ask("/v1/images/edits", data=fields, files=files)

    np.testing.assert_array_equal(picture(edit(white)), picture(edit(clear)))
    assert "nothing to paint" in edit(Image.new("L", (SIZE, SIZE))).json()["error"]["message"]
    assert "of its size" in edit(Image.new("L", (8, 8), 255)).json()["error"]["message"]


def test_a_weight_is_that_of_the_pipeline(config: ServeConfig, ask: Ask):
    cat = toy_picture(1)
    parts = [
        {"type": "text", "text": "a photo of"},
        {"type": "image_url", "image_url": {"url": url_of(cat)}, "weight": 0.5},
    ]
    own = Picture(path=Path("cat"), image=cat, sha256="0" * 64)
    pipe = drawing.load(config.model)
    pipe.set_progress_bar_config(disable=True)
    said = {"picture_weights": [[0.5]], "picture_guidance_scale": 2.0}
    expected = drawing.draw(pipe, ["a photo of", own], seeds=[5], **said).images[0]
    made = ask(json={"prompt": parts, "seed": 5, "image_guidance_scale": 2.0})
    np.testing.assert_array_equal(picture(made), np.asarray(expected, int))


def test_what_takes_too_long_is_given_up(config: ServeConfig):
    for ask in asking(replace(config, timeout_s=0.5, max_steps=999)):
        said = {"prompt": "a red cat", "num_inference_steps": 999, "n": 2}
        answer = ask(json=said)
        assert answer.status_code == 504
        assert "within 0.5 s" in answer.json()["error"]["message"]
        text = ask(json={**said, "stream": True}).text
        name, data = text.strip().split("\n\n")[-1].split("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "timeout"


def test_a_client_that_asks_too_often_is_told_when_to_come(config: ServeConfig):
    for ask in asking(replace(config, requests_per_minute=4)):
        assert ask(json={"prompt": "a red cat"}).status_code == 200
        answer = ask(json={"prompt": "a red cat"})
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 16
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert ask("/v1/models", "GET").status_code == 200


def test_a_server_without_its_model_says_not_ready(tmp_path: Path):
    for ask in asking(ServeConfig(model=tmp_path)):
        answer = ask(json={"prompt": "a red cat"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert ask("/healthz", "GET").status_code == 503


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "<image 2>"}, "there are 1 pictures"),
        ({"prompt": "a", "weights[]": ["1", "2"]}, "2 weights and 1 pictures"),
        ({"prompt": "a", "n": "many"}, "n: "),
        ({"prompt": "a", "control": "{}"}, "control: unknown field"),
        ({"n": "1"}, "prompt: "),
    ],
)
def test_a_form_that_cannot_be_drawn_says_why(ask: Ask, fields: dict[str, Any], message: str):
    files = {"image[]": ("a", file_of(toy_picture()))}
    answer = ask("/v1/images/edits", data=fields, files=files)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_form_needs_a_picture_and_one_mask(ask: Ask):
    data = file_of(toy_picture())
    for files, message in (
        ([("mask", ("m", data))], "0 pictures"),
        ([("image", ("a", data)), ("mask", ("m", data)), ("mask", ("m", data))], "several masks"),
        ([("picture", ("a", data))], "'picture' is a file"),
    ):
        answer = ask("/v1/images/edits", data={"prompt": "a"}, files=files)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]


# --------------------------------------------------------------------------- the safety checker


@pytest.mark.parametrize(("threshold", "flagged"), [(ALWAYS, True), (NEVER, False)])
def test_what_the_safety_checker_flags_is_black_everywhere(
    config: ServeConfig, tmp_path: Path, threshold: float, flagged: bool
) -> None:
    checker = save_checker(tmp_path, threshold)
    asked = asking(replace(config, safety_checker=checker))
    ask = next(asked)
    said = {"prompt": "a red cat", "seed": 5}
    control = {"name": "lines", "image": url_of(toy_picture(3))}
    for more in ({}, {"control": control}):
        answer = ask(json=said | more)
        assert answer.json()["data"][0]["nsfw_content_detected"] is flagged
        assert picture(answer).any() != flagged
        with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as png:
            png.load()
            assert json.loads(png.text["kosmosg"])["nsfw_content_detected"] is flagged
    stream = ask(json=said | {"stream": True, "partial_images": 2}).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    shown = [event for event in events if "b64_json" in event]
    assert [event.get("nsfw_content_detected") for event in shown] == [None, None, flagged]
    for event in shown:  # previews too
        with Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))) as image:
            assert np.asarray(image).any() != flagged
    counted = ask("/metrics", "GET").text
    assert f"kosmosg_flagged_pictures_total {3 if flagged else 0}\n" in counted
    next(asked, None)


def test_without_a_safety_checker_nothing_is_said(ask: Ask) -> None:
    answer = ask(json={"prompt": "a red cat", "seed": 5})
    assert answer.json()["data"][0]["nsfw_content_detected"] is None
