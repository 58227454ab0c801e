"""Which objects a list holds, and what pages of it have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.contract.kubernetes.place import WORKFLOWS, Place
from tests.support.kubernetes.client import METADATA, METADATA_LIST


async def test_a_list_says_of_what_version_it_is(place: Place) -> None:
    before = int(await place.version())
    made = await place.create("a")
    listed = (await place.api.get(place.workflows)).ok()
    assert (listed["kind"], listed["apiVersion"]) == ("WorkflowList", "argoproj.io/v1alpha1")
    assert before < int(made["metadata"]["resourceVersion"]) <= int(listed["metadata"]["resourceVersion"])
    assert listed["items"] == [made]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", "abcd"),
        ("tier=web", "ab"),
        ("tier==web", "ab"),
        ("tier!=web", "cd"),
        ("tier in (web,db)", "abc"),
        ("tier in (web, db)", "abc"),
        ("tier notin (web)", "cd"),
        ("tier", "abc"),
        ("!tier", "d"),
        ("tier=web,app.io/run-id=1", "a"),
        ("app.io/run-id", "abd"),
        ("app.io/run-id,tier in (web,db),app.io/run-id!=1", "b"),
        ("done=", "d"),
        ("tier=none", ""),
    ],
)
async def test_labels_select(place: Place, selector: str, expected: str) -> None:
    await place.create("a", {"tier": "web", "app.io/run-id": "1"})
    await place.create("b", {"tier": "web", "app.io/run-id": "2"})
    await place.create("c", {"tier": "db"})
    await place.create("d", {"app.io/run-id": "1", "done": ""})
    assert await place.names(labelSelector=selector) == list(expected)


async def test_fields_select(place: Place) -> None:
    await place.create("a")
    await place.create("b")
    assert await place.names(fieldSelector="metadata.name=b") == ["b"]
    assert await place.names(fieldSelector="metadata.name!=b") == ["a"]
    assert await place.names(WORKFLOWS, fieldSelector=f"metadata.namespace={place.namespace}") == ["a", "b"]


async def test_fields_of_pods_select(place: Place) -> None:
    await place.create_pod("p")
    await place.create_pod("q")
    (await place.api.merge(f"{place.pods}/q/status", {"status": {"phase": "Running"}})).ok()
    assert await place.names(place.pods, fieldSelector="status.phase=Pending") == ["p"]
    assert await place.names(place.pods, fieldSelector="spec.nodeName=") == ["p", "q"]


@pytest.mark.parametrize(
    "query", [{"labelSelector": "a b"}, {"labelSelector": "a in b"}, {"fieldSelector": "spec.entrypoint=main"}]
)
async def test_a_selector_that_cannot_be_read_is_refused(place: Place, query: dict[str, str]) -> None:
    answer = await place.api.get(place.workflows, **query)
    assert (answer.status, answer.reason) == (400, "BadRequest")


async def test_pages_show_everything_once_as_it_was_at_the_first(place: Place) -> None:
    for name in "abcde":
        await place.create(name)
    first = (await place.api.get(place.workflows, limit="2")).ok()
    assert [each["metadata"]["name"] for each in first["items"]] == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3

    await place.api.delete(place.of("c"))
    (await place.api.merge(place.of("d"), {"spec": {"n": 1}})).ok()
    await place.create("f")
    second = (await place.api.get(place.workflows, limit="2", **_after(first))).ok()
    assert [(each["metadata"]["name"], each["spec"]) for each in second["items"]] == [("c", {}), ("d", {})]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    third = (await place.api.get(place.workflows, limit="2", **_after(second))).ok()
    assert [each["metadata"]["name"] for each in third["items"]] == ["e"]
    assert not third["metadata"].get("continue")
    assert await place.names() == ["a", "b", "d", "e", "f"]


async def test_pages_are_full_of_what_is_selected(place: Place) -> None:
    for name in "abcdef":
        await place.create(name, {"x": "1"} if name in "bdf" else None)
    first = (await place.api.get(place.workflows, limit="2", labelSelector="x")).ok()
    assert [each["metadata"]["name"] for each in first["items"]] == ["b", "d"]
    assert "remainingItemCount" not in first["metadata"]
    rest = await place.names(limit="2", labelSelector="x", **_after(first))
    assert rest == ["f"]


async def test_a_page_of_a_time_that_is_forgotten_is_gone_and_a_list_can_go_on(
    place: Place, compact: Callable[[], Awaitable[None]]
) -> None:
    for name in "abc":
        await place.create(name)
    first = (await place.api.get(place.workflows, limit="1")).ok()
    await place.api.delete(place.of("b"))
    await compact()
    gone = await place.api.get(place.workflows, limit="1", **_after(first))
    assert (gone.status, gone.reason) == (410, "Expired")
    assert await place.names(**_after(gone.document)) == ["c"]


async def test_a_page_has_the_version_of_its_list_alone(place: Place) -> None:
    for name in "ab":
        await place.create(name)
    first = (await place.api.get(place.workflows, limit="1")).ok()
    answer = await place.api.get(place.workflows, resourceVersion="1", **_after(first))
    assert (answer.status, answer.reason) == (400, "BadRequest")
    answer = await place.api.get(place.workflows, **{"continue": "nonsense"})
    assert (answer.status, answer.reason) == (400, "BadRequest")


async def test_a_version_that_is_still_to_come_is_not_waited_for_for_ever(place: Place) -> None:
    answer = await place.api.get(place.workflows, resourceVersion=str(int(await place.version()) + 1_000_000))
    assert (answer.status, answer.reason) == (504, "Timeout")


async def test_an_earlier_version_can_be_asked_for(place: Place) -> None:
    await place.create("a")
    version = await place.version()
    await place.create("b")
    assert await place.names(resourceVersion=version, resourceVersionMatch="Exact", limit="10") == ["a"]
    assert await place.names(resourceVersion=version) == ["a", "b"]


async def test_any_version_is_good_enough_for_some(place: Place) -> None:
    await place.create("a")
    # What a server has in memory may be a moment old.
    assert await place.names(resourceVersion="0") in (["a"], [])


async def test_a_list_of_all_namespaces_holds_this_one(place: Place) -> None:
    await place.create("a", {"contract": place.namespace})
    assert await place.names(WORKFLOWS, labelSelector=f"contract={place.namespace}") == ["a"]


async def test_metadata_alone_may_be_asked_for(place: Place) -> None:
    made = await place.create("a", {"x": "1"}, spec={"large": "x" * 1000})
    answer = await place.api.ask("GET", place.workflows, accept=METADATA_LIST)
    assert (answer.ok()["kind"], answer.document["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    (item,) = answer.document["items"]
    assert item["metadata"]["uid"] == made["metadata"]["uid"]
    assert item["metadata"]["labels"] == {"x": "1"}
    assert "spec" not in item
    assert answer.version

    alone = await place.api.ask("GET", place.of("a"), accept=METADATA)
    assert alone.ok()["kind"] == "PartialObjectMetadata"
    assert alone.document["metadata"]["uid"] == made["metadata"]["uid"]
    assert "spec" not in alone.document


async def test_items_of_built_in_kinds_do_not_say_what_they_are(place: Place) -> None:
    await place.create_pod("p")
    (item,) = (await place.api.get(place.pods)).ok()["items"]
    assert "kind" not in item
    assert "apiVersion" not in item


def _after(page: dict[str, object]) -> dict[str, str]:
    metadata = page["metadata"]
    assert isinstance(metadata, dict)
    return {"continue": metadata["continue"]}
