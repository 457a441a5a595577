"""What a person does on the page, for its tests."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEY = "a-key-of-the-tests-that-is-long-enough"
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
