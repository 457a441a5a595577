"""The page, used in a browser as people use it, against a server with nano."""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from toys.pageside import (
    CHIPS,
    KEY,
    adapters,
    add,
    download,
    drop,
    made,
    opened,
    prompt_of,
    running,
    served,
    set_field,
    write,
)
from toys.safety import ALWAYS, save_checker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return where the server is; it takes 1 MiB at once, and has a LoRA and a ControlNet."""
    folder = tmp_path_factory.mktemp("serve")
    with served(folder, "--max-upload", "1", *adapters(folder)) as address:
        yield address


@pytest.fixture
def context(browser: "Browser") -> "Iterator[BrowserContext]":
    """Return a browser without history."""
    made = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    made.set_default_timeout(20_000)
    yield made
    made.close()


@pytest.fixture
def page(context: "BrowserContext", address: str) -> "Iterator[Page]":
    """Return the page; it asks no other host and says nothing to the console."""
    said: list[str] = []
    yield opened(context, address, said)
    assert said == []


@pytest.fixture(scope="module")
def creatures(repository: Path) -> list[Path]:
    folder = repository / "src/kosmosg/serve/static/pictures"
    return [folder / "star.png", folder / "crowned.png"]


def test_pictures_dropped_between_words_are_drawn_as_they_stand(
    page: "Page", creatures: list[Path], tmp_path: Path
) -> None:
    write(page, "a creature and a creature in the city")
    drop(page, creatures[0], before="and a")
    page.locator(CHIPS).first.wait_for()
    drop(page, creatures[1], before="in the")
    page.locator(CHIPS).nth(1).wait_for()
    assert prompt_of(page) == [
        "a creature",
        "[Picture 1 of 2: star.png]",
        "and a creature",
        "[Picture 2 of 2: crowned.png]",
        "in the city",
    ]
    for name, value in (("n", 2), ("num_inference_steps", 4), ("seeding", "fixed"), ("seed", 71)):
        set_field(page, name, value)
    set_field(page, "image_guidance_scale", 2)
    page.get_by_role("button", name="Generate").click()
    entry = made(page)
    assert "seed 71" in entry.inner_text()
    tiles = entry.locator(".tile")
    assert tiles.count() == 2
    picture, note = download(page, tiles.nth(1), tmp_path)
    assert picture.size == (64, 64)
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in creatures]
    words = [part if isinstance(part, str) else part["sha256"] for part in note.prompt]
    assert words == ["a creature", sums[0], "and a creature", sums[1], "in the city"]
    assert note.arguments["num_inference_steps"] == 4
    assert note.arguments["picture_guidance_scale"] == 2

    # The second again, by itself: the same seed, all but the last bits the same picture.
    tiles.nth(1).get_by_role("button", name="Replay").click()
    page.locator(".entry").nth(1).wait_for()
    again, other = download(page, made(page).locator(".tile"), tmp_path)
    assert other.seeds[0] == 72
    assert max(abs(a - b) for a, b in zip(picture.tobytes(), again.tobytes(), strict=True)) <= 2

    # And as a word of the next prompt, where the caret is.
    write(page, "a creature ")
    page.locator(".entry").first.get_by_role("button", name="Use as input").click()
    page.locator(CHIPS).wait_for()
    assert prompt_of(page) == ["a creature", "[Picture 1 of 1: made-72.png]"]


def test_a_long_one_shows_previews_and_is_cancelled(page: "Page", address: str) -> None:
    write(page, "a red star in the snow")
    set_field(page, "num_inference_steps", 250)
    page.get_by_role("button", name="Generate").click()
    page.locator(".going .state", has_text=re.compile(r"Step \d+ of 250")).wait_for()
    page.locator(".tile.preview img[src^='data:image/png']").first.wait_for()
    value = page.get_by_role("progressbar").evaluate("bar => bar.value")
    assert 0 < value < 1
    page.get_by_role("button", name="Cancel").click()
    page.locator(".entry").wait_for(state="detached")
    assert page.get_by_role("status").inner_text() == "Cancelled"
    # Its place is free at the next step, long before it would have been done.
    deadline = time.monotonic() + 10
    while (state := running(address)) != 0:
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    assert page.get_by_text("What you make appears here").is_visible()


def test_history_stays_and_can_be_removed(page: "Page") -> None:
    page.get_by_role("button", name="at night").click()  # an example
    entry = made(page)
    source = "image => fetch(image.src).then(r => r.blob()).then(b => b.size)"
    size = entry.locator(".tile img").evaluate(source)
    page.reload()
    entry = made(page)
    assert entry.get_attribute("aria-label") == "a creature [picture 1] at night"
    assert entry.locator(".tile img").evaluate(source) == size
    assert (
        entry.locator(".tile img").evaluate(
            "image => image.decode().then(() => image.naturalWidth)"
        )
        == 64
    )
    entry.get_by_role("button", name="Edit prompt").click()
    assert prompt_of(page) == ["a creature", "[Picture 1 of 1: diamond.png]", "at night"]
    entry.get_by_role("button", name="Remove").click()
    page.locator(".entry").wait_for(state="detached")
    page.reload()
    page.get_by_text("What you make appears here").wait_for()
    assert page.locator(".entry").count() == 0


def test_a_picture_that_the_safety_checker_flags_is_said_to_be(
    context: "BrowserContext", tmp_path: Path
) -> None:
    checker = save_checker(tmp_path, ALWAYS)
    with served(tmp_path, "--safety-checker", str(checker)) as address:
        page = opened(context, address)
        write(page, "a red star")
        set_field(page, "num_inference_steps", 2)
        page.get_by_role("button", name="Generate").click()
        for _ in range(2):  # what the history keeps says it too
            tile = made(page).locator(".tile")
            assert "safety checker flagged" in tile.inner_text()
            black, note = download(page, tile, tmp_path)
            assert black.getextrema() == ((0, 0),) * 3
            assert note.nsfw_content_detected
            page.reload()
        page.close()


def test_what_cannot_be_used_is_said(page: "Page", creatures: list[Path], tmp_path: Path) -> None:
    alert = page.get_by_role("alert")
    large = tmp_path / "large.png"
    large.write_bytes(creatures[0].read_bytes() + bytes(2**20))
    text = tmp_path / "notes.png"
    text.write_text("no picture at all")
    torn = tmp_path / "torn.png"
    torn.write_bytes(creatures[0].read_bytes()[:300])
    vector = tmp_path / "drawing.svg"
    vector.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    write(page, "a creature ")
    add_all = [large, text, torn, vector, creatures[0]]
    page.set_input_files("#files", add_all)
    page.locator(CHIPS).wait_for()  # what can be used is used
    said = alert.inner_text()
    assert "large.png has 1.1 MB; this server takes 776 kB" in said
    assert "notes.png is not a picture that can be read" in said
    assert "torn.png is a damaged picture" in said
    assert "drawing.svg is not a picture" in said
    assert page.locator(CHIPS).count() == 1
    write(page, "a zebra in the snow")
    page.keyboard.press("Enter")
    alert.get_by_text("does not know 'zebra'").wait_for()
    assert prompt_of(page) == ["a zebra in the snow"]  # to be put right
    write(page, "")
    page.keyboard.press("Enter")
    alert.get_by_text("The prompt is empty").wait_for()
    add(page, *creatures * 4)
    page.set_input_files("#files", [creatures[0]])
    alert.get_by_text("at most 8 pictures; this would be 9").wait_for()
    assert page.locator(CHIPS).count() == 8
    alert.get_by_role("button", name="Close").click()
    assert not alert.is_visible()


def test_pictures_by_keyboard(page: "Page", creatures: list[Path], tmp_path: Path) -> None:
    write(page, "in the snow")
    page.keyboard.press("Home")
    add(page, *creatures)
    star, crowned = "[Picture 1 of 2: star.png]", "[Picture 2 of 2: crowned.png]"
    assert prompt_of(page) == [star, crowned, "in the snow"]
    # The caret is behind the second and its space: one to the left, then onto it.
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowRight")
    assert prompt_of(page) == [star, "in", crowned, "the snow"]
    page.keyboard.press("Alt+ArrowLeft")
    star, crowned = "[Picture 2 of 2: star.png]", "[Picture 1 of 2: crowned.png]"
    assert prompt_of(page) == [crowned, "in", star, "the snow"]
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    heavy = "[Picture 1 of 2: crowned.png, weight 0.5]"
    assert prompt_of(page)[0] == heavy
    page.keyboard.press("Enter")
    slider = page.get_by_role("slider", name="Weight")
    slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "0.4 times"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Move right
    assert prompt_of(page) == ["in", "[Picture 1 of 2: crowned.png, weight 0.4]", star, "the snow"]
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # over the space, then onto the star
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    alone = "[Picture 1 of 1: crowned.png, weight 0.4]"
    assert prompt_of(page) == ["in", alone, "the snow"]
    page.keyboard.press("Control+z")
    assert len(prompt_of(page)) == 4
    page.keyboard.press("Control+Shift+z")
    page.keyboard.type("a b")
    assert prompt_of(page) == ["in", alone, "a bthe snow"]
    page.keyboard.press("Control+z")
    set_field(page, "num_inference_steps", 2)
    page.get_by_role("button", name="Generate").click()
    _, note = download(page, made(page).locator(".tile"), tmp_path)
    assert note.arguments["picture_weights"] == [[0.4]]


def test_pictures_by_mouse(page: "Page", creatures: list[Path]) -> None:
    write(page, "one two ")
    add(page, *creatures)
    chips = page.locator(CHIPS)
    chips.nth(0).drag_to(chips.nth(1))
    assert prompt_of(page)[-1] == "[Picture 2 of 2: star.png]"
    chips.nth(1).drag_to(page.locator("#prompt"), target_position={"x": 14, "y": 30})
    crowned = "[Picture 2 of 2: crowned.png]"
    assert prompt_of(page) == ["[Picture 1 of 2: star.png]", "one two", crowned]
    chips.nth(1).click()
    options = page.get_by_role("dialog", name="Options of the picture")
    options.get_by_role("slider").fill("2.5")
    assert prompt_of(page)[-1] == "[Picture 2 of 2: crowned.png, weight 2.5]"
    options.get_by_role("button", name="Swap with next").click()
    assert prompt_of(page)[0] == "[Picture 1 of 2: crowned.png, weight 2.5]"
    with page.expect_file_chooser() as choosing:
        options.get_by_role("button", name="Replace").click()
    choosing.value.set_files(creatures[0])
    page.get_by_label("Picture 1 of 2: star.png, weight 2.5").wait_for()
    chips.nth(0).click()
    options.get_by_role("button", name="Remove").click()
    assert prompt_of(page) == ["one two", "[Picture 1 of 1: star.png]"]
    assert not options.is_visible()


def test_words_are_plain_and_input_methods_keep_their_keys(page: "Page") -> None:
    write(page, "a ")
    page.evaluate("""() => navigator.clipboard.write([new ClipboardItem({
        'text/plain': new Blob(['red\\n  \\uFFFCstar'], {type: 'text/plain'}),
        'text/html': new Blob(['<b>red</b> <img src=x> star'], {type: 'text/html'})})])""")
    page.keyboard.press("Control+v")
    assert page.locator("#prompt").inner_html() == "a red star"
    page.keyboard.press("Control+b")
    page.keyboard.press("Shift+Enter")
    assert page.locator("#prompt").inner_html() == "a red star"
    page.locator(".entry").wait_for()  # Enter draws
    page.get_by_role("button", name="Clear").click()
    session = page.context.new_cdp_session(page)
    typing = {"text": "ゆき", "selectionStart": 2, "selectionEnd": 2}
    session.send("Input.imeSetComposition", typing)
    entries = page.locator(".entry").count()
    page.keyboard.press("Enter")
    session.send("Input.insertText", {"text": "雪"})
    assert prompt_of(page) == ["雪"]
    assert page.locator(".entry").count() == entries
    page.keyboard.press("Control+z")
    assert prompt_of(page) == []


def test_a_link_restores_a_prompt(
    page: "Page", browser: "Browser", creatures: list[Path], tmp_path: Path
) -> None:
    write(page, "a creature ")
    add(page, creatures[1])
    page.keyboard.type("in the <snow>")
    set_field(page, "num_inference_steps", 7)
    set_field(page, "negative_prompt", "a hat")
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("status").get_by_text("Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert len(link) < 4000
    fresh = browser.new_context()
    other = opened(fresh, link)
    page.get_by_label("Picture 1 of 1: crowned.png").wait_for()
    other.locator(CHIPS).wait_for()
    assert prompt_of(other) == prompt_of(page)
    assert other.locator("[name=num_inference_steps]").input_value() == "7"
    assert other.locator("[name=negative_prompt]").input_value() == "a hat"
    assert other.locator("[name=seeding]").input_value() == "random"
    assert other.locator(".entry").count() == 0  # nothing is drawn unasked
    assert "#" not in other.url
    other.goto(link[:-40])
    other.reload()
    other.get_by_role("alert").get_by_text("This link is damaged").wait_for()
    fresh.close()
    noise = tmp_path / "noise.png"
    Image.effect_noise((300, 300), 90).save(noise)
    add(page, noise)
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("alert").get_by_text("A link holds about 22 kB of pictures").wait_for()


def test_the_key_is_asked_for_where_it_is_needed(context: "BrowserContext", address: str) -> None:
    page = context.new_page()
    page.goto(address)
    field = page.get_by_label("This server asks for its API key")
    field.fill("another")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("API key").wait_for()
    field.fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_text("nano", exact=True).wait_for()
    assert not field.is_visible()


def test_lora_and_control_are_offered(page: "Page", creatures: list[Path], tmp_path: Path) -> None:
    write(page, "a creature in the snow")
    set_field(page, "num_inference_steps", 2)
    set_field(page, "lora", "style")
    picture = page.get_by_label("Control picture")
    assert not picture.is_visible()
    set_field(page, "control", "edges")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text("Control edges needs a picture").wait_for()
    picture.set_input_files(creatures[0])
    page.get_by_role("button", name="Generate").click()
    entry = made(page)
    assert "LoRA style · control edges" in entry.inner_text()
    drawn, note = download(page, entry.locator(".tile"), tmp_path)
    assert "style.safetensors" in str(note.load["loras"])
    assert hashlib.sha256(creatures[0].read_bytes()).hexdigest() in str(note.arguments)
    # What is kept is enough to draw it again.
    page.reload()
    made(page).get_by_role("button", name="Replay").click()
    page.locator(".entry").nth(1).wait_for()
    again, _ = download(page, made(page).locator(".tile"), tmp_path)
    assert again.tobytes() == drawn.tobytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_keeps_nobody_out(
    browser: "Browser", address: str, creatures: list[Path], scheme: str, barriers
) -> None:
    context = browser.new_context(
        color_scheme=scheme, reduced_motion="reduce", viewport={"width": 390, "height": 800}
    )
    page = opened(context, address)
    write(page, "a creature ")
    add(page, *creatures)
    set_field(page, "n", 2)
    set_field(page, "num_inference_steps", 100)
    page.get_by_role("button", name="Generate").click()
    waiting = page.locator(".waiting img").first
    assert waiting.evaluate("image => getComputedStyle(image).animationName") == "none"
    assert barriers(page) == []
    page.get_by_role("button", name="Cancel").click()
    page.locator(".entry").wait_for(state="detached")
    set_field(page, "num_inference_steps", 2)
    page.get_by_role("button", name="Generate").click()
    made(page)
    page.locator(CHIPS).first.click()
    page.set_input_files("#files", [Path(__file__)])
    page.get_by_role("alert").get_by_text("is not a picture").wait_for()
    assert barriers(page) == []
    # A phone shows all of it without scrolling sideways.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
