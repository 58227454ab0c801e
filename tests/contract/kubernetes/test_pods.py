"""Pods without a kubelet: what the server alone says of their logs."""

from __future__ import annotations

from tests.contract.kubernetes.place import Place


async def test_a_pod_that_is_nowhere_has_an_empty_log(place: Place) -> None:
    await place.create_pod("p")
    answer = await place.api.ask("GET", f"{place.pods}/p/log", accept="*/*", container="main")
    assert (answer.status, answer.body) == (204, b"")


async def test_a_log_is_of_a_container_that_is_named(place: Place) -> None:
    await place.create_pod("p")
    answer = await place.api.ask("GET", f"{place.pods}/p/log")
    assert (answer.status, answer.reason) == (400, "BadRequest")
    assert answer.message == "a container name must be specified for pod p, choose one of: [main wait]"
    answer = await place.api.ask("GET", f"{place.pods}/p/log", container="other")
    assert (answer.status, answer.message) == (400, "container other is not valid for pod p")


async def test_a_pod_that_is_not_there_has_no_log(place: Place) -> None:
    answer = await place.api.ask("GET", f"{place.pods}/p/log", container="main")
    assert (answer.status, answer.reason, answer.message) == (404, "NotFound", 'pods "p" not found')
