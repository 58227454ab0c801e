"""Which shard a run belongs to. Controllers of every version must agree on it."""

from __future__ import annotations

import pytest

from services.run.engine.shards import ALL, shard_of


@pytest.mark.parametrize(
    ("run_id", "shard"),
    [("", 20), ("a run", 59), ("00000000-0000-4000-8000-000000000000", 46), ("läuft", 21)],
)
def test_a_run_stays_in_its_shard_for_ever(run_id: str, shard: int) -> None:
    assert shard_of(run_id) == shard


def test_every_shard_gets_runs() -> None:
    assert {shard_of(f"run {number}") for number in range(2_000)} == ALL
