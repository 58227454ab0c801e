"""In which order the replicas of a service are tried."""

from __future__ import annotations

from gateway.proxy import IDLE_SECONDS, REST_SECONDS, Replicas
from shared.web import DRAIN_NOTICE_SECONDS, KEEP_ALIVE_SECONDS

A, B, C = "http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Names:
    """A name server that answers what the test says."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = set(hosts)
        self.is_down = False

    async def __call__(self, name: str) -> set[str]:
        if self.is_down:
            raise OSError("temporary failure in name resolution")
        return self.hosts


def test_each_request_begins_with_the_next_replica() -> None:
    replicas = Replicas("run", [A, B, C])

    assert [list(replicas.in_turn()) for _ in range(4)] == [[A, B, C], [B, C, A], [C, A, B], [A, B, C]]


def test_a_replica_that_refused_is_tried_last_until_it_has_rested() -> None:
    clock = Clock()
    replicas = Replicas("run", [A, B], clock=clock)
    replicas.note_refused(A)

    assert [replicas.in_turn()[0] for _ in range(4)] == [B, B, B, B]
    assert set(replicas.in_turn()) == {A, B}
    clock.now += REST_SECONDS
    assert {replicas.in_turn()[0] for _ in range(2)} == {A, B}


def test_a_draining_replica_is_tried_last() -> None:
    replicas = Replicas("run", [A, B], clock=Clock())
    replicas.note_draining(B)

    assert [replicas.in_turn()[0] for _ in range(3)] == [A, A, A]


def test_a_replica_that_answers_again_takes_its_turn_at_once() -> None:
    replicas = Replicas("run", [A, B], clock=Clock())
    replicas.note_refused(A)
    replicas.note_reached(A)

    assert {replicas.in_turn()[0] for _ in range(2)} == {A, B}


def test_replicas_that_all_refused_are_all_tried() -> None:
    replicas = Replicas("run", [A, B], clock=Clock())
    replicas.note_refused(A)
    replicas.note_refused(B)

    assert set(replicas.in_turn()) == {A, B}


async def test_a_name_stands_for_all_its_addresses_as_they_come_and_go() -> None:
    names = Names("10.0.0.1", "fd00::1")
    replicas = Replicas("run", ["dns+http://run.headrace:8080", A], look_up=names)

    await replicas.resolve()
    assert list(replicas.addresses) == [A, "http://10.0.0.1:8080", "http://[fd00::1]:8080"]

    names.hosts = {"10.0.0.7"}
    await replicas.resolve()
    assert list(replicas.addresses) == [A, "http://10.0.0.7:8080"]


async def test_an_outage_of_the_name_server_keeps_the_known_addresses() -> None:
    names = Names("10.0.0.1")
    replicas = Replicas("run", ["dns+http://run:8080"], look_up=names)
    await replicas.resolve()
    names.is_down = True
    await replicas.resolve()

    assert replicas.addresses == ("http://10.0.0.1:8080",)


async def test_a_name_that_never_resolved_offers_nothing_to_try() -> None:
    names = Names()
    names.is_down = True
    replicas = Replicas("run", ["dns+http://run:8080"], look_up=names)
    await replicas.resolve()

    assert not replicas.in_turn()


def test_the_gateway_lets_go_of_an_idle_connection_before_any_service_does() -> None:
    assert IDLE_SECONDS < DRAIN_NOTICE_SECONDS < KEEP_ALIVE_SECONDS
