"""Which facts a subscriber applies together."""

from __future__ import annotations

import pytest

from shared.bus import Message
from shared.subscriptions import grouped
from tests.support.facts import LONG_AGO

TAKES_SEVERAL = {"many": True, "lots": True, "one": False}


@pytest.mark.parametrize(
    ("types", "position", "groups"),
    [
        ("many many many", 0, [[1, 2, 3]]),
        ("one one", 0, [[1], [2]]),
        ("many lots many", 0, [[1], [2], [3]]),
        ("unheard unheard", 0, [[1, 2]]),
        ("unheard many unheard many unheard", 0, [[1, 2, 3, 4, 5]]),
        ("unheard one unheard one", 0, [[1, 2, 3], [4]]),
        ("many unheard lots", 0, [[1, 2], [3]]),
        ("many many many", 2, [[1, 2], [3]]),
        ("many many many", 3, [[1, 2, 3]]),
        ("many - many", 0, [[1], [3]]),
        ("", 0, []),
    ],
)
def test_facts_that_follow_each_other_are_applied_together_where_one_handler_takes_them(
    types: str, position: int, groups: list[list[int]]
) -> None:
    messages = [_fact(nth, type_) for nth, type_ in enumerate(types.split(), 1) if type_ != "-"]

    assert [[each.position for each in group] for group in grouped(messages, TAKES_SEVERAL, position)] == groups


def _fact(position: int, type_: str) -> Message:
    return Message(
        id=str(position),
        type=type_,
        owner="experiment",
        what="created",
        resource_id="a",
        position=position,
        time=LONG_AGO,
        traceparent="",
        body=b"",
    )
