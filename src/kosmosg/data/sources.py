"""What a stage trains from: tars by name and weight, opened as one stream."""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic_core import core_schema

from kosmosg.data.compose import Drop, compose_at
from kosmosg.data.foreign import record_of
from kosmosg.data.mixture import Mixture, Stream, seed_of, source_of, sources_of
from kosmosg.data.records import Caption, Document, Edit, Example, Record
from kosmosg.data.rows import PackedRows, pack_shards
from kosmosg.data.shards import Shards
from kosmosg.data.skips import Skips
from kosmosg.data.tars import tars_in
from kosmosg.errors import ConfigError, DataError
from kosmosg.tokenizer import Tokenizer

# The name of a source that has none, as only its path was given.
PLAIN = "data"
StageName = Literal["language", "align", "align_pictures", "instruct"]

_KINDS: Mapping[StageName, tuple[type, ...]] = {
    "language": (Document,),
    "align": (Caption,),
    "align_pictures": (Example, Edit, Caption),
    "instruct": (Example, Edit, Caption),
}
_COMPOSED: Sequence[StageName] = ("align_pictures", "instruct")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Tars that belong together.

    `paths` are tars, folders of them, or patterns such as `data/*.tar`, of our records or as
    img2dataset writes them; `weight` is how many records come from here for each that a source of
    weight 1 gives.
    """

    paths: str | tuple[str, ...]
    weight: int = 1

    def each_path(self) -> tuple[str, ...]:
        """Return the paths, also where there is but one."""
        return (self.paths,) if isinstance(self.paths, str) else self.paths


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a stage trains from.

    `sources` go by a name of your own; in a configuration, a path, or a list of paths, is short for
    one source of them. So do those of `validation`, which must be other tars. `order`, `window` and
    `seed` say how each is shuffled, as `Shards` describes. `workers` are processes that read,
    decode and collate; 0 is a thread. More than the share `max_skipped` of bad records ends the
    run. `drop` is for stage 3: whether one coin drops the words of all entities of a sample, as
    released, or one each. `row` is for stage 1: the positions of a packed row; None is a record a
    row. `row_cache` is the folder that keeps how long records are, which are else read once more
    before each run.
    """

    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    validation: Mapping[str, SourceConfig] = field(default_factory=dict)
    seed: int = 0
    order: Literal["shuffled", "stored"] = "shuffled"
    window: int = 8
    workers: int = 0
    max_skipped: float = 0.1
    drop: Drop = "sample"
    row: int | None = None
    row_cache: str | None = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:  # noqa: ANN401 -- as pydantic calls it
        """Let a configuration name a path instead."""
        return core_schema.no_info_before_validator_function(_of_paths, handler(source))


def _of_paths(given: Any) -> Any:  # noqa: ANN401 -- what a configuration says, not yet checked
    if isinstance(given, str) or (isinstance(given, list) and given):
        return {"sources": {PLAIN: {"paths": given}}}
    return given


@dataclass(frozen=True, kw_only=True)
class RowSizes:
    """By what a row's positions are counted."""

    tokenizer: Tokenizer
    num_latents: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A stream, and what it counts in the process that reads it."""

    stream: Stream
    skips: Skips

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of the stream's sources."""
        return sources_of(self.stream)

    def source(self, number: int) -> str:
        """Return the source of record `number`."""
        return source_of(self.stream, number)

    def batch(self, step: int, size: int) -> Sequence[Any]:
        """Return records number `step * size` to `(step + 1) * size - 1`."""
        return self.stream.batch(step, size)


def open_stream(config: DataConfig, *, stage: StageName, sizes: RowSizes | None = None) -> Opened:
    """Return the blend of the sources, as a stage takes it.

    Stage 3's records are composed. Stage 2's pictures are not decoded. Records of a kind that the
    stage cannot use are left out like damaged ones. Stage 1's are packed where `config.row` says
    so, which needs `sizes`; captions then count as documents of a picture and its words.

    Raises:
        ConfigError: If there are no sources, a path is wrong, or a number is out of its range.
        DataError: If the tars are so damaged that more than `max_skipped` is left out.

    Source:
        Paper section 3.2: stage 3 mixes constructed, edits and captions 2:2:1.
    """
    _check(config)
    if config.row is not None and (stage != "language" or sizes is None):
        raise ConfigError(f"data.row is {config.row}, and stage {stage!r} has no rows; remove it")
    packed_kinds = () if config.row is None else (Caption,)
    skips = Skips(limit=config.max_skipped)
    streams: dict[str, Stream] = {}
    for name, source in config.sources.items():
        seed = seed_of(config.seed, name)
        composed = partial(compose_at, seed=seed, drop=config.drop, skips=skips)
        shards = Shards(
            find_tars(source.paths, name=name),
            decode=partial(_decode, _KINDS[stage] + packed_kinds, stage),
            finish=composed if stage in _COMPOSED else None,
            seed=seed,
            skips=skips,
            window=config.window,
            order=config.order,
        )
        streams[name] = shards
        if config.row is not None:
            assert sizes is not None  # checked above
            streams[name] = _packed(shards, config.row, config, sizes, seed=seed, skips=skips)
    weights = {name: source.weight for name, source in config.sources.items()}
    return Opened(stream=Mixture(streams, weights, seed=config.seed), skips=skips)


