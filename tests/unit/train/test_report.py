"""Runs as a page and as a picture: what is shown, where, and that nothing is fetched or run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageColor

from kosmosg.train.chart import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    charts,
    frame,
)
from kosmosg.train.curves import read_runs
from kosmosg.train.plot import plot
from kosmosg.train.report import NUM_SHEETS, page
from toys.runs import losses, written

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "input"}


class Seen(HTMLParser):
    """The tags, attributes and texts of a page; every tag is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open, self.style = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.texts.append(data)

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}.items()
        return [own for name, own in self.tags if name == tag and wanted <= own.items()]


def shown(*directories):
    return Seen("".join(page(read_runs(list(directories)))))


def sheets(directory, *steps):
    (directory / "samples").mkdir()
    for step in steps:
        image = Image.new("RGB", (900, 40), (step % 256, 80, 10))
        image.save(directory / "samples" / f"step-{step:08d}.png")


@pytest.fixture
def two(tmp_path):
    """A run that was resumed and left records out, and one that knows less."""
    first = losses([4.0, 3.0, 2.0, 1.0])
    first.insert(2, {"step": 20, "event": "resumed"})
    first.append({"step": 40, "records_skipped": 7.0, "records/no caption": 7.0})
    first.append({"step": 40, "validation_loss": 0.5})
    one = written(tmp_path / "one", first, {"steps": 40, "lr": 0.1})
    (one / "bad-step-00000030.json").write_text("{}")
    return one, written(tmp_path / "two", losses([4.5, 2.5]), {"steps": 40, "lr": 0.2})


def test_two_runs_are_laid_over_each_other(two):
    seen = shown(*two)
    labels = [own["aria-label"] for own in seen.all("svg")]
    assert labels == [
        "loss: one 1 at step 40; two 2.5 at step 20",
        "validation loss: one 0.5 at step 40",
    ]
    lines = seen.all("polyline")
    assert [own["style"] for own in lines] == ["stroke: var(--c0)", "stroke: var(--c1)"]
    points = [tuple(map(float, one.split(","))) for one in lines[0]["points"].split()]
    assert len(points) == 4
    assert points[-1][0] == WIDTH - RIGHT
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)
    said = "|".join(seen.texts)
    assert "one: finished, 40 steps" in said
    assert "two: stopped at step 20 of 40" in said
    assert "|loss|1|step 40|2.5|step 20|" in said
    assert "What differs in the configurations|field|one|two|lr|0.1|0.2" in said


def test_resumptions_skips_and_bad_steps_are_marked_where_they_were(two):
    seen = shown(*two)
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks = seen.all("line", class_="mark r0")
    assert [float(own["x1"]) for own in marks] == [middle] * 2  # after 20 of 40 steps, each chart
    (first, *_) = seen.all("path", class_="skip r0")
    assert first["d"].startswith(f"M{WIDTH - RIGHT}.0 ")
    assert len(seen.all("path", class_="bad r0")) == 2
    said = "|".join(seen.texts)
    for words in (
        "resumed after step 20",
        "7 records left out by step 40",
        "step 30: loss or gradient was no number",
        "A dotted line is where a run was stopped and went on.",
    ):
        assert words in said
    plain = shown(two[1])
    assert "dotted" not in "".join(plain.texts)
    assert not plain.all("line", class_="mark r0")


def test_the_page_fetches_and_runs_nothing(two):
    seen = shown(*two)
    assert not any(tag in ("script", "link", "iframe", "object", "base") for tag, _ in seen.tags)
    policy = seen.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not any(name.startswith("on") or name == "href" for name, _ in seen.attributes)
    assert all(v.startswith("data:image/") for n, v in seen.attributes if n == "src")
    assert not re.search(r"url\(|@import|https?:", seen.style)


def test_the_page_is_for_phones_both_schemes_and_the_keyboard(two):
    sheets(two[0], 20, 40)
    seen = shown(*two)
    assert seen.all("meta", name="viewport")[0]["content"].startswith("width=device-width")
    assert "prefers-color-scheme: dark" in seen.style
    assert ":focus-visible" in seen.style
    # What scrolls can be reached, and says what it is; a run is hidden by a box with a label.
    regions = seen.all("div", tabindex="0", role="region")
    assert [own["aria-label"] for own in regions] == [
        "Table of each value by run",
        "Table of each field by run",
        "Samples of one",
    ]
    boxes = seen.all("input", type="checkbox")
    assert [own["id"] for own in boxes] == [own["for"] for own in seen.all("label")] == ["r0", "r1"]
    for number in range(2):
        assert f"body:has(#r{number}:not(:checked)) .r{number} {{ display: none; }}" in seen.style


