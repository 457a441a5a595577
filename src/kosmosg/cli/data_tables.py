"""What `kosmosg data` counts, as tables of text."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kosmosg.data.stats import Histogram, Stats
    from kosmosg.data.validate import Report

_BAR = 40


def of_report(report: "Report") -> Iterator[str]:
    """Yield the lines of the summary of `kosmosg data validate`."""
    yield f"{'kind':<10}  {'records':>9}  {'pictures':>9}  {'words':>11}"
    for kind in sorted(report.num_records):
        yield (
            f"{kind:<10}  {report.num_records[kind]:>9}  {report.num_pictures[kind]:>9}"
            f"  {report.num_words[kind]:>11}"
        )
    if report.num_wrong:
        yield f"{'wrong':<10}  {report.num_wrong:>9}"
    for reason, count in report.reasons.most_common():
        yield f"  {count:>9}  {reason}"
    for shard, count in sorted(report.img2dataset.items()):
        if count:
            yield (
                f"note: {shard} has {many(count, 'sample')} as img2dataset writes them (no json"
                " with a `kind`): each reads as a caption, picture and txt, else the json's caption"
            )
    if report.num_shards_empty:
        yield f"note: {many(report.num_shards_empty, 'shard')} without any file"
    if report.num_files_unused:
        yield f"note: {many(report.num_files_unused, 'file')} in samples that no record names"
    found = sum(report.reasons.values())
    yield (
        f"{many(report.num_shards, 'shard')}, {many(report.num_records.total(), 'good record')}: "
        + (many(found, "problem") if found else "nothing wrong")
    )


def of_stats(stats: "Stats") -> Iterator[str]:
    """Yield the lines of `kosmosg data stats`."""
    yield f"{'kind':<10}  {'records':>9}  {'MB':>9}  {'kB a record':>11}"
    for kind in sorted(stats.num_records):
        records, size = stats.num_records[kind], stats.num_bytes[kind]
        yield f"{kind:<10}  {records:>9}  {size / 1e6:>9.2f}  {size / 1e3 / records:>11.1f}"
    for reason, count in stats.left_out.most_common():
        yield f"{'left out':<10}  {count:>9}  {reason}"
    yield (
        f"{many(stats.num_shards, 'shard')}; {stats.num_keys_twice} keys came before;"
        f" {many(stats.num_masks, 'mask')}"
    )
    for title, histogram in (
        ("shorter side of pictures in pixels", stats.sides),
        ("longer side over shorter", stats.aspects),
        ("words in a text", stats.words),
        ("entities in an example", stats.entities_per_example),
        ("pictures in a document", stats.pictures_per_document),
    ):
        if histogram.num_values:
            yield ""
            yield from _bars(title, histogram)


def _bars(title: str, histogram: "Histogram") -> Iterator[str]:
    yield (
        f"{title}: {histogram.least:.4g} to {histogram.most:.4g}, mean {histogram.mean:.4g},"
        f" of {histogram.num_values}"
    )
    bounds = histogram.bounds
    whole = all(isinstance(bound, int) for bound in bounds)
    names = [f"below {bounds[0]}"]
    for low, high in pairwise(bounds):
        names.append(f"{low}" if whole and high == low + 1 else f"{low} to below {high}")
    names.append(f"{bounds[-1]} and more")
    filled = [index for index, count in enumerate(histogram.counts) if count]
    for index in range(filled[0], filled[-1] + 1):
        count = histogram.counts[index]
        length = round(_BAR * count / max(histogram.counts))
        bar = "#" * max(length, int(count > 0))
        yield f"  {names[index]:>18}  {count:>9}  {bar}".rstrip()


def many(count: int, what: str) -> str:
    """Return a count with its noun, in the plural if need be."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
