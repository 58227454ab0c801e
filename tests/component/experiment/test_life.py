from __future__ import annotations

import asyncio
import re
import secrets
from typing import Any

import pytest

from shared.bus import Bus
from shared.contracts.questions import (
    GET_DEFAULT_EXPERIMENT,
    GET_EXPERIMENT,
    AppliedAnswer,
    AppliedRequest,
    ById,
    Nothing,
    applied,
)
from shared.database import Database
from shared.errors import NotFound
from tests.support.lists import NAMES, ListRoute, obeys_the_rules_of_lists, predicate
from tests.support.service import Client

from .conftest import Replica

LIST = ListRoute(path="/experiments", items="experiments", model="Experiment")


async def create(client: Client, name: str = "mine", **fields: Any) -> dict[str, Any]:
    created: dict[str, Any] = await client.post("/experiments", {"name": name, **fields})
    return created


async def told(database: Database) -> list[tuple[str, str, int]]:
    """What, of which experiment, in which version; the default one is another story."""
    rows = await database.fetch(
        """
        select what, resource_id, body from outbox
        where convert_from(body, 'utf8')::jsonb ->> 'name' <> 'Default' order by seq
        """
    )
    return [(row["what"], row["resource_id"], int(re.findall(rb'"version":(\d+)', row["body"])[0])) for row in rows]


async def test_an_experiment_is_created_and_found(experiments: Client, database: Database) -> None:
    created = await create(experiments, description="of " * 1000, id="ignored", storage_state="STORAGESTATE_ARCHIVED")
    assert created["name"] == "mine"
    assert created["description"] == "of " * 1000
    assert created["storage_state"] == "STORAGESTATE_AVAILABLE"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created["created_at"])
    assert re.fullmatch(r"[0-9a-f-]{36}", created["id"])
    assert await experiments.get(f"/experiments/{created['id']}") == created
    assert await told(database) == [("created", created["id"], 1)]


async def test_what_cannot_be_created_is_refused_in_the_words_of_the_api(experiments: Client) -> None:
    for document in (None, {}, {"name": ""}, {"description": "x"}):
        status, body = await experiments.refused("POST", "/experiments", document)
        text = "Experiment name is empty. Please specify a valid experiment name."
        chain = f"Validate experiment request failed.: Invalid input error: {text}"
        assert (status, body["code"], body["error"], body["message"]) == (400, 3, chain, chain)
        assert body["details"] == [
            {"@type": "type.googleapis.com/api.Error", "error_message": text, "error_details": chain}
        ]
    reference = {"key": {"type": "NAMESPACE", "id": "n"}, "relationship": "OWNER"}
    status, body = await experiments.refused("POST", "/experiments", {"name": "x", "resource_references": [reference]})
    assert status == 400
    assert "shouldn't contain resource references." in body["error"]
    status, body = await experiments.refused("POST", "/experiments", {"name": 5})
    assert (status, "details" in body) == (400, False)


async def test_a_name_is_as_long_as_an_index_can_hold_and_no_longer(experiments: Client) -> None:
    longest = secrets.token_hex(1_000)  # Nothing in it repeats, so that nothing can be stored shorter than it is.
    assert (await create(experiments, longest))["name"] == longest
    assert await LIST.names(experiments, filter=predicate("EQUALS", "name", string_value=longest)) == [longest]
    assert (await experiments.refused("POST", "/experiments", {"name": longest}))[0] == 409
    text = "The experiment name is longer than 2000 bytes. Please specify a shorter one."
    for name in (longest + "x", "ü" * 1_001, secrets.token_hex(4_500), secrets.token_hex(150_000)):
        status, body = await experiments.refused("POST", "/experiments", {"name": name})
        assert (status, body["code"], body["details"][0]["error_message"]) == (400, 3, text)
        assert body["error"] == f"Validate experiment request failed.: Invalid input error: {text}"


async def test_a_taken_name_is_a_409_and_replicas_agree_who_was_first(
    experiments: Client, replica: Replica, database: Database
) -> None:
    async with replica() as other:
        answers = await asyncio.gather(
            *(
                client.call("POST", "/apis/v1beta1/experiments", json={"name": "same"})
                for client in (experiments, other) * 5
            )
        )
    assert sorted(answer.status for answer in answers) == [200] + [409] * 9
    (refused, *_) = (answer.json for answer in answers if answer.status == 409)
    assert refused["code"] == 6
    assert refused["error"] == (
        "Create experiment failed.: Already exist error: "
        "Failed to create a new experiment. The name same already exists. Please specify a new name."
    )
    assert len(await told(database)) == 1


async def test_an_unknown_experiment_is_a_404(experiments: Client) -> None:
    for path in ("unknown", "", "%00", "%FF", "x" * 5000, "a'b"):
        status, body = await experiments.refused("GET", f"/experiments/{path}")
        assert (status, body["code"]) == (404, 5)
    status, body = await experiments.refused("GET", "/experiments/unknown")
    assert body["error"] == "Get experiment failed.: ResourceNotFoundError: Experiment unknown not found."
    status, body = await experiments.refused("DELETE", "/experiments/unknown")
    assert (status, body["error"]) == (
        404,
        "Delete experiment failed: ResourceNotFoundError: Experiment unknown not found.",
    )
    for verb in ("archive", "unarchive"):
        status, _ = await experiments.refused("POST", f"/experiments/unknown:{verb}")
        assert status == 404


