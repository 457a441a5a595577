"""The toy world's pictures: creatures with attributes, drawn from signed distances.

A scene is plain data; `render` draws many at once. The same formulas run on numpy arrays and on
torch tensors (a GPU draws whole batches), because they use only what both libraries spell alike.
Coordinates: x to the right, y down, both 0..1 over the picture; a subject's own frame has its body
within about -1..1. Frozen by VERSION: a change here invalidates every recorded figure.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from kosmosg.toyworld.places import BACKGROUNDS, Array, Canvas, frame
from kosmosg.toyworld.scenes import (
    BLANK,
    COLOURS,
    PATTERN_COLOURS,
    PLACES,
    Scene,
    Subject,
)


def render(
    scenes: Sequence[Scene], size: int = 64, xp: ModuleType = np, device: str | None = None
) -> tuple[Array, Array]:
    """Return pictures (scenes size size 3, uint8) and masks (scenes 4 size size, bool).

    Args:
        size: Side in pixels; 64 is what nano is trained at.
        xp: `numpy`, or `torch` to draw on `device`.
        device: Torch device; None is the CPU.
    """
    canvas = Canvas(len(scenes), size, xp, device)
    jitter = canvas.array(np.stack([np.random.default_rng(s.seed).random(24) for s in scenes]))
    for place in (*PLACES, BLANK):
        rows = [i for i, scene in enumerate(scenes) if scene.place == place]
        if rows:
            canvas.paint(rows, BACKGROUNDS[place](canvas, jitter[rows]))
    masks = xp.zeros((len(scenes), 4, size, size), dtype=xp.bool, **canvas.on_device)
    for slot in range(4):
        rows = [i for i, scene in enumerate(scenes) if len(scene.subjects) > slot]
        if rows:
            subjects = [scenes[i].subjects[slot] for i in rows]
            borders = [scenes[i].style == "sticker" for i in rows]
            masks[rows, slot] = _draw_subjects(canvas, rows, subjects, borders)
    pastel = [i for i, scene in enumerate(scenes) if scene.style == "pastel"]
    if pastel:
        canvas.pixels[pastel] = 0.55 * canvas.pixels[pastel] + 0.45 * 255
    framed = [i for i, scene in enumerate(scenes) if scene.style == "framed"]
    if framed:
        canvas.paint(framed, frame(canvas, len(framed)))
    pixels = xp.clip(canvas.pixels + 0.5, 0, 255)
    return (pixels.astype(np.uint8) if xp is np else pixels.to(xp.uint8)), masks


def _star(xp: ModuleType, x: Array, y: Array) -> Array:
    sector = 2 * np.pi / 5
    angle = xp.abs((xp.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    length = xp.sqrt(x * x + y * y)
    # The edge from the outer point (0, 1.08) to the inner one at 36 degrees.
    ix, iy = 0.5 * np.sin(sector / 2), 0.5 * np.cos(sector / 2)
    nx, ny = 1.08 - iy, ix
    norm = float(np.hypot(nx, ny))
    return (nx * length * xp.sin(angle) + ny * (length * xp.cos(angle) - 1.08)) / norm


def _heart(xp: ModuleType, x: Array, y: Array) -> Array:
    x, y = xp.abs(x) / 1.06, (y + 0.02) / 1.06
    lobe = xp.sqrt((x - 0.44) ** 2 + (y + 0.32) ** 2) - 0.5
    side = 0.745 * x + 0.667 * y - (0.745 * 0.44 - 0.667 * 0.32 + 0.5)
    below = xp.maximum(0.667 * (x - 0.44) - 0.745 * (y + 0.32), -y - 0.38)
    return xp.minimum(lobe, xp.maximum(side, below))


_BODIES = {
    "circle": lambda xp, x, y: xp.sqrt(x * x + y * y) - 0.92,
    "square": lambda xp, x, y: xp.maximum(xp.abs(x), xp.abs(y)) - 0.82,
    "triangle": lambda xp, x, y: xp.maximum(y - 0.8, 0.8845 * xp.abs(x) - 0.4668 * (y + 1.02)),
    "star": _star,
    "heart": _heart,
    "diamond": lambda xp, x, y: 0.82 * xp.abs(x) + 0.572 * xp.abs(y) - 0.6,
    "cross": lambda xp, x, y: xp.minimum(
        xp.maximum(xp.abs(x) - 0.4, xp.abs(y) - 0.95), xp.maximum(xp.abs(x) - 0.95, xp.abs(y) - 0.4)
    ),
    "oval": lambda xp, x, y: (xp.sqrt((x / 1.08) ** 2 + (y / 0.6) ** 2) - 1) * 0.6,
}
# Where a hat sits: the top of the body on its middle line.
_TOPS = {
    "circle": -0.88,
    "square": -0.8,
    "triangle": -0.66,
    "star": -0.74,
    "heart": -0.56,
    "diamond": -0.74,
    "cross": -0.93,
    "oval": -0.56,
}
_PATTERNS = {
    "stripes": lambda xp, x, y: xp.sin(y * 9.4) + 0.0 * x,
    "dots": lambda xp, x, y: (
        1.9 - 10.4 * xp.sqrt(((x + 0.29) % 0.58 - 0.29) ** 2 + ((y + 0.29) % 0.58 - 0.29) ** 2)
    ),
    "checks": lambda xp, x, y: 1.6 * xp.sin(x * 7.2) * xp.sin(y * 7.2),
    "rings": lambda xp, x, y: xp.cos(xp.sqrt(x * x + y * y) * 10.5),
}


def _accessory(c: Canvas, name: str, x: Array, y: Array, body: Array, top: Array) -> list[Any]:
    """Return (signed distance, colour) layers, each also outlined by the caller's rim."""
    xp = c.xp
    if name == "hat":
        brim = xp.maximum(xp.abs(x) - 0.62, xp.abs(y - top) - 0.09)
        crown = xp.maximum(xp.abs(x) - 0.38, xp.abs(y - top + 0.36) - 0.34)
        band = xp.maximum(xp.abs(x) - 0.38, xp.abs(y - top + 0.15) - 0.08)
        return [(xp.minimum(brim, crown), c.rgb(40, 36, 60)), (band, c.rgb(214, 60, 60))]
    if name == "crown":
        teeth = xp.abs((x + 0.18) % 0.36 - 0.18)
        spikes = xp.maximum(xp.abs(x) - 0.54, top - 0.56 + 2.0 * teeth - y)
        return [(xp.maximum(spikes, y - top - 0.1), c.rgb(255, 204, 30))]
    if name == "sunglasses":
        lens = xp.sqrt(((xp.abs(x) - 0.28) * 0.95) ** 2 + (y + 0.06) ** 2) - 0.25
        bridge = xp.maximum(xp.abs(x) - 0.68, xp.abs(y + 0.14) - 0.055)
        return [(xp.minimum(lens, bridge), c.rgb(14, 14, 18))]
    tail = xp.maximum(xp.abs(x - 0.3) - 0.15, xp.abs(y - 0.72) - 0.3)
    wrap = xp.maximum(xp.abs(y - 0.42) - 0.14, body - 0.05)
    cloth = xp.minimum(tail, wrap)
    bands = xp.maximum(cloth, -xp.sin((x + y) * 13.0) * 0.12)
    return [(cloth, c.rgb(250, 250, 250)), (bands, c.rgb(206, 30, 60))]


