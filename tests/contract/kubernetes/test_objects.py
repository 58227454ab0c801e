"""What becomes of objects that are created, changed and deleted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.kubernetes.place import WORKFLOWS, Place, pod, workflow
from tests.support.kubernetes.client import JSON_PATCH, Answer

ETCD_TAKES = 1_572_864
SERVER_TAKES = 3 * 1024 * 1024


def refusal(answer: Answer) -> tuple[int, str]:
    assert answer.document["kind"] == "Status"
    assert answer.document["status"] == "Failure"
    assert answer.document["code"] == answer.status
    return answer.status, answer.reason


# Creation


async def test_a_new_object_gets_its_identity_from_the_server(place: Place) -> None:
    answer = await place.api.post(place.workflows, workflow("a", spec={"entrypoint": "main"}))
    assert answer.status == 201
    metadata = answer.document["metadata"]
    assert (metadata["name"], metadata["namespace"], metadata["generation"]) == ("a", place.namespace, 1)
    assert metadata["uid"]
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["creationTimestamp"].endswith("Z")
    assert answer.document["spec"] == {"entrypoint": "main"}
    assert (await place.api.get(place.of("a"))).document == answer.document


async def test_a_name_may_be_left_to_the_server(place: Place) -> None:
    document = workflow("", metadata={"generateName": "pipeline-"})
    first, second = [(await place.api.post(place.workflows, document)).ok()["metadata"]["name"] for _ in range(2)]
    assert first != second
    assert all(name.startswith("pipeline-") and len(name) == len("pipeline-") + 5 for name in (first, second))


async def test_a_name_is_given_once(place: Place) -> None:
    await place.create("a")
    answer = await place.api.post(place.workflows, workflow("a"))
    assert refusal(answer) == (409, "AlreadyExists")
    assert answer.message == 'workflows.argoproj.io "a" already exists'
    assert answer.document["details"] == {"name": "a", "group": "argoproj.io", "kind": "workflows"}


async def test_a_workflow_may_come_with_its_status(place: Place) -> None:
    status = {"phase": "Running", "nodes": {"a": {"id": "a", "phase": "Succeeded"}}}
    made = await place.create("a", status=status)
    assert made["status"] == status
    assert (await place.api.get(place.of("a") + "/status")).status == 404


async def test_an_object_that_was_read_is_not_created_again_with_its_version(place: Place) -> None:
    await place.create("a")
    answer = await place.api.post(place.workflows, workflow("b", metadata={"resourceVersion": "1"}))
    assert refusal(answer) == (500, "")
    assert answer.message == "resourceVersion should not be set on objects to be created"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b"no JSON", (400, "BadRequest")),
        ({"metadata": {"name": "a"}}, (400, "BadRequest")),
        ({**workflow("a"), "kind": "Pod"}, (422, "Invalid")),
        ({**workflow("a"), "apiVersion": "v1"}, (400, "BadRequest")),
        (workflow("a", metadata={"namespace": "elsewhere"}), (400, "BadRequest")),
        (workflow("a", metadata={"labels": {"x": 1}}), (400, "BadRequest")),
        (workflow(""), (422, "Invalid")),
        (workflow("A_b"), (422, "Invalid")),
        (workflow("a", {"x": "not a label's value"}), (422, "Invalid")),
        (workflow("a", {"x": "v" * 64}), (422, "Invalid")),
        (workflow("a", {"a/b/c": "x"}), (422, "Invalid")),
        (workflow("a", metadata={"annotations": {"x": "v" * 262_145}}), (422, "Invalid")),
    ],
)
async def test_what_cannot_be_an_object_is_refused(place: Place, document: Any, expected: tuple[int, str]) -> None:
    assert refusal(await place.api.post(place.workflows, document)) == expected
    assert await place.names() == []


async def test_nothing_is_created_in_a_namespace_that_is_not_there(place: Place) -> None:
    answer = await place.api.post("/apis/argoproj.io/v1alpha1/namespaces/nowhere/workflows", workflow("a"))
    assert refusal(answer) == (404, "NotFound")
    assert answer.message == 'namespaces "nowhere" not found'


async def test_an_object_has_to_fit_into_etcd(place: Place) -> None:
    too_large = workflow("a", spec={"text": "x" * (ETCD_TAKES + 1000)})
    answer = await place.api.post(place.workflows, too_large)
    assert refusal(answer) == (500, "")
    assert answer.message == "etcdserver: request is too large"

    much_too_large = workflow("a", spec={"text": "x" * SERVER_TAKES})
    answer = await place.api.post(place.workflows, much_too_large)
    assert refusal(answer) == (413, "RequestEntityTooLarge")
    assert answer.message == "Request entity too large: limit is 3145728"

    await place.create("a", spec={"text": "x" * (ETCD_TAKES - 100_000)})


# Change


async def test_a_replacement_has_to_know_the_latest_version(place: Place) -> None:
    old = await place.create("a")
    new = (await place.api.put(place.of("a"), {**old, "spec": {"n": 1}})).ok()
    assert new["spec"] == {"n": 1}
    assert int(new["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])

    answer = await place.api.put(place.of("a"), {**old, "spec": {"n": 2}})
    assert refusal(answer) == (409, "Conflict")
    assert answer.message == (
        'Operation cannot be fulfilled on workflows.argoproj.io "a": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    assert (await place.api.get(place.of("a"))).document["spec"] == {"n": 1}


async def test_a_replacement_without_a_version_is_refused(place: Place) -> None:
    await place.create("a")
    answer = await place.api.put(place.of("a"), workflow("a"))
    assert refusal(answer) == (422, "Invalid")


async def test_a_replacement_is_of_the_object_that_is_named(place: Place) -> None:
    made = await place.create("a")
    other = {**made, "metadata": {**made["metadata"], "name": "b"}}
    assert refusal(await place.api.put(place.of("a"), other)) == (400, "BadRequest")
    namesake = {**made, "metadata": {**made["metadata"], "uid": "00000000-0000-0000-0000-000000000000"}}
    assert refusal(await place.api.put(place.of("a"), namesake)) == (409, "Conflict")


async def test_a_patch_may_insist_on_a_version(place: Place) -> None:
    old = (await place.create("a"))["metadata"]["resourceVersion"]
    (await place.api.merge(place.of("a"), {"spec": {"n": 1}})).ok()
    answer = await place.api.merge(place.of("a"), {"metadata": {"resourceVersion": old}, "spec": {"n": 2}})
    assert refusal(answer) == (409, "Conflict")
    assert (await place.api.get(place.of("a"))).document["spec"] == {"n": 1}


async def test_a_merge_patch_changes_what_it_names(place: Place) -> None:
    await place.create("a", {"x": "1", "y": "2"}, spec={"kept": 1, "gone": {"b": 1}, "list": [1, 2]})
    patch = {"metadata": {"labels": {"x": None, "z": "3"}}, "spec": {"gone": None, "list": [3], "new": {"c": None}}}
    patched = (await place.api.merge(place.of("a"), patch)).ok()
    assert patched["metadata"]["labels"] == {"y": "2", "z": "3"}
    assert patched["spec"] == {"kept": 1, "list": [3], "new": {}}


async def test_labels_that_are_all_taken_away_are_not_there(place: Place) -> None:
    await place.create("a", {"x": "1"})
    patched = (await place.api.merge(place.of("a"), {"metadata": {"labels": {"x": None}}})).ok()
    assert "labels" not in patched["metadata"]


async def test_a_json_patch_is_carried_out_as_a_whole_or_not_at_all(place: Place) -> None:
    async def patch(*operations: dict[str, Any]) -> Answer:
        return await place.api.ask("PATCH", place.of("a"), operations, content_type=JSON_PATCH)

    await place.create("a", {"x/y": "1"}, spec={"n": 1, "list": [1, 3], "old": 1})
    changed = await patch(
        {"op": "test", "path": "/spec/n", "value": 1},
        {"op": "replace", "path": "/spec/n", "value": 2},
        {"op": "add", "path": "/spec/list/1", "value": 2},
        {"op": "add", "path": "/spec/list/-", "value": 4},
        {"op": "remove", "path": "/metadata/labels/x~1y"},
        {"op": "move", "from": "/spec/old", "path": "/spec/moved"},
        {"op": "copy", "from": "/spec/n", "path": "/spec/copied"},
    )
    expected = {"n": 2, "list": [1, 2, 3, 4], "moved": 1, "copied": 2}
    assert changed.ok()["spec"] == expected
    assert "labels" not in changed.document["metadata"]

    refused = await patch(
        {"op": "replace", "path": "/spec/n", "value": 3}, {"op": "test", "path": "/spec/n", "value": 1}
    )
    assert refusal(refused) == (422, "Invalid")
    assert refusal(await patch({"op": "remove", "path": "/spec/nothing"})) == (422, "Invalid")
    assert (await place.api.get(place.of("a"))).document["spec"] == expected


async def test_kinds_that_are_defined_know_no_strategic_patch(place: Place) -> None:
    await place.create("a")
    how = "application/strategic-merge-patch+json"
    answer = await place.api.ask("PATCH", place.of("a"), {"spec": {}}, content_type=how)
    assert refusal(answer) == (415, "UnsupportedMediaType")


async def test_what_changes_nothing_makes_no_version(place: Place) -> None:
    made = await place.create("a", {"x": "1"}, spec={"n": 1})
    assert (await place.api.put(place.of("a"), made)).document == made
    assert (await place.api.merge(place.of("a"), {"spec": {"n": 1}})).document == made


async def test_a_generation_is_counted_by_everything_but_metadata(place: Place) -> None:
    await place.create("a", spec={"n": 1})
    patches: list[tuple[dict[str, Any], int]] = [
        ({"metadata": {"labels": {"x": "1"}}}, 1),
        ({"spec": {"n": 2}}, 2),
        ({"status": {"phase": "Running"}}, 3),
        ({"metadata": {"generation": 9}}, 3),
    ]
    for patch, generation in patches:
        patched = (await place.api.merge(place.of("a"), patch)).ok()
        assert patched["metadata"]["generation"] == generation


async def test_identity_cannot_be_patched(place: Place) -> None:
    made = await place.create("a")
    patch = {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z", "labels": {"x": "1"}}}
    patched = (await place.api.merge(place.of("a"), patch)).ok()
    assert patched["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]


async def test_versions_of_all_kinds_are_counted_together(place: Place) -> None:
    first = await place.create("a")
    second = (await place.api.post(place.configmaps, {"metadata": {"name": "a"}})).ok()
    third = await place.create("b")
    versions = [int(each["metadata"]["resourceVersion"]) for each in (first, second, third)]
    assert versions == sorted(set(versions))


async def test_the_status_of_a_pod_is_written_by_its_own_path(place: Place) -> None:
    made = await place.create_pod("p")
    assert made["status"]["phase"] == "Pending"
    (await place.api.merge(f"{place.pods}/p/status", {"status": {"phase": "Running"}})).ok()
    by_itself = await place.api.merge(
        f"{place.pods}/p", {"metadata": {"labels": {"x": "1"}}, "status": {"phase": "Failed"}}
    )
    assert by_itself.ok()["metadata"]["labels"] == {"x": "1"}
    assert by_itself.document["status"]["phase"] == "Running"


# Deletion


async def test_a_deletion_says_what_is_gone(place: Place) -> None:
    made = await place.create("a")
    answer = await place.api.delete(place.of("a"))
    assert answer.ok()["status"] == "Success"
    uid = made["metadata"]["uid"]
    assert answer.document["details"] == {"name": "a", "group": "argoproj.io", "kind": "workflows", "uid": uid}


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH", "PUT"])
async def test_what_is_not_there_is_not_found(place: Place, method: str) -> None:
    document = workflow("a", metadata={"resourceVersion": "1"}) if method in ("PATCH", "PUT") else None
    how = "application/merge-patch+json" if method == "PATCH" else "application/json"
    answer = await place.api.ask(method, place.of("a"), document, content_type=how)
    assert refusal(answer) == (404, "NotFound")
    assert answer.message == 'workflows.argoproj.io "a" not found'
    assert answer.document["details"] == {"name": "a", "group": "argoproj.io", "kind": "workflows"}


async def test_finalizers_keep_an_object_until_the_last_is_taken_away(place: Place) -> None:
    await place.create("a", metadata={"finalizers": ["headrace.dev/one", "headrace.dev/two"]})
    lingering = (await place.api.delete(place.of("a"))).ok()
    assert lingering["kind"] == "Workflow"
    assert lingering["metadata"]["deletionTimestamp"]
    again = (await place.api.delete(place.of("a"))).ok()
    assert again["metadata"]["deletionTimestamp"] == lingering["metadata"]["deletionTimestamp"]

    left = (await place.api.merge(place.of("a"), {"metadata": {"finalizers": ["headrace.dev/two"]}})).ok()
    assert left["metadata"]["deletionTimestamp"]
    (await place.api.merge(place.of("a"), {"metadata": {"finalizers": None}})).ok()
    assert (await place.api.get(place.of("a"))).status == 404


async def test_a_deletion_may_insist_on_what_it_takes_for_granted(place: Place) -> None:
    made = await place.create("a")
    elsewhere = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    assert refusal(await place.api.delete(place.of("a"), elsewhere)) == (409, "Conflict")
    assert refusal(await place.api.delete(place.of("a"), {"preconditions": {"resourceVersion": "1"}})) == (
        409,
        "Conflict",
    )
    known = {key: made["metadata"][key] for key in ("uid", "resourceVersion")}
    (await place.api.delete(place.of("a"), {"preconditions": known})).ok()
    assert await place.names() == []


async def test_many_are_deleted_by_a_selector(place: Place) -> None:
    await place.create("a", {"x": "1"})
    await place.create("b", {"x": "2"})
    await place.create("c", {"x": "1"})
    (await place.api.delete(place.workflows, labelSelector="x=1")).ok()
    assert await place.names() == ["b"]
    (await place.api.delete(place.workflows)).ok()
    assert await place.names() == []


async def test_what_nobody_owns_any_more_is_collected(place: Place, with_controllers: None) -> None:
    owner = await place.create("a")
    reference = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "a", "uid": owner["metadata"]["uid"]}
    await place.create_pod("p", ownerReferences=[reference])
    await place.create_pod("q")
    async with place.watching(place.pods, resourceVersion=await place.version()) as seen:
        (await place.api.delete(place.of("a"), {"propagationPolicy": "Background"})).ok()
        while (event := await seen.next()).type != "DELETED":
            assert event.name == "p"
        assert event.name == "p"
    assert await place.names(place.pods) == ["q"]


# Dry runs, and what belongs to no object


async def test_a_dry_run_answers_and_does_nothing(place: Place) -> None:
    made = await place.create("a")
    assert (await place.api.post(place.workflows, workflow("b"), dryRun="All")).status == 201
    assert refusal(await place.api.post(place.workflows, workflow("a"), dryRun="All")) == (409, "AlreadyExists")
    patched = await place.api.merge(place.of("a"), {"spec": {"n": 1}}, dryRun="All")
    assert patched.ok()["spec"] == {"n": 1}
    (await place.api.delete(place.of("a"), dryRun="All")).ok()
    assert await place.names() == ["a"]
    assert (await place.api.get(place.of("a"))).document == made


async def test_a_token_that_is_unknown_is_refused(place: Place) -> None:
    answer = await place.api.ask("GET", place.workflows, token="of nobody")
    assert refusal(answer) == (401, "Unauthorized")


async def test_the_server_says_how_it_is(place: Place) -> None:
    assert (await place.api.get("/readyz")).body == b"ok"
    assert (await place.api.get("/version")).document["gitVersion"].startswith("v1.")


async def test_the_server_says_which_kinds_a_group_has(place: Place) -> None:
    found = (await place.api.get("/apis/argoproj.io/v1alpha1")).ok()
    kinds = [(each["name"], each["kind"]) for each in found["resources"]]
    assert ("workflows", "Workflow") in kinds
    assert ("workflows/status", "Workflow") not in kinds
    assert (await place.api.get("/apis/argoproj.io/v9")).status == 404


async def test_one_may_ask_what_one_may_do(place: Place) -> None:
    attributes = {"namespace": place.namespace, "verb": "create", "group": "argoproj.io", "resource": "workflows"}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await place.api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert answer.status == 201
    assert answer.document["status"]["allowed"] is True


async def test_there_are_paths_and_methods_that_mean_nothing(place: Place) -> None:
    assert (await place.api.get("/apis/argoproj.io/v1alpha1/nothings")).status == 404
    assert (await place.api.post(WORKFLOWS, workflow("a"))).status == 404
    assert (await place.api.delete(WORKFLOWS)).status == 404
    assert refusal(await place.api.put(place.workflows, workflow("a"))) == (400, "BadRequest")
    assert refusal(await place.api.put(place.pods, pod("a"))) == (405, "MethodNotAllowed")
    assert refusal(await place.api.delete("/api/v1/pods")) == (405, "MethodNotAllowed")
