"""What enters the model: ids and slots of prompts, and the two views of pictures, exactly."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from kosmosg.images import clip_view, decoder_view, open_image
from kosmosg.sequence import Encoded, Prompt, encode
from kosmosg.tokenizer import Tokenizer
from kosmosg.verify.compare import (
    TOLERANCE,
    Check,
    difference,
    exactly,
    near,
    not_checked,
    read_case,
)
from kosmosg.verify.golden import Golden, read_json

# Any picture will do where only ids are compared.
PICTURE = Image.new("RGB", (32, 32), "red")
SUM_TOLERANCE = 1e-2  # of 150 000 pixels of about 1, in float32
KEPT_PIECES = 60  # the file keeps so many of a prompt
VIEWS_FILE = "image_transform.safetensors"
VIEWS = {"gpt": clip_view, "diff": decoder_view}


def tokens(golden: Golden, name: str) -> Iterator[Check]:
    """Yield the vocabulary, and the ids, slots and pieces of each recorded prompt.

    Source:
        NUMERICS sections 1 and 2.1.
    """
    recorded, tokenizer = read_json(golden.directory / name), golden.tokenizer
    yield from _vocabulary(recorded["info"], tokenizer, name)
    cases = recorded["cases"]
    num_latents = _num_latents(cases)
    for number, case in enumerate(cases):
        what = f"prompt {number} {case['prompt'][:24]!r}"
        encoded = _encode(_prompt(case["prompt"]), tokenizer, num_latents)
        slots = encoded.image_mask.nonzero().flatten().tolist()
        negative = _encode([case["negative_prompt"]], tokenizer, num_latents)
        ids, negative_ids = encoded.input_ids.tolist(), negative.input_ids.tolist()
        yield exactly(name, f"{what}: ids", ids, case["src_tokens"])
        yield exactly(name, f"{what}: slots", slots, case["image_positions"])
        yield exactly(name, f"{what}: negative ids", negative_ids, case["negative_tokens"])
        pieces = tokenizer.pieces(case["prompt"])[:KEPT_PIECES]
        yield exactly(name, f"{what}: pieces", pieces, case["pieces"])


def views(golden: Golden, name: str) -> Iterator[Check]:
    """Yield both views of each picture: every so many pixels, and two sums of all.

    Source:
        NUMERICS section 3.1.
    """
    case = read_case(golden.directory, name)
    folder = golden.directory / "images"
    for picture in sorted({key.split(".")[0] for key in case.tensors}):
        image = open_image(folder / f"{picture}.png")
        for kind, view_of in VIEWS.items():
            total, absolute, size = case[f"{picture}.{kind}_sum64"].tolist()
            view = view_of(image, int(size))
            what = f"{picture} {kind}"
            for key in (key for key in case.tensors if key.startswith(f"{picture}.{kind}_s")):
                stride = key.rpartition("_s")[2]
                if stride.isdigit():
                    kept = view[:, :: int(stride), :: int(stride)]
                    error = difference(kept, case[key])
                    yield near(name, f"{what}: one pixel in {stride}", error, 0.0, TOLERANCE)
            ours = view.double()
            yield near(name, f"{what}: sum", ours.sum().item(), total, SUM_TOLERANCE)
            yield near(
                name, f"{what}: absolute sum", ours.abs().sum().item(), absolute, SUM_TOLERANCE
            )
    for key in case.unseen():
        yield not_checked(name, f"no part of kosmosg computes {key}")
    recorded = {key.split(".")[0] for key in case.tensors}
    for path in sorted(folder.glob("*")):
        if path.stem not in recorded:
            yield not_checked(f"images/{path.name}", f"{name} holds nothing of it")


def _vocabulary(info: dict[str, Any], tokenizer: Tokenizer, name: str) -> Iterator[Check]:
    yield exactly(name, "vocabulary size", tokenizer.vocab_size, info["vocab_size"])
    for special in ("bos", "pad", "eos", "unk"):
        yield exactly(name, special, getattr(tokenizer, f"{special}_id"), info[special])
    named = [[index, symbol] for symbol, (index, _) in info["special"].items()]
    rows = [*info["head"], *info["tail"], *named]
    last = tokenizer.vocab_size - 1
    ours = [[index, tokenizer.symbol(min(index, last))] for index, _ in rows]
    yield exactly(name, "symbols of the dictionary", ours, rows)
    marks = [info["special"][symbol][0] for symbol in ("<image>", "</image>")]
    yield exactly(name, "<image> and </image>", [tokenizer.image_id, tokenizer.end_image_id], marks)


def _num_latents(cases: list[dict[str, Any]]) -> int:
    """Return the slots of a picture in the recording; 1 if it has no picture."""
    shown = [case for case in cases if case["n_images"]]
    return len(shown[0]["image_positions"]) // shown[0]["n_images"] if shown else 1


def _prompt(marked: str) -> Prompt:
    """The released preprocessing marks each picture by `<i>`."""
    first, *others = marked.split("<i>")
    prompt: list[str | Image.Image] = [first]
    for text in others:
        prompt += [PICTURE, text]
    return prompt


def _encode(prompt: Prompt, tokenizer: Tokenizer, num_latents: int) -> Encoded:
    return encode(prompt, tokenizer, num_latents=num_latents, image_size=PICTURE.width)
