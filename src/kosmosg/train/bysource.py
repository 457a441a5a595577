"""The loss by source: whose each record is, what each source adds to the loss, and its mean.

A stage may return two terms of one value for each record of its batch: `metric_each_loss`, what
the record adds to the loss that is learned, and `metric_each_weight`, how many terms that is; 1
where it is left out. They are summed by source here, and change nothing that is learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EACH_LOSS, EACH_WEIGHT = "metric_each_loss", "metric_each_weight"
_LOSS, _WEIGHT = "metric_loss/", "metric_weight/"


@dataclass(frozen=True)
class Sources:
    """Of which source each record of a batch is.

    `names` are those of all sources, here or not, so that every batch has the same terms.
    """

    names: tuple[str, ...]
    of: tuple[int, ...]


def by_source(terms: Mapping[str, Tensor], sources: Sources | None) -> dict[str, Tensor]:
    """Return the terms, all of them sums: what each record adds is summed by source.

    Where there are no sources, or but one, there is nothing to tell apart.
    """
    sums = dict(terms)
    losses, weights = sums.pop(EACH_LOSS, None), sums.pop(EACH_WEIGHT, None)
    if losses is None or sources is None or len(sources.names) < 2:
        return sums
    if weights is None:
        weights = torch.ones_like(losses)
    of = torch.tensor(sources.of, device=losses.device)
    for kind, each in ((_LOSS, losses), (_WEIGHT, weights)):
        totals = _totals(each.detach().float(), of, len(sources.names))
        sums |= {f"{kind}{name}": t for name, t in zip(sources.names, totals, strict=True)}
    return sums


def _totals(each: Float[Tensor, " batch"], of: Tensor, count: int) -> list[Float[Tensor, ""]]:
    zeros = torch.zeros(count, device=each.device)
    return list(zeros.index_add_(0, of, each).unbind())


def named(means: Mapping[str, float]) -> dict[str, float]:
    """Return means, in which what a source adds stands as its own mean, `loss/SOURCE`.

    A source of which there was no record is left out.
    """
    told = {n: value for n, value in means.items() if not n.startswith((_LOSS, _WEIGHT))}
    for name, value in means.items():
        source = name.removeprefix(_LOSS)
        if source != name and means[_WEIGHT + source]:
            told[f"loss/{source}"] = value / means[_WEIGHT + source]
    return told


def means(entries: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each value over steps.

    Each step counts alike, in `loss` and in the loss of a source: those of the sources, weighed by
    their shares in the steps, add up to `loss`.
    """
    return named({n: sum(float(entry[n]) for entry in entries) / len(entries) for n in entries[-1]})
