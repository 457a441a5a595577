"""`kosmosg data convert`: other people's formats to shards, stopped and begun again at will."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kosmosg.cli.data_tables import many
from kosmosg.cli.output import write_files
from kosmosg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from kosmosg.data.records import Record
    from kosmosg.data.skips import Skips

STATS = "stats.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides which record goes into which shard; a directory is made with one of it."""

    format: str
    per_shard: int = 1000
    pictures: Literal["jpg", "png"] = "jpg"
    limit: int | None = None
    documents: Literal["file", "paragraph", "line"] | None = None


def convert(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="img2dataset, parquet, captions-tsv, mmc4, obelics, instructpix2pix, folders, "
            "text, tsv-laion, tsv-laion-text, tsv-instructpix2pix, tsv-openimages; or auto, where "
            "the files tell. docs/data-formats.md shows what each looks like.",
            show_default=False,
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="A file or a directory.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Where shards go: FORMAT-000000.tar and so on, and stats.json.",
            show_default=False,
        ),
    ],
    per_shard: Annotated[int, typer.Option(min=1, help="Records in a shard.")] = 1000,
    pictures: Annotated[
        Literal["jpg", "png"],
        typer.Option(help="jpg (quality 95) for photographs; png keeps every pixel."),
    ] = "jpg",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many records.", show_default="all")
    ] = None,
    bad: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of bad records beyond which to stop."),
    ] = 0.1,
    documents: Annotated[
        Literal["file", "paragraph", "line"] | None,
        typer.Option(help="Of text: what is one document in a .txt.", show_default="file"),
    ] = None,
) -> None:
    """Convert other people's data to shards; print their directory.

    Bad records are left out, counted and named: on stderr and in stats.json. A stopped run goes on
    where it was when the same command is given again: shards that are there are kept.

    \b
    Examples:
      kosmosg data convert auto laion/ -o shards/laion
      kosmosg data convert folders my-edits/ -o shards/edits --pictures png
      kosmosg data convert text books/ -o shards/books --documents paragraph
    """  # noqa: D301 -- click's mark for text to be kept as it is
    from kosmosg.construct.output import hold
    from kosmosg.data.readers.formats import READERS, detect
    from kosmosg.data.skips import Skips

    name = detect(source) if format_name == "auto" else _known(format_name, [*READERS, "auto"])
    if documents is not None and name != "text":
        raise ConfigError(f"--documents is of text, not of {name}; leave it out")
    settings = Settings(
        format=name, per_shard=per_shard, pictures=pictures, limit=limit, documents=documents
    )
    check_apart(source, output)
    skips = Skips(limit=bad)
    options = {} if settings.documents is None else {"documents": settings.documents}
    records = islice(READERS[settings.format](source, skips=skips, **options), settings.limit)
    counts = {"shards": 0, "records": 0}
    is_done = False
    with hold(output):
        _begin(output, settings)
        try:
            _write(records, output, settings, skips, counts)
            is_done = True
        finally:
            _note(output, settings, skips, {**counts, "done": is_done})
            _tell(skips, counts)
    if not counts["records"]:
        left_out = ", ".join(f"{n} {why}" for why, n in (skips.reasons + skips.dropped).items())
        raise DataError(f"{source} gave no record; left out: {left_out or 'nothing'}")
    print(output)


def _write(
    records: "Iterator[Record]",
    output: Path,
    settings: Settings,
    skips: "Skips",
    counts: dict[str, int],
) -> None:
    """Write shards of so many records each; of one that is there, compare the keys."""
    from tqdm import tqdm

    from kosmosg.data.samples import to_bytes
    from kosmosg.data.tars import read_index, write_shard

    with tqdm(records, unit=" records", disable=None, file=sys.stderr, leave=False) as bar:
        records = iter(bar)
        while (first := next(records, None)) is not None:
            path = output / f"{settings.format}-{counts['shards']:06d}.tar"
            shard = _unique(first, islice(records, settings.per_shard - 1), skips)
            if path.is_file():
                keys = [record.key for record in shard]
                if keys != [sample.key for sample in read_index(path)]:
                    raise ConfigError(
                        f"{path} holds other records than this input gives for it; remove it, or"
                        " name another directory"
                    )
                written = len(keys)
            else:
                written = write_shard(
                    path,
                    (
                        (record.key, to_bytes(record, pictures=settings.pictures))
                        for record in shard
                    ),
                )
            counts["shards"] += 1
            counts["records"] += written
            _note(output, settings, skips, {**counts, "done": False})


def _unique(first: "Record", others: "Iterator[Record]", skips: "Skips") -> "Iterator[Record]":
    """Yield records, each key once: names are other people's, and may collide on purpose."""
    seen: set[str] = set()
    for record in chain([first], others):
        if record.key in seen:
            what = f"record {record.key} comes twice; rename one"
            skips.skip(DataError(what, reason="key twice"))
            continue
        seen.add(record.key)
        yield record


def _known(name: str, names: list[str]) -> str:
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"the formats are {', '.join(names)}"
    raise ConfigError(f"no format {name!r}; {remedy}")


def check_apart(source: Path, output: Path) -> None:
    """Refuse a directory below the input: our shards would be read as a part of it."""
    if output.is_file():
        raise ConfigError(f"{output} is a file; name a directory")
    inner, outer = output.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise ConfigError(f"{output} is inside {source}; write to a directory beside it")


def _begin(output: Path, settings: Settings) -> None:
    """Pass a directory that is empty, or was begun in the same way, or in which no shard came."""
    path = output / STATS
    if not path.is_file():
        return
    try:
        noted: Any = json.loads(path.read_bytes())
        before = {**noted["settings"]}
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ConfigError(f"{path} is not of this command; name another directory") from None
    wanted = json.loads(json.dumps(asdict(settings)))
    changed = {name: now for name, now in wanted.items() if before.get(name) != now}
    if changed and any(output.glob("*.tar")):
        then = ", ".join(f"{name}={before.get(name)}" for name in changed)
        now = ", ".join(f"{name}={value}" for name, value in changed.items())
        raise ConfigError(
            f"{output} was begun with {then}, not with {now}; give the same, or name another"
            " directory"
        )


def _note(output: Path, settings: Settings, skips: "Skips", counts: dict[str, Any]) -> None:
    noted = {
        **counts,
        "settings": asdict(settings),
        "skipped": dict(skips.reasons),
        "named": skips.named,
        "dropped": dict(skips.dropped),
    }
    data = json.dumps(noted, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    write_files({output / STATS: data + b"\n"})


def _tell(skips: "Skips", counts: dict[str, int]) -> None:
    print(
        f"{many(counts['records'], 'record')} in {many(counts['shards'], 'shard')}", file=sys.stderr
    )
    tell_left_out(skips.reasons, skips.dropped, skips.named)


def tell_left_out(
    skipped: Mapping[str, int], dropped: Mapping[str, int], named: Mapping[str, Sequence[str]]
) -> None:
    """Say how many records were left out and why, the commonest reason first."""
    from kosmosg.data.looking import plain

    for what, reasons in (("left out", skipped), ("dropped", dropped)):
        for reason, count in sorted(reasons.items(), key=lambda one: (-one[1], one[0])):
            example = f", such as {plain(named[reason][0])}" if reason in named else ""
            print(f"{what}: {count} {reason}{example}", file=sys.stderr)
