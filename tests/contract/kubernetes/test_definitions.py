"""Kinds that somebody defines. This one has what the definition of workflows must not have: a path for its status."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.contract.kubernetes.place import Place
from tests.support.eventually import eventually
from tests.support.kubernetes.client import ApiClient

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def definition(group: str) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": "Thing", "plural": "things"},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": ANYTHING},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


async def is_served(api: ApiClient, group: str) -> bool:
    return (await api.get(f"/apis/{group}/v1/things")).status == 200


@pytest.fixture
async def group(api: ApiClient) -> AsyncIterator[str]:
    """Of a kind that is served meanwhile."""
    group = f"contract-{secrets.token_hex(4)}.headrace.dev"
    (await api.post(DEFINITIONS, definition(group))).ok()
    try:
        await eventually(lambda: is_served(api, group), within_seconds=40)
        yield group
    finally:
        await api.delete(f"{DEFINITIONS}/things.{group}")


async def test_a_kind_is_served_as_long_as_it_is_defined(place: Place, group: str) -> None:
    path = f"/apis/{group}/v1/namespaces/{place.namespace}/things"
    thing = {"apiVersion": f"{group}/v1", "kind": "Thing", "metadata": {"name": "a"}}
    (await place.api.post(path, thing)).ok()
    found = (await place.api.get(f"/apis/{group}/v1")).ok()["resources"]
    assert {each["name"] for each in found} >= {"things", "things/status"}

    await place.api.delete(f"{DEFINITIONS}/things.{group}")

    async def is_gone() -> bool:
        return not await is_served(place.api, group)

    await eventually(is_gone, within_seconds=40)


async def test_a_status_with_a_path_of_its_own_is_written_there_alone(place: Place, group: str) -> None:
    path = f"/apis/{group}/v1/namespaces/{place.namespace}/things"
    thing = {"apiVersion": f"{group}/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"n": 1}}
    made = (await place.api.post(path, {**thing, "status": {"phase": "Running"}})).ok()
    assert "status" not in made

    both = {"spec": {"n": 2}, "status": {"phase": "Running"}}
    changed = (await place.api.merge(f"{path}/a", both)).ok()
    assert (changed["spec"], changed.get("status"), changed["metadata"]["generation"]) == ({"n": 2}, None, 2)

    both = {"spec": {"n": 3}, "status": {"phase": "Failed"}}
    told = (await place.api.merge(f"{path}/a/status", both)).ok()
    assert (told["spec"], told["status"], told["metadata"]["generation"]) == ({"n": 2}, {"phase": "Failed"}, 2)

    kept = (await place.api.put(f"{path}/a", {**told, "spec": {"n": 4}, "status": {}})).ok()
    assert (kept["spec"], kept["status"], kept["metadata"]["generation"]) == ({"n": 4}, {"phase": "Failed"}, 3)


async def test_a_name_that_is_taken_is_no_kinds(api: ApiClient, group: str) -> None:
    answer = await api.post(DEFINITIONS, definition(group))
    assert (answer.status, answer.reason) == (409, "AlreadyExists")
