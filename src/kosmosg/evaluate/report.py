"""A result as a page to look at: one HTML file, nothing fetched, all text escaped."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from kosmosg.evaluate.metrics import Score
from kosmosg.evaluate.result import Result, Row
from kosmosg.images import open_image

SIDE = 160
NUM_ENDS = 8  # pictures shown of the best and of the worst

# Table 1 of the paper, and what the same rows were measured at by others; of two subjects, UNO's.
PUBLISHED: Mapping[str, Sequence[tuple[str, Mapping[str, float]]]] = {
    "dreambench": (
        ("real pictures (DreamBooth)", {"dino": 0.774, "clip_i": 0.885}),
        ("Kosmos-G (paper)", {"dino": 0.694, "clip_i": 0.847, "clip_t": 0.287}),
        ("SuTI (paper)", {"dino": 0.741, "clip_i": 0.819, "clip_t": 0.304}),
        ("DreamBooth, SD 1.5 (paper)", {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305}),
        ("BLIP-Diffusion, zero-shot (paper)", {"dino": 0.594, "clip_i": 0.779, "clip_t": 0.300}),
        ("Re-Imagen (paper)", {"dino": 0.600, "clip_i": 0.740, "clip_t": 0.270}),
        ("Textual Inversion (paper)", {"dino": 0.569, "clip_i": 0.780, "clip_t": 0.255}),
    ),
    "uno-multi": (
        ("UNO (its paper)", {"dino": 0.542, "clip_i": 0.733, "clip_t": 0.322}),
        ("MS-Diffusion (UNO's paper)", {"dino": 0.525, "clip_i": 0.726, "clip_t": 0.319}),
        ("OmniGen (UNO's paper)", {"dino": 0.511, "clip_i": 0.722, "clip_t": 0.331}),
        ("MIP-Adapter (UNO's paper)", {"dino": 0.482, "clip_i": 0.726, "clip_t": 0.311}),
    ),
    "coco": (
        ("Kosmos-G (paper)", {"fid": 10.99}),
        ("Stable Diffusion 1.5 (paper)", {"fid": 9.34}),
        ("GILL (paper)", {"fid": 12.20}),
        ("Emu (paper)", {"fid": 11.66}),
    ),
}
_SIGNS = {
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "fid": "FID",
    "near_copies": "near copies",
}


def page(result: Result, folder: Path) -> Iterator[str]:
    """Yield the page of a result in pieces.

    Args:
        result: To show.
        folder: Of its pictures.

    Raises:
        PromptError: If a picture that is shown is missing or damaged.
    """
    style = (files("kosmosg.data") / "preview.css").read_text(encoding="utf-8")
    own = (files("kosmosg.evaluate") / "report.css").read_text(encoding="utf-8")
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(result.benchmark)}</title><style>{style}{own}</style></head><body>\n"
        f"<header><h1>{_text(result.benchmark)}, {_text(result.protocol.get('name', ''))}:"
        f" {result.num_pictures} pictures</h1></header>\n"
    )
    for note in result.notes:
        yield f'<p class="wrong">{_text(note)}</p>\n'
    yield _card("Beside what is published", _published(result))
    yield _card("By subject", _grouped(result.rows, lambda row: row.subject))
    yield _card("By prompt", _grouped(result.rows, lambda row: row.template))
    for name in ("dino", "clip_t"):
        scored = sorted((row for row in result.rows if name in row.scores), key=_key(name))
        if scored:
            yield _card(
                f"Highest {_SIGNS[name]}", _shown(scored[: -NUM_ENDS - 1 : -1], name, folder)
            )
            yield _card(f"Lowest {_SIGNS[name]}", _shown(scored[:NUM_ENDS], name, folder))
    has_scores = any(row.scores for row in result.rows)
    title = "A picture of each prompt" if has_scores else f"The first {len(result.rows)} pictures"
    yield _card(title, "".join(_sheet(result.rows, folder)))
    yield _card("How", _how(result))
    yield "</body></html>\n"


def _published(result: Result) -> str:
    rows = [("this model", result.scores), ("real pictures, here", result.oracle)]
    columns = [name for name in result.scores]
    lines = [
        _line(name, [_interval(scores[column]) if column in scores else "" for column in columns])
        for name, scores in rows
        if scores
    ]
    known = str(result.protocol.get("name"))
    for name, numbers in PUBLISHED.get(known, PUBLISHED.get(result.benchmark, ())):
        cells = [f"{numbers[column]:g}" if column in numbers else "" for column in columns]
        lines.append(_line(name, cells))
    words = "Published numbers were measured by their authors' protocols, encoders and pictures."
    return _table(columns, lines) + f"<p>{words}</p>"


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> str:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    columns = list(rows[0].scores) if rows else []
    lines = []
    for name, members in sorted(groups.items()):
        means = [sum(row.scores[column] for row in members) / len(members) for column in columns]
        lines.append(_line(f"{name} ({len(members)})", [f"{mean:.3f}" for mean in means]))
    return _table(columns, lines) if columns else ""


def _shown(rows: Sequence[Row], name: str, folder: Path) -> str:
    return "".join(
        f"<figure>{_picture(folder / f'{row.name}.png')}"
        f"<figcaption>{row.scores[name]:.3f} {_text(row.subject)}<br>{_text(row.text)}</figcaption>"
        "</figure>"
        for row in rows
    )


def _sheet(rows: Sequence[Row], folder: Path) -> Iterator[str]:
    for row in rows:
        if row.name.endswith("-0"):
            yield (
                f"<figure>{_picture(folder / f'{row.name}.png')}"
                f"<figcaption>{_text(row.text)}</figcaption></figure>"
            )


def _how(result: Result) -> str:
    seen = {
        f"{name}, encoder": f"{one.name}: {one.view}; {one.sha256}"
        for name, one in result.encoders.items()
    }
    model = {f"weights of {name}": value for name, value in result.model.items()}
    sums = {f"{name}, sha256": value for name, value in result.data.items()}
    facts = {**result.protocol, **result.drawing, **seen, **sums, **model, **result.versions}
    lines = [_line(str(name), [_text(str(value))]) for name, value in facts.items()]
    return _table([""], lines)


def _key(name: str) -> Callable[[Row], float]:
    return lambda row: row.scores[name]


def _interval(score: Score) -> str:
    ends = f" <small>{score.low:.3f} to {score.high:.3f}</small>" if score.low != score.high else ""
    return f"{score.mean:.3f}{ends}"


def _table(columns: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{_text(_SIGNS.get(name, name))}</th>' for name in columns)
    return f'<div class="wide"><table><tr><td></td>{head}</tr>{"".join(lines)}</table></div>'


def _line(name: str, cells: Sequence[str]) -> str:
    return (
        f'<tr><th scope="row">{_text(name)}</th>{"".join(f"<td>{one}</td>" for one in cells)}</tr>'
    )


def _card(title: str, body: str) -> str:
    if not body:
        return ""
    return f'<article><h2>{_text(title)}</h2><div class="shown">{body}</div></article>\n'


def _picture(path: Path) -> str:
    image = open_image(path)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _text(text: str) -> str:
    return escape(text)
