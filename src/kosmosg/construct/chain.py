"""A unit of pictures to the examples of its shard: what a worker does, again and again."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kosmosg.construct.config import ConstructConfig
from kosmosg.construct.example import (
    NO_ENTITIES,
    NOT_FOUND,
    ONE_MASK,
    Source,
    Steps,
    construct,
)
from kosmosg.construct.filters import Judge
from kosmosg.construct.folder import FolderUnit, TarUnit, sources_of
from kosmosg.construct.job import describe
from kosmosg.construct.journal import Journal
from kosmosg.construct.leaks import Leaks
from kosmosg.construct.models import load, load_filter
from kosmosg.construct.openimages import Licences
from kosmosg.construct.screen import passing, screened
from kosmosg.data.records import Example
from kosmosg.data.skips import Skips
from kosmosg.errors import DataError, KosmosGError

PictureUnit: TypeAlias = FolderUnit | TarUnit


@dataclass(frozen=True, kw_only=True)
class MakeWorker:
    """Loads the models of a configuration, in the process that will use them.

    Args:
        config: Of the run.
        source: The collection's name.
        provenance: Of every example: `models.provenance_of`, read once by whoever starts workers.
        licences: What is known of each picture by its id, if anything.
        leaks: Pictures of evaluation sets, which become no examples.
    """

    config: ConstructConfig
    source: str
    provenance: Mapping[str, str]
    licences: Licences | None = None
    leaks: Leaks | None = None

    def __call__(self) -> Callable[[PictureUnit, Skips, Journal], Iterator[Example]]:
        """Return the worker: from a unit to its examples."""
        steps, judge = load(self.config), load_filter(self.config)
        return lambda unit, skips, journal: screened(
            self._examples(unit, skips, journal, steps, judge),
            self.config.filters,
            self.leaks,
            skips,
        )

    def _examples(
        self,
        unit: PictureUnit,
        skips: Skips,
        journal: Journal,
        steps: Steps,
        judge: Judge | None,
    ) -> Iterator[Example]:
        sources = sources_of(
            unit, skips, journal, source=self.source, captions=self.config.captions
        )
        taken = passing(sources, self.config.filters, judge, skips)
        for batch in journal.batches(taken, self.config.batch_size):
            yield from examples(
                self._told(batch), steps, self.config, skips, provenance=self.provenance
            )

    def _told(self, batch: Sequence[Source]) -> Sequence[Source]:
        if self.licences is None:
            return batch
        known = self.licences.of(source.provenance["source_id"] for source in batch)
        return [
            dataclasses.replace(
                source,
                provenance={**source.provenance, **known.get(source.provenance["source_id"], {})},
            )
            for source in batch
        ]


def examples(
    batch: Sequence[Source],
    steps: Steps,
    config: ConstructConfig,
    skips: Skips,
    *,
    provenance: Mapping[str, str],
) -> Iterator[Example]:
    """Yield the examples of a batch of pictures, and count what is left out.

    A picture in which nothing was found, or one thing under two names, is left out by rule, not
    because it is bad.

    Raises:
        DataError: If too many were skipped.
    """
    for one in _tried(batch, steps, config, provenance):
        if isinstance(one, Example):
            missed = one.provenance.get(NOT_FOUND)
            for _ in missed.split(", ") if missed else ():
                skips.drop("entity not found in its picture")
            skips.keep()
            yield one
        elif one.reason == NO_ENTITIES:
            skips.drop(NO_ENTITIES)
        elif one.reason == ONE_MASK:
            skips.drop(ONE_MASK, str(one))
        else:
            skips.skip(one)


def _tried(
    batch: Sequence[Source], steps: Steps, config: ConstructConfig, provenance: Mapping[str, str]
) -> Sequence[Example | DataError]:
    """Return what becomes of each picture; where a batch fails as a whole, of each by itself."""
    try:
        return construct(
            batch,
            steps,
            size=config.size,
            threshold=config.segmenter.threshold,
            max_overlap=config.max_overlap,
            picture=config.picture,
            without_entities=config.without_entities,
            provenance=provenance,
        )
    except KosmosGError:
        raise  # of a model or a server, not of a picture: the next one would fare no better
    except Exception as error:  # noqa: BLE001 -- whatever a model raises
        if len(batch) > 1:
            return [_tried([source], steps, config, provenance)[0] for source in batch]
        what = f"picture {batch[0].key}: {describe(error)}"
        return [DataError(what, reason=type(error).__name__)]
