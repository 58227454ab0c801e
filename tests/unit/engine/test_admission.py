"""Who gets room next, and what those are told who wait for it."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.run.engine.embedded.admission import Admission, Ticket


class Crowd:
    """Those who want room, by the names that a test gives them: `a1` is of the group `a`."""

    def __init__(self, most: int) -> None:
        self.admission = Admission(most)
        self._places: dict[str, tuple[Ticket, contextlib.ExitStack]] = {}

    def come(self, *names: str, is_urgent: bool = False) -> None:
        for name in names:
            stack = contextlib.ExitStack()
            ticket = stack.enter_context(self.admission.ticket(name[0], is_urgent=is_urgent))
            self._places[name] = ticket, stack

    def go(self, *names: str) -> None:
        for name in names:
            self._places.pop(name)[1].close()

    def ticket(self, name: str) -> Ticket:
        return self._places[name][0]

    def admitted(self) -> set[str]:
        return {name for name, (ticket, _) in self._places.items() if ticket.is_admitted}

    def waiting(self) -> set[str]:
        return self._places.keys() - self.admitted()

    def told(self, now: float) -> dict[str, int | None]:
        """Who is told where they stand at this time."""
        self.admission.tell_positions(now)
        return {name: ticket.position for name, (ticket, _) in self._places.items() if ticket.told_at == now}


def in_order(crowd: Crowd) -> Iterator[str]:
    """Those who wait, in the order in which they get room as one after another leaves."""
    while crowd.waiting():
        before = crowd.admitted()
        crowd.go(min(before))
        (name,) = crowd.admitted() - before
        yield name


def test_there_is_room_for_so_many_and_no_more() -> None:
    crowd = Crowd(2)
    crowd.come("a1", "a2", "a3")

    assert crowd.admitted() == {"a1", "a2"}


def test_in_a_group_first_come_is_first_served() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "a3", "a4")

    assert list(in_order(crowd)) == ["a2", "a3", "a4"]


def test_groups_take_turns() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "a3", "a4", "b1", "b2", "c1")

    assert list(in_order(crowd)) == ["a2", "b1", "c1", "a3", "b2", "a4"]


def test_who_comes_late_into_an_empty_queue_does_not_wait_for_all_that_others_asked_for_before() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "a3", "a4")
    crowd.go("a1")
    crowd.come("b1")

    assert list(in_order(crowd)) == ["a3", "b1", "a4"]


def test_who_gives_up_waiting_is_passed_over() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "b1", "a3")
    crowd.go("a2", "b1")

    assert list(in_order(crowd)) == ["a3"]


def test_the_urgent_are_let_in_without_room_and_count() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2")
    crowd.come("b1", is_urgent=True)
    assert crowd.admitted() == {"a1", "b1"}

    crowd.go("b1")
    assert crowd.admitted() == {"a1"}
    crowd.go("a1")
    assert crowd.admitted() == {"a2"}


def test_who_becomes_urgent_in_the_queue_is_let_in_at_once() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "a3")
    crowd.admission.urge(crowd.ticket("a3"))
    crowd.admission.urge(crowd.ticket("a3"))
    assert crowd.admitted() == {"a1", "a3"}

    crowd.go("a3")
    assert crowd.admitted() == {"a1"}


async def test_a_place_tells_its_positions_until_it_is_admitted() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "a3")
    heard: asyncio.Queue[int] = asyncio.Queue()

    async def listen() -> None:
        async for position in crowd.ticket("a3").positions():
            await heard.put(position)

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(20):
        crowd.admission.tell_positions(1e9)
        assert await heard.get() == 2
        crowd.go("a1")
        crowd.admission.tell_positions(2e9)
        assert await heard.get() == 1
        crowd.go("a2")
        await listening


@pytest.mark.parametrize("groups", ["aaaa", "abab", "aabbbcc", "cbaabcabc"])
def test_positions_are_the_order_in_which_room_is_given(groups: str) -> None:
    crowd = Crowd(1)
    crowd.come("a0", *(f"{group}{number}" for number, group in enumerate(groups, 1)))

    told = crowd.told(1e9)

    assert sorted(told, key=lambda name: told[name] or 0) == list(in_order(crowd))


def test_nobody_is_told_who_waits_for_a_moment_only() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2")
    came = crowd.ticket("a2").came_at

    assert crowd.told(came + 0.5) == {}
    assert crowd.told(came + 1.5) == {"a2": 1}


def test_nobody_is_told_twice_what_has_not_changed() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2")

    assert crowd.told(1e9) == {"a2": 1}
    assert crowd.told(1e9 + 1000) == {}


def test_who_was_told_is_left_in_peace_for_a_while() -> None:
    crowd = Crowd(1)
    crowd.come("a1", "a2", "a3")
    crowd.told(1e9)
    crowd.go("a1")

    assert crowd.told(1e9 + 1) == {}
    assert crowd.told(1e9 + 4) == {"a3": 1}


def test_however_many_wait_few_are_told_at_once_and_all_in_the_end() -> None:
    crowd = Crowd(1)
    crowd.come("a0", *(f"a{number}" for number in range(1, 501)))

    told = [crowd.told(1e9 + second) for second in range(100)]

    assert max(map(len, told)) == 10
    assert set().union(*told) == crowd.waiting()


@given(st.lists(st.sampled_from(["a", "b", "c", "go", "urge"]), max_size=60), st.integers(1, 4))
def test_whatever_comes_and_goes_room_is_never_idle_and_never_given_twice(moves: Sequence[str], most: int) -> None:
    crowd, urged = Crowd(most), set[str]()
    for number, move in enumerate(moves):
        everybody = sorted(crowd.admitted() | crowd.waiting())
        if move == "go" and everybody:
            crowd.go(everybody[number % len(everybody)])
        elif move == "urge" and everybody:
            name = everybody[number % len(everybody)]
            if name in crowd.waiting():
                urged.add(name)
            crowd.admission.urge(crowd.ticket(name))
        elif len(move) == 1:
            crowd.come(f"{move}{number}")
        admitted = crowd.admitted()
        assert len(admitted - urged) <= most
        assert not crowd.waiting() or len(admitted) >= most