def _draw_subjects(
    c: Canvas, rows: list[int], subjects: list[Subject], borders: list[bool]
) -> Array:
    """Draw one subject on each row; return the masks (rows size size)."""
    xp = c.xp
    centre_x, centre_y, radius, top = (
        c.array(values)[:, None, None]
        for values in (
            [s.x for s in subjects],
            [s.y for s in subjects],
            [s.radius for s in subjects],
            [_TOPS[s.shape] for s in subjects],
        )
    )
    x, y = (c.x - centre_x) / radius + 0.0 * c.y, (c.y - centre_y) / radius + 0.0 * c.x
    body = 0.0 * x
    for shape, at in _groups([s.shape for s in subjects]):
        body[at] = _BODIES[shape](xp, x[at], y[at])
    whole = body + 0.0
    worn = []
    for name, at in _groups([s.accessory for s in subjects]):
        if name != "none":
            layers = _accessory(c, name, x[at], y[at], body[at], top[at])
            whole[at] = xp.minimum(whole[at], layers[0][0])
            worn.append((at, layers))

    white, dark = c.rgb(255, 255, 255), c.rgb(10, 10, 10)
    border = [i for i, wanted in enumerate(borders) if wanted]
    if border:
        around = c.edge((whole[border] - 0.28) * radius[border])
        c.paint([rows[i] for i in border], [(around, white)])
    fill = c.array([COLOURS[s.colour] for s in subjects])
    inside = c.edge((body + 0.0952) * radius)  # what is left is the rim
    c.paint(rows, [(c.edge(body * radius), 0.3 * fill), (inside, fill)])
    for pattern, at in _groups([s.pattern for s in subjects]):
        if pattern != "plain":
            ink = c.array([PATTERN_COLOURS[subjects[i].pattern_colour] for i in at])
            # Waves have a slope of about 8 at their zero.
            wave = _PATTERNS[pattern](xp, x[at], y[at]) / 8.0
            c.paint([rows[i] for i in at], [(inside[at] * c.edge(-wave * radius[at]), ink)])
    eye = xp.sqrt((xp.abs(x) - 0.27) ** 2 + (y + 0.06) ** 2)
    rings = ((0.24, dark), (0.18, white), (0.1, dark))
    c.paint(rows, [(c.edge((eye - r) * radius), ink) for r, ink in rings])
    for at, layers in worn:
        outline = (c.edge((layers[0][0] - 0.06) * radius[at]), dark)
        shown = [(c.edge(distance * radius[at]), colour) for distance, colour in layers]
        c.paint([rows[i] for i in at], [outline, *shown])
    return whole < 0


def _groups(names: list[str]) -> list[tuple[str, list[int]]]:
    """Return the positions of each name."""
    return [
        (name, [i for i, other in enumerate(names) if other == name])
        for name in dict.fromkeys(names)
    ]
