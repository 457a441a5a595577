"""docs/scale.md's tables are what the simulator prints; its sums can be done by hand."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from kosmosg.train.arithmetic import need
from kosmosg.train.shapes import Record
from kosmosg.train.stage1_language import LanguageConfig
from toys.stages import toy_sizes, toys
from toys.training import train_config


@pytest.fixture
def scale(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "bench"))
    monkeypatch.delitem(sys.modules, "scale", raising=False)
    import scale  # pyright: ignore[reportMissingImports]

    return scale


def test_the_page_has_the_tables_that_are_printed(scale, repository: Path) -> None:
    page = (repository / "docs/scale.md").read_text(encoding="utf-8")
    assert "`python bench/scale.py`" in page
    for table in "\n".join(scale.tables()).split("\n\n"):
        assert table.strip() in page


def machine(scale, **changes: Any) -> Any:
    """Nodes of four: 1 GFLOP/s, copies in no time, a link of 1 MB/s, hops of a millisecond."""
    link = scale.Link(bandwidth=1e6, latency=1e-3)
    fields = {"rate": 1e9, "memory": 1e30, "adam_s": 0.0, "inside": link, "between": link}
    return scale.Machine(**fields | {"node": 4} | changes)


def test_a_ring_hands_on_all_but_its_own_part(scale) -> None:
    assert machine(scale).ring(8e6, 4) == pytest.approx(8 * 3 / 4 + 3 * 1e-3)
    assert machine(scale).ring(8e6, 1) == 0.0
    # Two nodes: four cards for each node's ring, and 6 hops within, 1 between.
    slow = machine(scale, between=scale.Link(bandwidth=0.1e6, latency=1.0))
    assert slow.ring(8e6, 8) == pytest.approx(8 * 7 / 8 / 0.4 + 6 * 1e-3 + 1.0)


def test_without_overlap_a_step_is_the_sum_of_its_parts(scale) -> None:
    """And with it no more than the sum, and no less than either part."""
    stage = LanguageConfig(trainable=("layers.*", "layer_norm.*", "embed_tokens.*"))
    config = train_config(global_batch_size=8, micro_batch=2, ema=None)
    record = Record(positions=10, pictures=0.0)
    counted = need(stage, config, toy_sizes(toys()), record=record, gpus=4)
    apart = scale.simulate(counted, config, machine(scale, overlaps=False), gpus=4)
    assert apart.products_s == pytest.approx(counted.flops / 4 / 1e9)
    told = counted.traffic
    bytes_s = (told.all_gather + told.reduce_scatter) * 3 / 4 / 1e6
    numbers = 8 * machine(scale).ring(8.0, 4)
    assert apart.messages_s == pytest.approx(bytes_s + told.messages * 3e-3 + numbers, rel=1e-6)
    assert apart.seconds == pytest.approx(apart.products_s + apart.messages_s)
    together = scale.simulate(counted, config, machine(scale), gpus=4)
    assert max(together.products_s, together.messages_s) <= together.seconds < apart.seconds
    # Adam's part is the share of one.
    slow = dataclasses.replace(machine(scale, overlaps=False), adam_s=1e-3)
    learns = sum(part.learns for part in counted.parts)
    adam = scale.simulate(counted, config, slow, gpus=4).seconds - apart.seconds
    assert adam == pytest.approx(learns / 4 * 1e-3)