def open_validation(
    config: DataConfig, *, stage: StageName, sizes: RowSizes | None = None
) -> Opened | None:
    """Return the blend of the held-out sources, in their stored order; None if there are none.

    Raises:
        ConfigError: As `open_stream`, or if a tar is trained from as well.
        DataError: As `open_stream`.
    """
    if not config.validation:
        return None
    trained = {tar.resolve(): name for name, tar in _tars(config.sources)}
    for name, tar in _tars(config.validation):
        if (other := trained.get(tar.resolve())) is not None:
            raise ConfigError(
                f"{tar} is in data.validation.{name} and in data.sources.{other}; a figure on"
                " records that are trained on says nothing: leave it out of one"
            )
    held_out = replace(config, sources=config.validation, order="stored")
    return open_stream(held_out, stage=stage, sizes=sizes)


def _tars(sources: Mapping[str, SourceConfig]) -> list[tuple[str, Path]]:
    return [(name, tar) for name, own in sources.items() for tar in find_tars(own.paths, name=name)]


def _packed(
    shards: Shards, row: int, config: DataConfig, sizes: RowSizes, *, seed: int, skips: Skips
) -> PackedRows:
    packed = pack_shards(
        shards,
        sizes.tokenizer,
        num_latents=sizes.num_latents,
        skips=skips,
        seq_len=row,
        cache_dir=None if config.row_cache is None else Path(config.row_cache).expanduser(),
    )
    drawn = seed if config.order == "shuffled" else None
    return PackedRows(shards, packed, seed=drawn, skips=skips, window=config.window)


def find_tars(paths: str | Sequence[str], *, name: str) -> list[Path]:
    """Return the tars of a source: files in the order given, those of folders and patterns sorted.

    Raises:
        ConfigError: If one is missing, a folder or pattern has none, or a tar comes twice.
    """
    found: list[Path] = []
    for given in [paths] if isinstance(paths, str) else paths:
        path = Path(given).expanduser()
        if path.is_dir():
            tars = tars_in(path)
            remedy = "the folder has no *.tar; name the folder that holds the shards"
        elif path.exists() or not glob.has_magic(given):
            tars, remedy = [path], ""
        else:
            tars = sorted(map(Path, glob.glob(str(path))))
            remedy = "nothing is called so; correct the pattern"
        if not tars or not tars[0].exists():
            remedy = remedy or "there is no such file or folder; correct the path"
            raise ConfigError(f"data source {name!r}: {given}: {remedy}")
        found += tars
    if not found:
        raise ConfigError(f"data source {name!r} has no paths; name its tars or their folder")
    path, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"data source {name!r} has {path} {times} times; use its weight instead")
    return found


def _check(config: DataConfig) -> None:
    if not config.sources:
        raise ConfigError("data.sources is empty; name tars: data.sources.NAME.paths=FOLDER")
    if not 0 <= config.max_skipped <= 1:
        raise ConfigError(f"data.max_skipped = {config.max_skipped}; it is a share, 0 to 1")
    if config.row is not None and config.row < 8:
        raise ConfigError(f"data.row = {config.row}; a row has at least 8 positions")
    if config.workers < 0:
        raise ConfigError(f"data.workers = {config.workers}; it is 0 (a thread) or more processes")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"data.seed = {config.seed}; it must lie between 0 and 2**63 - 1")


def _decode(
    kinds: tuple[type, ...], stage: StageName, key: str, files: Mapping[str, bytes]
) -> Record:
    pictures = "later" if stage == "align" else "read"
    record = record_of(key, files, pictures=pictures)
    if not isinstance(record, kinds):
        wanted = " or ".join(kind.__name__.lower() for kind in kinds)
        raise DataError(
            f"record {key} is a {type(record).__name__.lower()}; stage {stage!r} takes {wanted}",
            reason="wrong kind",
        )
    return record