def test_names_are_only_words(tmp_path):
    name = HOSTILE.replace("/", "")
    lines = [{"step": 1, f"loss/{HOSTILE}": 1.0, "loss": 2.0, f"metric_{HOSTILE}": 4.0}]
    one = written(tmp_path / name, lines, {"steps": 9, HOSTILE: HOSTILE})
    seen = shown(one, written(tmp_path / "two", lines))
    assert not any(tag in ("script",) or "onerror" in own for tag, own in seen.tags)
    assert "".join(seen.texts).count(HOSTILE) >= 4


def test_sheets_are_shown_last_first_and_small(tmp_path):
    one = written(tmp_path / "one", losses([1.0]))
    sheets(one, *range(10, 110, 10))
    (one / "samples" / "step-00000110.png").write_bytes(b"\x89PNG torn")
    (one / "samples" / "notes.txt").write_text("mine")
    seen = shown(one)
    said = seen.texts[seen.texts.index("Samples") :]
    assert "step 110|step-00000110.png cannot be read: UnidentifiedImageError|" in "|".join(said)
    pictures = seen.all("img")
    assert len(pictures) == NUM_SHEETS - 1
    assert [own["alt"] for own in pictures] == [f"Samples at step {s}" for s in (80, 40, 10)]
    assert pictures[0]["width"] == "640"


def test_empty_runs_have_a_page_and_a_picture(tmp_path):
    empty = written(tmp_path / "empty", [])
    seen = shown(empty)
    assert "empty: nothing logged yet" in seen.texts
    assert "Nothing is logged yet." in seen.texts
    assert plot(read_runs([empty])).size[0] > 0
    seen = shown(empty, written(tmp_path / "other", losses([2.0, 1.0])))
    assert len(seen.all("polyline")) == 1


# ----------------------------------------------------------------------------------- the picture


def colours(picture, top, left):
    """Return which of our colours a chart of the picture has, and where each is."""
    pixels = np.asarray(picture.crop((left, top, left + WIDTH, top + HEIGHT))).astype(int)
    found = {}
    for name in COLOURS:
        near = np.abs(pixels - ImageColor.getrgb(name)).sum(2) < 30
        if near[TOP:].any():
            found[name] = np.argwhere(near)
    return found


def test_the_picture_has_the_lines_where_the_frame_says(two):
    runs = read_runs(list(two))
    picture = plot(runs)
    head = 18 * len(runs) + 12
    found = colours(picture, head, 0)
    assert set(found) == {COLOURS[0], COLOURS[1]}
    (chart, validation) = charts(runs)
    where = frame(chart, last_step=40)
    for line in chart.lines:
        places = found[COLOURS[line.colour]]
        for (x, y), (later, lower) in zip(
            where.segments(line.curve)[0], where.segments(line.curve)[0][1:], strict=False
        ):
            for share in (0.25, 0.75):  # the lines cross between
                middle = np.array([y + (lower - y) * share, x + (later - x) * share])
                assert np.abs(places - middle).sum(1).min() <= 3
        left, right = places[:, 1].min(), places[:, 1].max()
        assert left >= where.x(10) - 3
        assert right <= where.x(line.curve.steps[-1]) + 3
    assert validation.title == "validation loss"
    assert set(colours(picture, head, WIDTH)) == {COLOURS[0]}  # one value is a dot


def test_the_picture_has_the_marks(two):
    with_marks, without = (np.asarray(plot(read_runs([one])).convert("L")) for one in two)
    head = 18 + 12
    column = round((LEFT + WIDTH - RIGHT) / 2)
    inside = slice(head + TOP, head + HEIGHT - BOTTOM)
    dots = (with_marks[inside, column - 1 : column + 2] < 180).any(1)
    assert 0.3 < dots.mean() < 0.8  # dotted, not drawn through
    corner = with_marks[head + HEIGHT - BOTTOM - 4 : head + HEIGHT - BOTTOM, WIDTH - RIGHT - 2]
    assert (corner < 180).all()
    same = without[head + HEIGHT - BOTTOM - 4 : head + HEIGHT - BOTTOM, WIDTH - RIGHT - 2]
    assert not (same < 180).any()
