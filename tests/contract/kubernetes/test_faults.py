"""What can be made to go wrong with the fake server, for those who have to withstand it. No real one does it on
request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.contract.kubernetes.place import Place, workflow
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import ApiClient, Refused, connected, connected_by


@pytest.fixture
async def fake() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes.serving() as fake:
        yield fake


@pytest.fixture
async def api(fake: FakeKubernetes) -> AsyncIterator[ApiClient]:
    async with connected(fake.url, fake.token) as client:
        yield client


@pytest.fixture
def place(api: ApiClient) -> Place:
    return Place(api=api, namespace="kubeflow")


async def test_a_server_that_was_down_has_what_it_had(fake: FakeKubernetes, place: Place) -> None:
    made = await place.create("a")
    async with place.watching(resourceVersion=await place.version()) as seen:
        await fake.stop()
        with pytest.raises(aiohttp.ClientError):
            await seen.next()
    with pytest.raises(aiohttp.ClientConnectorError):
        await place.names()
    await fake.start()
    assert (await place.api.get(place.of("a"))).document == made


async def test_watches_are_cut_and_what_they_missed_can_be_watched(fake: FakeKubernetes, place: Place) -> None:
    version = await place.version()
    async with place.watching(resourceVersion=version) as one, place.watching(resourceVersion=version) as other:
        fake.cut_watches()
        for seen in (one, other):
            with pytest.raises(aiohttp.ClientError):
                await seen.next()
    await place.create("a")
    async with place.watching(resourceVersion=version) as seen:
        assert await seen.take(1) == [("ADDED", "a")]


async def test_requests_are_refused_as_often_as_told(fake: FakeKubernetes, place: Place) -> None:
    fake.refuse(503, 2, methods=["POST"])
    fake.refuse(429, 1, path="/pods")
    assert [(await place.api.post(place.workflows, workflow(name))).status for name in "abc"] == [503, 503, 201]
    assert (await place.api.get(place.workflows)).status == 200
    assert [(await place.api.get(place.pods)).status for _ in range(2)] == [429, 200]
    assert await place.names() == ["c"]


async def test_an_answer_may_be_lost_after_the_deed(fake: FakeKubernetes, place: Place) -> None:
    fake.lose_answers(1, methods=["POST"])
    with pytest.raises(aiohttp.ClientError):
        await place.create("a")
    assert (await place.api.post(place.workflows, workflow("a"))).reason == "AlreadyExists"


async def test_answers_can_be_late(fake: FakeKubernetes, place: Place) -> None:
    fake.delay(3600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await place.names()
    fake.delay(0)
    assert await place.names() == []


async def test_versions_that_are_gone_may_be_told_by_the_status_of_the_answer(
    fake: FakeKubernetes, place: Place
) -> None:
    version = await place.version()
    fake.compact(answer_with_status=True)
    with pytest.raises(Refused) as refused:
        async with place.watching(resourceVersion=version):
            pass
    assert refused.value.status == 410


async def test_of_too_many_changes_the_oldest_are_forgotten() -> None:
    async with FakeKubernetes.serving(most_changes=20) as fake, connected(fake.url, fake.token) as api:
        place = Place(api=api, namespace="kubeflow")
        first = (await place.create("a"))["metadata"]["resourceVersion"]
        for number in range(30):
            (await api.merge(place.of("a"), {"spec": {"n": number}})).ok()
        async with place.watching(resourceVersion=first) as seen:
            assert (await seen.next()).type == "ERROR"


async def test_tokens_expire_and_are_replaced(fake: FakeKubernetes, place: Place) -> None:
    old = fake.token
    fake.expire_token()
    assert (await place.api.get(place.workflows)).status == 401
    new = fake.rotate_token()
    assert (await place.api.ask("GET", place.workflows, token=old)).status == 401
    assert (await place.api.ask("GET", place.workflows, token=new)).status == 200


@pytest.mark.parametrize("token_file", [False, True])
async def test_a_kubeconfig_leads_to_it(fake: FakeKubernetes, tmp_path: Path, token_file: bool) -> None:
    async with connected_by(fake.kubeconfig(tmp_path, token_file=token_file)) as api:
        assert (await api.get("/api/v1/namespaces/kubeflow")).status == 200


async def test_objects_may_have_to_be_smaller(fake: FakeKubernetes, place: Place) -> None:
    fake.most_bytes = 1000
    answer = await place.api.post(place.workflows, workflow("a", spec={"text": "x" * 1000}))
    assert (answer.status, answer.message) == (500, "etcdserver: request is too large")


async def test_requests_are_remembered(fake: FakeKubernetes, place: Place) -> None:
    fake.requests.clear()
    await place.create("a")
    await place.names()
    assert fake.requests.latest[0] == ("POST", place.workflows)
    assert (fake.requests.counts["GET"], fake.requests.of("POST", "/pods")) == (1, 0)


async def test_access_may_be_denied_to_those_who_ask(fake: FakeKubernetes, place: Place) -> None:
    fake.deny(lambda attributes: attributes.get("verb") == "delete")
    for verb, allowed in (("delete", False), ("create", True)):
        review = {"spec": {"resourceAttributes": {"verb": verb}}}
        answer = await place.api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        assert answer.ok()["status"]["allowed"] is allowed


async def test_bookmarks_come_as_often_as_told(fake: FakeKubernetes, place: Place) -> None:
    fake.bookmark_seconds = 0.01
    async with place.watching(resourceVersion=await place.version(), allowWatchBookmarks="true") as seen:
        assert [type_ for type_, _ in await seen.take(2)] == ["BOOKMARK", "BOOKMARK"]


# What no server has without nodes: owners that are looked after, and logs.


async def test_what_nobody_owns_any_more_is_collected_even_if_it_comes_later(place: Place) -> None:
    owner = await place.create("a")
    reference = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "a", "uid": owner["metadata"]["uid"]}
    (await place.api.delete(place.of("a"))).ok()
    async with place.watching(place.pods, resourceVersion=await place.version()) as seen:
        await place.create_pod("late", ownerReferences=[reference])
        assert await seen.take(2) == [("ADDED", "late"), ("DELETED", "late")]


async def hand_in(place: Place, text: bytes, container: str = "main") -> None:
    answer = await place.api.ask("POST", f"/fake{place.pods}/p/log", text, container=container)
    assert answer.status == 201


async def running_pod(place: Place) -> None:
    await place.create_pod("p")
    (await place.api.merge(f"{place.pods}/p", {"spec": {"nodeName": "node"}})).ok()
    answer = await place.api.get(f"{place.pods}/p/log", container="main")
    assert answer.message == 'container "main" in pod "p" is waiting to start: ContainerCreating'
    (await place.api.merge(f"{place.pods}/p/status", {"status": {"phase": "Running"}})).ok()


async def test_the_log_of_a_pod_is_what_was_handed_in(place: Place) -> None:
    await running_pod(place)
    for line in (b"one\n", b"two\n"):
        await hand_in(place, line)
    await hand_in(place, b"aside\n", "wait")

    async def read(**query: str) -> bytes:
        return (await place.api.get(f"{place.pods}/p/log", **{"container": "main", **query})).body

    assert await read() == b"one\ntwo\n"
    assert await read(container="wait") == b"aside\n"
    assert await read(limitBytes="5") == b"one\nt"
    assert await read(tailLines="1") == b"two\n"
    assert await read(sinceTime="2100-01-01T00:00:00Z") == b""
    stamped = (await read(timestamps="true", tailLines="1")).decode()
    assert await read(sinceTime=stamped.split(" ", maxsplit=1)[0]) == b"two\n"


async def test_a_log_is_followed_until_the_pod_is_over(place: Place) -> None:
    await running_pod(place)
    followed = place.api.stream(f"{place.pods}/p/log", container="main", follow="true")
    async with asyncio.timeout(20), contextlib.aclosing(followed):
        await hand_in(place, b"one\n")
        assert await anext(followed) == b"one\n"
        await hand_in(place, b"two\n")
        (await place.api.merge(f"{place.pods}/p/status", {"status": {"phase": "Succeeded"}})).ok()
        assert [chunk async for chunk in followed] == [b"two\n"]
