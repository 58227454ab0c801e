"""How many shards one of several replicas holds at most."""

from __future__ import annotations

import pytest

from shared.shards import fair_share


@pytest.mark.parametrize(
    ("members", "share"), [(1, 64), (2, 32), (3, 22), (4, 16), (5, 13), (33, 2), (63, 2), (64, 1), (65, 1), (1000, 1)]
)
def test_a_share_is_as_small_as_it_may_be_for_all_shards_to_be_held(members: int, share: int) -> None:
    assert fair_share(64, members) == share
    assert share * members >= 64 > (share - 1) * members
