"""Where toy creatures stand: the canvas and the places painted on it, as layers of coverage."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from kosmosg.toyworld.scenes import BLANK

Array = Any  # numpy.ndarray or torch.Tensor
Layer = tuple[Array, Array]  # coverage (rows size size) and colour


class Canvas:
    """The pictures being drawn: float pixels 0..255, rows of a batch."""

    def __init__(self, count: int, size: int, xp: ModuleType, device: str | None) -> None:
        self.xp, self.size = xp, size
        self.on_device = {} if xp is np else {"device": device}
        self.pixels = xp.zeros((count, size, size, 3), dtype=xp.float32, **self.on_device)
        axis = self.array((np.arange(size) + 0.5) / size)
        self.x, self.y = axis[None, None, :], axis[None, :, None]

    def array(self, values: Any) -> Array:  # noqa: ANN401 - numbers in any nesting
        """Return the numbers as an array of the canvas's library and device."""
        values = np.asarray(values, dtype=np.float32)
        return values if self.xp is np else self.xp.as_tensor(values, **self.on_device)

    def paint(self, rows: list[int], layers: list[Layer]) -> None:
        """Put (coverage (rows size size), colour (3) or (rows 3)) layers over the pictures."""
        pixels = self.pixels[rows]
        for coverage, colour in layers:
            colour = colour[None] if colour.ndim == 1 else colour
            pixels = pixels + coverage[..., None] * (colour[:, None, None, :] - pixels)
        self.pixels[rows] = pixels

    def rgb(self, *colour: int) -> Array:
        """Return a colour, 0 to 255 each."""
        return self.array(colour)

    def edge(self, signed: Array) -> Array:
        """Anti-aliased coverage of {signed distance < 0}; distances in picture sides."""
        return self.xp.clip(0.5 - signed * self.size, 0, 1)


# Places: each returns layers; `r` (rows 24) holds the scene's own random numbers.


def _column(values: Array, index: int) -> Array:
    return values[:, index, None, None]


def _discs(c: Canvas, r: Array, count: int, radius: float, top: float, bottom: float) -> Array:
    coverage = 0.0 * (c.x + c.y) + 0.0 * _column(r, 0)
    for k in range(count):
        dx = c.x - _column(r, 2 * k)
        dy = c.y - (top + (bottom - top) * _column(r, 2 * k + 1))
        coverage = c.xp.maximum(coverage, c.edge(c.xp.sqrt(dx * dx + dy * dy) - radius))
    return coverage


def _everywhere(c: Canvas, r: Array) -> Array:
    return 1.0 + 0.0 * (c.x + c.y) + 0.0 * _column(r, 0)


def _ground(c: Canvas, r: Array, level: float, wave: float) -> Array:
    phase = 6.2832 * _column(r, 23)
    return c.edge(level + wave * c.xp.sin(5.0 * c.x + phase) - c.y + 0.0 * _column(r, 0))


def _beach(c: Canvas, r: Array) -> list[Layer]:
    sun = c.xp.sqrt((c.x - 0.15 - 0.7 * _column(r, 0)) ** 2 + (c.y - 0.14) ** 2) - 0.08
    return [
        (_everywhere(c, r), c.rgb(150, 214, 250)),
        (c.edge(sun), c.rgb(255, 244, 150)),
        (_ground(c, r, 0.42, 0.0), c.rgb(28, 130, 196)),
        (_ground(c, r, 0.62, 0.03), c.rgb(240, 215, 150)),
    ]


def _snow(c: Canvas, r: Array) -> list[Layer]:
    return [
        (_everywhere(c, r), c.rgb(172, 188, 208)),
        (_discs(c, r, 9, 0.018, 0.0, 0.55), c.rgb(255, 255, 255)),
        (_ground(c, r, 0.58, 0.04), c.rgb(244, 248, 255)),
    ]


def _forest(c: Canvas, r: Array) -> list[Layer]:
    layers = [
        (_everywhere(c, r), c.rgb(52, 96, 60)),
        (_ground(c, r, 0.74, 0.02), c.rgb(70, 62, 34)),
    ]
    for k in range(4):
        dx = c.xp.abs(c.x - (0.25 * k + 0.2 * _column(r, k)))
        trunk = c.xp.maximum(dx - 0.022, c.xp.abs(c.y - 0.6) - 0.2)
        # A fir: two stacked cones.
        cone = c.xp.minimum(
            c.xp.maximum(dx * 1.9 - (c.y - 0.04) * 0.55, c.y - 0.34),
            c.xp.maximum(dx * 1.9 - (c.y - 0.2) * 0.6, c.y - 0.55),
        )
        layers.append((c.edge(trunk), c.rgb(92, 58, 30)))
        layers.append((c.edge(cone * 0.5), c.rgb(16, 66, 30)))
    return layers


