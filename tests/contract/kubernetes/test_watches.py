"""What a watch tells, in which order, and from when on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.contract.kubernetes.place import WORKFLOWS, Place
from tests.support.kubernetes.client import METADATA


async def test_a_watch_tells_every_change_in_order(place: Place) -> None:
    async with place.watching(resourceVersion=await place.version()) as seen:
        await place.create("a")
        (await place.api.merge(place.of("a"), {"spec": {"n": 1}})).ok()
        await place.create("b")
        await place.api.delete(place.of("a"))
        events = [await seen.next() for _ in range(4)]
    assert [(each.type, each.name) for each in events] == [
        ("ADDED", "a"),
        ("MODIFIED", "a"),
        ("ADDED", "b"),
        ("DELETED", "a"),
    ]
    versions = [each.version for each in events]
    assert versions == sorted(set(versions))
    assert events[1].object["spec"] == events[3].object["spec"] == {"n": 1}


async def test_a_watch_goes_on_where_another_has_stopped(place: Place) -> None:
    start = await place.version()
    for name in "abc":
        await place.create(name)
    async with place.watching(resourceVersion=start) as seen:
        assert await seen.take(1) == [("ADDED", "a")]
        last = (await seen.next()).version
    await place.api.delete(place.of("a"))
    async with place.watching(resourceVersion=str(last)) as seen:
        assert await seen.take(2) == [("ADDED", "c"), ("DELETED", "a")]


async def test_between_a_list_and_the_watch_from_its_version_nothing_is_missed(place: Place) -> None:
    await place.create("a")
    listed = (await place.api.get(place.workflows)).ok()
    await place.create("b")
    async with place.watching(resourceVersion=listed["metadata"]["resourceVersion"]) as seen:
        assert await seen.take(1) == [("ADDED", "b")]


async def test_a_watch_from_no_version_begins_with_what_there_is(place: Place) -> None:
    await place.create("a")
    await place.create("b")
    async with place.watching() as seen:
        assert sorted(await seen.take(2)) == [("ADDED", "a"), ("ADDED", "b")]
        await place.create("c")
        assert await seen.take(1) == [("ADDED", "c")]


async def test_what_leaves_a_selector_is_deleted_and_what_enters_it_is_added(place: Place) -> None:
    await place.create("a", {"done": "false"})
    await place.create("b")
    async with place.watching(resourceVersion=await place.version(), labelSelector="done!=true,done") as seen:
        (await place.api.merge(place.of("b"), {"metadata": {"labels": {"other": "1"}}})).ok()
        left = (await place.api.merge(place.of("a"), {"metadata": {"labels": {"done": "true"}}})).ok()
        event = await seen.next()
        assert (event.type, event.name, event.object["metadata"]["labels"]) == ("DELETED", "a", {"done": "false"})
        assert event.version == int(left["metadata"]["resourceVersion"])

        (await place.api.merge(place.of("a"), {"metadata": {"labels": {"done": "no"}}})).ok()
        (await place.api.merge(place.of("a"), {"spec": {"n": 1}})).ok()
        assert await seen.take(2) == [("ADDED", "a"), ("MODIFIED", "a")]


async def test_a_deletion_is_later_than_the_last_change(place: Place) -> None:
    made = await place.create("a")
    async with place.watching(resourceVersion=made["metadata"]["resourceVersion"]) as seen:
        await place.api.delete(place.of("a"))
        event = await seen.next()
    assert event.type == "DELETED"
    assert event.version > int(made["metadata"]["resourceVersion"])


async def test_an_object_with_finalizers_is_modified_before_it_is_deleted(place: Place) -> None:
    made = await place.create("a", metadata={"finalizers": ["headrace.dev/one"]})
    async with place.watching(resourceVersion=made["metadata"]["resourceVersion"]) as seen:
        await place.api.delete(place.of("a"))
        event = await seen.next()
        assert (event.type, "deletionTimestamp" in event.object["metadata"]) == ("MODIFIED", True)
        await place.api.merge(place.of("a"), {"metadata": {"finalizers": None}})
        assert await seen.take(1) == [("DELETED", "a")]


async def test_a_watch_is_of_one_namespace_or_of_all(place: Place) -> None:
    version = await place.version()
    selector = f"contract={place.namespace}"
    (
        await place.api.post(place.configmaps, {"metadata": {"name": "other", "labels": {"contract": place.namespace}}})
    ).ok()
    await place.create("a", {"contract": place.namespace})
    async with place.watching(WORKFLOWS, resourceVersion=version, labelSelector=selector) as seen:
        assert await seen.take(1) == [("ADDED", "a")]


async def test_one_object_can_be_watched(place: Place) -> None:
    await place.create("a")
    async with place.watching(resourceVersion=await place.version(), fieldSelector="metadata.name=a") as seen:
        await place.create("b")
        await place.api.delete(place.of("a"))
        assert await seen.take(1) == [("DELETED", "a")]


async def test_a_watch_ends_after_its_time_and_tells_before_how_far_it_has_come(place: Place) -> None:
    async with place.watching(
        resourceVersion=await place.version(), allowWatchBookmarks="true", timeoutSeconds="3", labelSelector="x=1"
    ) as seen:
        other = await place.create("a")
        events = await seen.rest()
    assert {each.type for each in events} == {"BOOKMARK"}
    assert events[-1].object["kind"] == "Workflow"
    assert events[-1].version >= int(other["metadata"]["resourceVersion"])


async def test_bookmarks_have_to_be_asked_for(place: Place) -> None:
    async with place.watching(resourceVersion=await place.version(), timeoutSeconds="1") as seen:
        assert await seen.rest() == []


async def test_what_is_forgotten_cannot_be_watched_from(place: Place, compact: Callable[[], Awaitable[None]]) -> None:
    await place.create("a")
    await compact()
    # The first version of all is forgotten wherever anything is.
    async with place.watching(resourceVersion="1") as seen:
        (event,) = await seen.rest()
    assert event.type == "ERROR"
    assert (event.object["kind"], event.object["code"], event.object["reason"]) == ("Status", 410, "Expired")


async def test_an_open_watch_outlives_what_is_forgotten(place: Place, compact: Callable[[], Awaitable[None]]) -> None:
    async with place.watching(resourceVersion=await place.version()) as seen:
        await place.create("a")
        await compact()
        await place.create("b")
        assert await seen.take(2) == [("ADDED", "a"), ("ADDED", "b")]


async def test_metadata_alone_can_be_watched(place: Place) -> None:
    async with place.watching(resourceVersion=await place.version(), accept=METADATA) as seen:
        await place.create("a", spec={"large": "x" * 1000})
        event = await seen.next()
    assert (event.type, event.name, event.object["kind"]) == ("ADDED", "a", "PartialObjectMetadata")
    assert "spec" not in event.object


async def test_an_event_holds_an_object_of_any_size(place: Place) -> None:
    async with place.watching(resourceVersion=await place.version()) as seen:
        await place.create("a", spec={"text": "x" * 1_000_000})
        event = await seen.next()
    assert len(event.object["spec"]["text"]) == 1_000_000


async def test_a_label_selector_that_cannot_be_read_is_refused_at_once(place: Place) -> None:
    answer = await place.api.get(place.workflows, watch="1", labelSelector="a b")
    assert (answer.status, answer.reason) == (400, "BadRequest")
