"""What a person does on the page, for its tests."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file

from kosmosg import KosmosGPipeline
from kosmosg.note import Note, read_png

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page

KEY = "a-key-of-the-tests-that-is-long-enough"
KNOWN = f"sessionStorage.setItem('kosmosg-key', '{KEY}')"
CHIPS = "#prompt .chip"


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Give the address of a server with nano and a key, as long as it is needed."""
    keys, log = folder / "keys.txt", folder / "log.txt"
    keys.write_text(KEY + "\n")
    command = [sys.executable, "-m", "kosmosg", "serve", "--port", "0"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--api-key-file", str(keys), *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http"), log.read_text()
            yield address
        finally:
            process.terminate()
            left = process.wait(60)
    assert left == 0, log.read_text()


def adapters(folder: Path) -> list[str]:
    """Write a LoRA and a ControlNet for nano; return the options that name them."""
    unet = KosmosGPipeline.from_pretrained("nano").unet
    weights = {}
    for name, module in unet.named_modules():
        if name.endswith("to_v"):
            key = f"lora_unet_{name.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = torch.eye(2, module.in_features)
            weights[f"{key}.lora_up.weight"] = torch.full((module.out_features, 2), 0.01)
            weights[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(weights, folder / "style.safetensors")
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
    control.save_pretrained(folder / "edges")
    lora = f"style={folder / 'style.safetensors'}"
    return ["--lora", lora, "--controlnet", f"edges={folder / 'edges'}"]


def opened(context: "BrowserContext", address: str, said: list[str] | None = None) -> "Page":
    """Return the page in a tab that knows the key."""
    page = context.new_page()
    page.add_init_script(KNOWN)
    page.on("pageerror", lambda error: said is None or said.append(str(error)))
    page.on("console", lambda told: said is None or _is_refusal(told) or said.append(told.text))
    page.on("request", lambda asked: said is None or _is_own(asked.url) or said.append(asked.url))
    page.goto(address)
    page.get_by_text("nano", exact=True).wait_for()
    return page


def _is_own(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "blob:", "data:"))


def _is_refusal(told: "ConsoleMessage") -> bool:
    """Return whether it is the browser's line about an answer that is no success."""
    said = "Failed to load resource: the server responded with a status of "
    return told.text.startswith((said + "4", said + "503"))


def made(page: "Page") -> "Locator":
    """Return the newest entry, once it is done."""
    entry = page.locator(".entry").first
    entry.get_by_role("button", name="Edit prompt").wait_for()
    return entry


def download(page: "Page", tile: "Locator", folder: Path) -> tuple[Image.Image, Note]:
    with page.expect_download() as waiting:
        tile.get_by_role("link", name="Download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return read_png(path)


def running(address: str) -> int:
    """Return how many pictures the server is drawing."""
    asked = urllib.request.Request(address + "metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked) as answer:
        text = answer.read().decode()
    found = re.findall(r"^kosmosg_running_pictures (\d+)", text, re.MULTILINE)
    return int(found[0])


def prompt_of(page: "Page") -> list[str]:
    """Return the words of the line and, in brackets, what is said of its pictures."""
    nodes: Sequence[str] = page.locator("#prompt").evaluate(
        """root => [...root.childNodes].map(node => node.nodeType === Node.TEXT_NODE
            ? node.data.replace(/\\u200B/g, "").trim() : `[${node.getAttribute("aria-label")}]`)"""
    )
    return [node for node in nodes if node]


def write(page: "Page", words: str) -> None:
    """Empty the line and type."""
    page.locator("#prompt").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.type(words)


def add(page: "Page", *files: Path) -> None:
    """Pick files; wait until their pictures are in the line."""
    number = page.locator(CHIPS).count() + len(files)
    page.set_input_files("#files", list(files))
    page.locator(CHIPS).nth(number - 1).wait_for()


def drop(page: "Page", *files: Path, before: str) -> None:
    """Drop files on the line, right before a word."""
    x, y = page.locator("#prompt").evaluate(
        """(root, word) => {
            const node = [...root.childNodes].find(one => one.data?.includes(word));
            const range = document.createRange();
            range.setStart(node, node.data.indexOf(word));
            const box = range.getBoundingClientRect();
            return [box.left, box.top + box.height / 2];
        }""",
        before,
    )
    carried = page.evaluate_handle(
        """files => {
            const carried = new DataTransfer();
            for (const [name, bytes] of files) {
                carried.items.add(new File([new Uint8Array(bytes)], name));
            }
            return carried;
        }""",
        [[file.name, list(file.read_bytes())] for file in files],
    )
    place = {"dataTransfer": carried, "clientX": x, "clientY": y}
    page.locator("#prompt").dispatch_event("dragover", place)
    page.locator("#prompt").dispatch_event("drop", place)


def set_field(page: "Page", name: str, value: object) -> None:
    """Fill in a field of the settings, opened first."""
    if page.locator("#settings").get_attribute("open") is None:
        page.locator("#settings summary").click()
    field = page.locator(f"[name={name}]")
    if field.evaluate("field => field.tagName") == "SELECT":
        field.select_option(str(value))
    else:
        field.fill(str(value))