def _desert(c: Canvas, r: Array) -> list[Layer]:
    cx = 0.1 + 0.8 * _column(r, 0)
    dx = c.x - cx
    stem = c.xp.maximum(c.xp.abs(dx) - 0.025, c.xp.abs(c.y - 0.45) - 0.16)
    arm = c.xp.maximum(c.xp.abs(c.xp.abs(dx) - 0.07) - 0.018, c.xp.abs(c.y - 0.4) - 0.06)
    bar = c.xp.maximum(c.xp.abs(dx) - 0.08, c.xp.abs(c.y - 0.46) - 0.018)
    return [
        (_everywhere(c, r), c.rgb(252, 206, 140)),
        (_ground(c, r, 0.46, 0.06), c.rgb(226, 150, 84)),
        (c.edge(c.xp.minimum(c.xp.minimum(stem, arm), bar)), c.rgb(70, 120, 60)),
        (_ground(c, r, 0.66, 0.04), c.rgb(206, 122, 60)),
    ]


def _night(c: Canvas, r: Array) -> list[Layer]:
    mx = 0.15 + 0.7 * _column(r, 22)
    moon = c.xp.sqrt((c.x - mx) ** 2 + (c.y - 0.15) ** 2) - 0.09
    bite = c.xp.sqrt((c.x - mx - 0.05) ** 2 + (c.y - 0.12) ** 2) - 0.08
    return [
        (_everywhere(c, r), c.rgb(16, 20, 56)),
        (_discs(c, r, 10, 0.012, 0.0, 0.6), c.rgb(255, 250, 210)),
        (c.edge(c.xp.maximum(moon, -bite)), c.rgb(250, 240, 190)),
        (_ground(c, r, 0.74, 0.03), c.rgb(34, 36, 48)),
    ]


def _city(c: Canvas, r: Array) -> list[Layer]:
    layers = [(_everywhere(c, r), c.rgb(190, 200, 214))]
    for k in range(5):
        left, top = 0.2 * k + 0.02 * _column(r, k), 0.12 + 0.32 * _column(r, k + 5)
        house = c.xp.maximum(c.xp.abs(c.x - left - 0.09) - 0.085, top - c.y)
        pane = c.xp.maximum(
            c.xp.abs((c.x - left) % 0.085 - 0.045) - 0.02,
            c.xp.abs((c.y - top) % 0.11 - 0.06) - 0.026,
        )
        shade = 84 + 14 * (k % 3)
        layers.append((c.edge(house), c.rgb(shade, shade + 4, shade + 18)))
        layers.append((c.edge(c.xp.maximum(house, pane)), c.rgb(250, 226, 130)))
    layers.append((_ground(c, r, 0.76, 0.0), c.rgb(66, 66, 72)))
    return layers


def _underwater(c: Canvas, r: Array) -> list[Layer]:
    outer, inner = (_discs(c, r, 7, radius, 0.02, 0.7) for radius in (0.032, 0.017))
    sway = 0.02 * c.xp.sin(18 * c.y + 6.2832 * _column(r, 20))
    weed = 0.0 * (c.x + c.y) + 1.0 + 0.0 * _column(r, 0)
    for k in range(4):
        stem = c.xp.abs(c.x - sway - 0.1 - 0.26 * k - 0.06 * _column(r, 16 + k)) - 0.014
        weed = c.xp.minimum(weed, c.xp.maximum(stem, 0.62 - c.y))
    return [
        (_everywhere(c, r), c.rgb(20, 112, 150)),
        (c.xp.clip(0.55 - 0.7 * c.y, 0, 1) + 0.0 * _column(r, 0) + 0.0 * c.x, c.rgb(70, 190, 210)),
        (outer - inner, c.rgb(210, 245, 250)),
        (c.edge(weed), c.rgb(20, 96, 66)),
        (_ground(c, r, 0.88, 0.02), c.rgb(150, 140, 104)),
    ]


def _meadow(c: Canvas, r: Array) -> list[Layer]:
    cloud = c.xp.sqrt(((c.x - 0.1 - 0.8 * _column(r, 20)) * 0.5) ** 2 + (c.y - 0.13) ** 2) - 0.06
    return [
        (_everywhere(c, r), c.rgb(140, 200, 250)),
        (c.edge(cloud), c.rgb(250, 252, 255)),
        (_ground(c, r, 0.45, 0.04), c.rgb(112, 196, 74)),
        (_discs(c, r, 6, 0.026, 0.55, 0.98), c.rgb(255, 255, 255)),
        (_discs(c, r, 6, 0.012, 0.55, 0.98), c.rgb(250, 190, 40)),
    ]


def _blank(c: Canvas, r: Array) -> list[Layer]:
    return [(_everywhere(c, r), c.rgb(255, 255, 255))]


BACKGROUNDS: dict[str, Callable[[Canvas, Array], list[Layer]]] = {
    "beach": _beach,
    "snow": _snow,
    "forest": _forest,
    "desert": _desert,
    "night": _night,
    "city": _city,
    "underwater": _underwater,
    "meadow": _meadow,
    BLANK: _blank,
}


def frame(c: Canvas, count: int) -> list[Layer]:
    """Return the layers of a brown frame with a pale edge."""
    depth = 0.5 - c.xp.maximum(c.xp.abs(c.x - 0.5) + 0.0 * c.y, c.xp.abs(c.y - 0.5) + 0.0 * c.x)
    depth = c.xp.concat([depth] * count)
    return [
        (c.edge(depth - 0.075), c.rgb(250, 244, 226)),
        (c.edge(depth - 0.05), c.rgb(128, 74, 36)),
    ]
