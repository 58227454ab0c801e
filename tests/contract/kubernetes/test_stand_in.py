"""The stand-in for Argo: what it leaves on a server, and what it makes of what others do there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from services.run.engine.retry import rewrite
from tests.contract.kubernetes.place import Place
from tests.support.argo import StandInArgo, Walk, Walking
from tests.support.argo.held import COMPLETED, PHASE, Held
from tests.support.argo.walking import POD_DELETED, STOPPED
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import ApiClient, connected, connected_by


@pytest.fixture
async def controller(fake: FakeKubernetes | None, kubeconfig: Any) -> AsyncIterator[ApiClient]:
    """A connection of the controller's own."""
    connecting = connected_by(kubeconfig) if fake is None else connected(fake.url, fake.controller_token)
    async with connecting as client:
        yield client


@contextlib.asynccontextmanager
async def walking(
    controller: ApiClient, place: Place, script: Callable[[Held], Walk]
) -> AsyncIterator[tuple[StandInArgo, Walking]]:
    """Of the workflows of this place; there may be others on the server."""
    brain = Walking(controller, script)
    async with StandInArgo.working(controller, brain, namespace=place.namespace) as argo:
        yield argo, brain


async def reached(place: Place, name: str, phase: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = (await place.api.get(place.of(name))).ok()
        return found if found.get("status", {}).get("phase") == phase else None

    found = await eventually(look, within_seconds=30)
    assert found is not None
    return found


async def pods(place: Place) -> dict[str, str]:
    found = (await place.api.get(place.pods)).ok()["items"]
    return {each["metadata"]["name"]: each["status"]["phase"] for each in found}


async def test_a_workflow_walks_to_its_end(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda _: Walk()):
        await place.create("a", {"pipeline/runid": "1"})
        ended = await reached(place, "a", "Succeeded")
    assert ended["metadata"]["labels"] == {"pipeline/runid": "1", PHASE: "Succeeded", COMPLETED: "true"}
    assert ended["status"]["conditions"] == [{"type": "Completed", "status": "True"}]
    assert ended["status"]["startedAt"] <= ended["status"]["finishedAt"]
    (node,) = ended["status"]["nodes"].values()
    assert (node["id"], node["name"], node["type"], node["phase"]) == ("a", "a", "Pod", "Succeeded")
    assert await pods(place) == {"a": "Succeeded"}
    (pod,) = (await place.api.get(place.pods)).ok()["items"]
    assert pod["metadata"]["labels"] == {"workflows.argoproj.io/workflow": "a", COMPLETED: "true"}


async def test_what_happens_on_the_way_can_be_watched(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda _: Walk(steps=2, outcome="Failed", message="Error (exit code 1)")):
        async with place.watching(resourceVersion=await place.version()) as seen:
            await place.create("a")
            phases: list[str] = []
            while phases[-1:] != ["Failed"]:
                phases.append((await seen.next()).object.get("status", {}).get("phase", ""))
        ended = await reached(place, "a", "Failed")
    assert sorted(set(phases), key=phases.index) == ["", "Running", "Failed"]
    by_name = {each["name"]: each for each in ended["status"]["nodes"].values()}
    assert {name: each["phase"] for name, each in by_name.items()} == {
        "a": "Failed",
        "a.step-0": "Succeeded",
        "a.step-1": "Failed",
    }
    assert by_name["a"]["children"] == [by_name[name]["id"] for name in ("a.step-0", "a.step-1")]
    assert ended["status"]["message"] == by_name["a.step-1"]["message"] == "Error (exit code 1)"


@pytest.mark.parametrize("patch", [{"activeDeadlineSeconds": 0}, {"shutdown": "Terminate"}])
async def test_a_workflow_that_is_stopped_fails(controller: ApiClient, place: Place, patch: dict[str, Any]) -> None:
    async with walking(controller, place, lambda _: Walk(steps=2, holds_at="Running")):
        await place.create("a")
        await reached(place, "a", "Running")
        (await place.api.merge(place.of("a"), {"spec": patch})).ok()
        ended = await reached(place, "a", "Failed")
    assert ended["status"]["message"] == STOPPED
    assert {each["phase"] for each in ended["status"]["nodes"].values()} == {"Failed"}
    assert await pods(place) == {}


async def test_a_retried_workflow_keeps_what_was_done(controller: ApiClient, place: Place) -> None:
    def script(seen: Held) -> Walk:
        return Walk(steps=2, outcome="Succeeded" if seen.annotations.get("attempt") == "2" else "Failed")

    async with walking(controller, place, script):
        await place.create("a")
        ended = await reached(place, "a", "Failed")
        (await place.api.put(place.of("a"), retried(ended))).ok()
        again = await reached(place, "a", "Succeeded")
    before, after = ({each["name"]: each for each in seen["status"]["nodes"].values()} for seen in (ended, again))
    assert after["a.step-0"] == before["a.step-0"]
    assert (before["a.step-1"]["phase"], after["a.step-1"]["phase"]) == ("Failed", "Succeeded")
    assert again["metadata"]["labels"][COMPLETED] == "true"


async def test_a_workflow_that_comes_with_its_status_goes_on_from_there(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda _: Walk(steps=2, outcome="Error")):
        await place.create("a")
        ended = await reached(place, "a", "Error")
        await place.api.delete(place.of("a"))
        document = retried(ended)
        metadata = {key: document["metadata"][key] for key in ("name", "labels", "annotations")}
        (await place.api.post(place.workflows, {**document, "metadata": metadata})).ok()
        again = await reached(place, "a", "Error")
    step = next(node_id for node_id, each in ended["status"]["nodes"].items() if each["name"] == "a.step-0")
    assert again["status"]["nodes"][step] == ended["status"]["nodes"][step]


async def test_a_controller_that_is_restarted_goes_on(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda _: Walk(holds_at="Running")) as (argo, brain):
        await place.create("a")
        started = await reached(place, "a", "Running")
        await argo.stop()
        await place.create("b")
        argo.start()
        await reached(place, "b", "Running")
        for name in "ab":
            brain.let_go(name)
        ended = await reached(place, "a", "Succeeded")
        await reached(place, "b", "Succeeded")
    assert ended["status"]["startedAt"] == started["status"]["startedAt"]


async def test_a_controller_may_do_nothing_for_a_while(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda seen: Walk(holds_at="Pending" if seen.name == "a" else "")) as (
        _,
        brain,
    ):
        made = await place.create("a")
        await place.create("b")
        await reached(place, "b", "Succeeded")
        assert (await place.api.get(place.of("a"))).document == made
        brain.let_go("a")
        await reached(place, "a", "Succeeded")


async def test_pods_go_with_their_workflow_and_a_workflow_misses_its_pod(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda _: Walk(holds_at="Running")) as (_, brain):
        await place.create("a")
        await place.create("b")
        for name in "ab":
            await reached(place, name, "Running")
        await place.api.delete(place.of("a"))

        async def of_b_alone() -> bool:
            return set(await pods(place)) == {"b"}

        await eventually(of_b_alone, within_seconds=30)
        await place.api.delete(f"{place.pods}/b")
        brain.let_go("b")
        ended = await reached(place, "b", "Error")
    assert ended["status"]["message"] == POD_DELETED


async def test_many_nodes_are_compressed(controller: ApiClient, place: Place) -> None:
    async with walking(controller, place, lambda _: Walk(message="x" * 2_000, outcome="Failed")):
        await place.create("a", spec={"text": "x" * 1024 * 1024})
        ended = await reached(place, "a", "Failed")
    assert "nodes" not in ended["status"]
    assert Held(controller, ended).nodes["a"]["message"] == "x" * 2_000


async def test_progress_is_a_change_of_the_object_each_time(controller: ApiClient, place: Place) -> None:
    async with (
        walking(controller, place, lambda _: Walk(updates=3, has_pods=False)),
        place.watching(resourceVersion=await place.version()) as seen,
    ):
        await place.create("a")
        progress: list[str] = []
        while (event := await seen.next()).object.get("status", {}).get("phase") != "Succeeded":
            nodes = event.object.get("status", {}).get("nodes", {})
            progress += [each["progress"] for each in nodes.values() if "progress" in each]
    assert progress == ["1/3", "2/3", "3/3"]
    assert await pods(place) == {}


async def test_a_server_that_goes_away_and_comes_back_finds_its_controller(
    fake: FakeKubernetes | None, place: Place
) -> None:
    if fake is None:
        pytest.skip("a real server is not stopped")
    async with (
        connected(fake.url, fake.controller_token) as controller,
        walking(controller, place, lambda _: Walk(holds_at="Running")) as (_, brain),
    ):
        await place.create("a")
        await reached(place, "a", "Running")
        await fake.stop()
        brain.let_go("a")
        await fake.start()
        await place.create("b")
        brain.let_go("b")
        for name in "ab":
            await reached(place, name, "Succeeded")


def retried(document: dict[str, Any]) -> dict[str, Any]:
    """As the retry of a run rewrites the object."""
    metadata, status = document["metadata"], document["status"]
    texts = [(node_id, msgspec.json.encode(node).decode()) for node_id, node in status["nodes"].items()]
    rewritten = rewrite(metadata["name"], texts)
    nodes = {key: node for key, node in status["nodes"].items() if key not in rewritten.removed}
    nodes |= {key: msgspec.json.decode(text) for key, _, text in rewritten.changed}
    labels = {key: value for key, value in metadata["labels"].items() if key != COMPLETED} | {PHASE: "Running"}
    annotations = {**metadata.get("annotations", {}), "attempt": "2"}
    return {
        **document,
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "status": {"phase": "Running", "startedAt": status["startedAt"], "finishedAt": None, "nodes": nodes},
    }
