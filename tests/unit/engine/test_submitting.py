"""How fast workflows go to the cluster, in which order, and what those hear who wait."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from services.run.engine.argo.submitting import Queue, Submitting, part_of
from services.run.engine.shards import ALL, SHARDS


def queue(*, rate: float = 1, burst: int = 1, most: int = 0, shards: Collection[int] = ALL) -> Queue:
    return Queue(Submitting(rate_per_second=rate, burst=burst, in_flight=most), now=0, shards=shards)


def taken(waiting: Queue, now: float) -> list[str]:
    names = []
    while (name := waiting.take(now)) is not None:
        names.append(name)
    return names


def put(waiting: Queue, *names: str, now: float = 0, is_urgent: bool = False) -> None:
    """The first letter of a name is its group."""
    for name in names:
        waiting.put(name, name[0], now, is_urgent=is_urgent)


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    waiting = queue(rate=2, burst=3)
    put(waiting, *(f"a{number}" for number in range(10)))

    assert taken(waiting, now=0) == ["a0", "a1", "a2"]
    assert waiting.next_in(now=0) == 0.5
    assert taken(waiting, now=0.4) == []
    assert taken(waiting, now=0.5) == ["a3"]
    assert taken(waiting, now=1.5) == ["a4", "a5"]
    assert taken(waiting, now=100) == ["a6", "a7", "a8"], "what was not used is not saved beyond the burst"
    assert len(waiting) == 1


def test_groups_take_turns() -> None:
    waiting = queue(burst=100)
    put(waiting, "a1", "a2", "a3", "b1", "b2", "c1")

    assert taken(waiting, now=0) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_no_more_are_open_than_the_limit_and_an_end_makes_room() -> None:
    waiting = queue(burst=100, most=2)
    put(waiting, "a1", "a2", "a3", "a4")

    assert taken(waiting, now=0) == ["a1", "a2"]
    assert waiting.next_in(now=0) is None
    waiting.ended("a1")
    assert waiting.next_in(now=0) == 0
    assert taken(waiting, now=0) == ["a3"]


def test_what_is_there_already_counts_and_who_was_told_of_twice_counts_once() -> None:
    waiting = queue(burst=100, most=3)
    put(waiting, "a1", "a2", "a3")
    for _ in range(2):
        waiting.opened("z1")
        waiting.opened("a1")

    assert taken(waiting, now=0) == ["a2"]
    assert "a1" not in waiting


def test_who_has_more_shards_has_more_room() -> None:
    waiting = queue(burst=100, most=4, shards=range(32))
    put(waiting, "a1", "a2", "a3", "a4", "a5")

    assert taken(waiting, now=0) == ["a1", "a2"]
    waiting.take_part_of(ALL)
    assert taken(waiting, now=0) == ["a3", "a4"]


@pytest.mark.parametrize("in_flight", [3, 5, 10, 64, 100, 1000])
@pytest.mark.parametrize("controllers", [1, 2, 3, 5])
def test_all_controllers_together_have_no_more_room_than_there_is(in_flight: int, controllers: int) -> None:
    share = -(-SHARDS // controllers)
    parts = [part_of(in_flight, sorted(ALL)[first : first + share]) for first in range(0, SHARDS, share)]

    assert sum(parts) <= max(in_flight, controllers)
    assert max(parts) <= in_flight * share / SHARDS + 1


def test_everybody_can_go_on_and_who_has_no_shard_needs_not() -> None:
    assert [part_of(1, shards) for shards in (range(32), range(32, 64), ())] == [1, 1, 0]


def test_the_urgent_come_first_and_wait_for_the_rate_alone() -> None:
    waiting = queue(rate=1, burst=1, most=1)
    waiting.opened("z1")
    put(waiting, "a1")
    put(waiting, "b1", "b2", is_urgent=True)

    assert taken(waiting, now=0) == ["b1"]
    assert waiting.next_in(now=0) == 1
    assert taken(waiting, now=1) == ["b2"]
    assert taken(waiting, now=2) == []


def test_who_leaves_the_queue_is_not_taken() -> None:
    waiting = queue(burst=100)
    put(waiting, "a1", "a2")
    put(waiting, "b1", is_urgent=True)
    for name in ("a1", "b1", "nobody"):
        waiting.leave(name)

    assert taken(waiting, now=0) == ["a2"]
    assert len(waiting) == 0


def test_who_is_put_twice_waits_once_and_keeps_its_place() -> None:
    waiting = queue(burst=100)
    put(waiting, "a1", "a2", "a1")

    assert taken(waiting, now=0) == ["a1", "a2"]


def test_who_waits_hears_its_position_and_why() -> None:
    waiting = queue(most=1)
    waiting.opened("z1")
    put(waiting, "a1", "a2", "b1")

    assert waiting.news(now=0.5) == [], "a moment is not told"
    limit = "in the queue: the limit of concurrent runs is 1 (HEADRACE_MOST_RUNS)"
    assert waiting.news(now=1) == [
        ("a1", f"position 1 {limit}"),
        ("b1", f"position 2 {limit}"),
        ("a2", f"position 3 {limit}"),
    ]
    assert waiting.news(now=10) == [], "nothing has changed"
    waiting.leave("a1")
    assert waiting.news(now=20) == [("a2", f"position 1 {limit}")]


def test_the_reason_is_what_holds_it_back() -> None:
    waiting = queue(rate=0.5, burst=1, most=10, shards=range(16))
    put(waiting, "a1", "a2")
    waiting.take(now=0)

    assert waiting.news(now=1) == [
        ("a2", "position 1 in the queue: 0.5 runs a second are started (HEADRACE_SUBMISSIONS_PER_SECOND)")
    ]
    assert waiting.news(now=5, trouble="nobody answers") == [("a2", "position 1 in the queue: nobody answers")]
    for name in ("z1", "z2"):
        waiting.opened(name)
    words = "the limit of concurrent runs is 10, of which this controller has 2 (HEADRACE_MOST_RUNS)"
    assert waiting.news(now=9) == [("a2", f"position 1 in the queue: {words}")]


def test_only_a_few_are_told_at_a_time_and_nobody_is_forgotten() -> None:
    waiting = queue(most=1)
    waiting.opened("z1")
    put(waiting, *(f"a{number:02}" for number in range(25)))

    told = [[name for name, _ in waiting.news(now=now)] for now in (1, 2, 3)]

    assert [len(names) for names in told] == [10, 10, 5]
    assert len({name for names in told for name in names}) == 25