async def test_experiments_obey_the_rules_of_lists(experiments: Client) -> None:
    assert await experiments.get("/experiments") == {}
    for name in NAMES:
        await create(experiments, name)
    await obeys_the_rules_of_lists(experiments, LIST)


async def test_only_the_empty_namespace_filters_and_says_nothing(experiments: Client) -> None:
    await create(experiments)
    key = "resource_reference_key"
    assert await LIST.names(experiments, **{f"{key}.type": "NAMESPACE", f"{key}.id": ""}) == ["mine"]
    assert await LIST.names(experiments, **{f"{key}.type": "NAMESPACE"}) == ["mine"]
    for ignored in ("EXPERIMENT", "JOB", "PIPELINE_VERSION"):
        assert await LIST.names(experiments, **{f"{key}.type": ignored, f"{key}.id": "x"}) == ["mine"]
    refusal = await LIST.refusal(experiments, **{f"{key}.type": "NAMESPACE", f"{key}.id": "kubeflow"})
    assert refusal == "In single-user mode, ListExperiment cannot filter by namespace."
    for of_nothing, name in (({}, "UNKNOWN_RESOURCE_TYPE"), ({f"{key}.type": "PIPELINE"}, "PIPELINE")):
        status, body = await experiments.refused("GET", "/experiments", **{f"{key}.id": "x"}, **of_nothing)
        assert (status, body["error"]) == (
            400,
            "Validating filter failed.: Unrecognized resource reference type.: "
            f"Invalid input error: Unsupported resource type: {name}",
        )


async def test_archiving_is_idempotent_and_filtered_by_the_words_of_the_api(
    experiments: Client, database: Database
) -> None:
    one, two = await create(experiments, "one"), await create(experiments, "two")
    for _ in range(2):
        assert await experiments.post(f"/experiments/{one['id']}:archive") == {}
    archived = predicate("EQUALS", "storage_state", string_value="STORAGESTATE_ARCHIVED")
    live = predicate("NOT_EQUALS", "storage_state", string_value="STORAGESTATE_ARCHIVED")
    assert await LIST.names(experiments, filter=archived) == ["one"]
    assert await LIST.names(experiments, filter=live) == ["two"]
    for _ in range(2):
        assert await experiments.post(f"/experiments/{one['id']}%3Aunarchive") == {}
    assert (await experiments.get(f"/experiments/{one['id']}"))["storage_state"] == "STORAGESTATE_AVAILABLE"
    assert await told(database) == [
        ("created", one["id"], 1),
        ("created", two["id"], 1),
        ("archived", one["id"], 2),
        ("archived", one["id"], 3),
        ("unarchived", one["id"], 4),
    ], "archiving again is for the runs and jobs that came since; unarchiving changes none"


async def test_archiving_answers_after_its_followers_have_applied_it(
    experiments: Client, buses: dict[str, Bus], database: Database
) -> None:
    waited: list[tuple[str, int]] = []

    for name, bus in buses.items():

        async def answer(request: AppliedRequest, name: str = name) -> AppliedAnswer:
            waited.append((name, request.position))
            return AppliedAnswer(is_applied=True)

        await bus.answer(applied(name), answer)
    created = await create(experiments)
    for _ in range(2):
        await experiments.post(f"/experiments/{created['id']}:archive")
    rows = await database.fetch("select position from outbox where what = 'archived'")
    positions = [row["position"] for row in rows]
    assert sorted(waited) == sorted((name, position) for name in buses for position in positions)
    assert len(set(positions)) == 2


async def test_a_deleted_experiment_is_gone_and_its_name_free(experiments: Client, database: Database) -> None:
    created = await create(experiments)
    assert await experiments.delete(f"/experiments/{created['id']}") == {}
    assert await experiments.get("/experiments") == {}
    await create(experiments)
    assert [(what, version) for what, _, version in await told(database)] == [
        ("created", 1),
        ("deleted", 2),
        ("created", 1),
    ]


async def test_others_may_ask_for_an_experiment(experiments: Client, buses: dict[str, Bus]) -> None:
    created = await create(experiments)
    state = await buses["run"].ask(GET_EXPERIMENT, ById(id=created["id"]), within_seconds=5)
    assert (state.id, state.name, state.version) == (created["id"], "mine", 1)
    with pytest.raises(NotFound, match=r"Experiment unknown not found\."):
        await buses["run"].ask(GET_EXPERIMENT, ById(id="unknown"), within_seconds=5)


async def test_the_default_is_made_once_for_all_who_ask_and_anew_after_its_deletion(
    experiments: Client, replica: Replica, buses: dict[str, Bus]
) -> None:
    async def default() -> str:
        return (await buses["run"].ask(GET_DEFAULT_EXPERIMENT, Nothing(), within_seconds=10)).id

    async with replica():
        found = await asyncio.gather(*(default() for _ in range(10)))
    assert len(set(found)) == 1
    experiment = await experiments.get(f"/experiments/{found[0]}")
    assert experiment["name"] == "Default"
    assert experiment["description"] == ("All runs created without specifying an experiment will be grouped here.")
    await experiments.delete(f"/experiments/{found[0]}")
    assert await default() != found[0]


async def test_an_experiment_that_is_called_default_already_is_adopted(
    experiments: Client, buses: dict[str, Bus]
) -> None:
    created = await create(experiments, "Default")
    state = await buses["run"].ask(GET_DEFAULT_EXPERIMENT, Nothing(), within_seconds=5)
    assert state.id == created["id"]
