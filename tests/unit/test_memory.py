"""What is freed goes back to the machine, whatever glibc would like to keep."""

import sys
from pathlib import Path

import pytest
import torch

from kosmosg import memory

MIB = 2**20


def resident() -> int:
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmRSS:") + 1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blocks_of_a_weights_size_go_back() -> None:
    # Once it has freed a block of 30 MiB, glibc keeps smaller ones; `kept` is above them all.
    torch.ones(30 * MIB // 4)
    blocks = [torch.ones(4 * MIB // 4) for _ in range(100)]
    kept = torch.ones(4 * MIB // 4)
    before = resident()
    del blocks
    held = resident()
    memory.give_back()
    assert before - resident() > 350 * MIB
    assert held > resident() + 100 * MIB, "glibc gave it back by itself: is this still needed?"
    assert kept.sum() == len(kept)
