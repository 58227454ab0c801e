"""Small workflows run for real, each to the end that upstream would give it."""

from __future__ import annotations

import pytest

from tests.contract.engine.ladder import LADDER, Rung
from tests.contract.engine.recorder import Recorder


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: f"{rung.number}-{rung.scenario.replace(' ', '-')}")
async def test_a_workflow_ends_as_upstream_would_end_it(rung: Rung, recorder: Recorder) -> None:
    run = await recorder.carry_out(rung.manifest)

    assert run.phases() == rung.nodes
    assert (run.phase, run.message) == (rung.phase, rung.message)
    for name, beginning in rung.messages.items():
        assert run.node(name)["message"].startswith(beginning)
    for name, value in rung.values.items():
        assert run.value(name) == value
    rung.look(run)
