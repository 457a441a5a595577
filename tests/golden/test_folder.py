"""The command over all that the released code recorded."""

import json

import pytest

from kosmosg.cli import main
from kosmosg.verify import Golden


def test_every_recorded_number_is_reproduced(
    shared: Golden, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["verify", str(shared.directory), "--json"])
    rows = json.loads(capfd.readouterr().out)
    assert [row for row in rows if not row["ok"]] == []
    assert code == 0
    assert len({row["case"] for row in rows}) == 48
    # Nothing passes for being compared loosely: latents by their size, pixels' sums, one bias.
    loose = {row["what"].split(":")[-1].split(" (")[0] for row in rows if row["tolerance"] > 1e-5}
    assert loose == {
        *("latents", " sum", " absolute sum"),
        *(what for what in loose if what.endswith("k_proj.bias afterwards")),
    }
