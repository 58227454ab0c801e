"""What is refused, with which words and in which order, and that it leaves nothing behind (API specification,
sections 6, 9.2, 9.3 and 10.2)."""

from __future__ import annotations

from typing import Any

import msgspec

from services.job_scheduler.store import OBJECT_NAME_KEY
from shared.database import ConstraintViolated
from tests.component.job_scheduler.conftest import JOB, MANIFEST, World, reference
from tests.support.service import V1

NO_SOURCE = "Please specify a pipeline by providing a (workflow manifest) or (pipeline id or/and pipeline version)."
TWO_SOURCES = "Please don't specify a pipeline version or pipeline ID when you specify a workflow manifest."
TOO_LONG = "The input parameter length exceed maximum size of 10000."
DUPLICATE = "A job refers to at most one resource of each type."
CRON = "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: "
CHECKED = "Validate create job request failed.: "
CREATING = "Create job failed: "
CONVERTING = CREATING + "Unable to convert resource references.: "
REFERRED = CONVERTING + "Failed to find the referred resource: "

INLINE = {"workflow_manifest": MANIFEST}
VERSION = reference("PIPELINE_VERSION", "v1", "CREATOR")
LONG = [{"name": "greeting", "value": "<" * 1667}]


def manifest(**changes: Any) -> dict[str, str]:
    return {"workflow_manifest": msgspec.json.encode(msgspec.json.decode(MANIFEST) | changes).decode()}


def triggered(**trigger: Any) -> dict[str, Any]:
    return {"trigger": trigger}


INVALID = manifest(spec={"templates": []})
REFUSED: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "a name that is longer than ours": (
        {"name": "n" * 2001},
        400,
        "The job name is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a pipeline of which nobody can be asked": (
        {"pipeline_spec": {"pipeline_id": "n" * 600_000}},
        400,
        "The pipeline id is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a reference of which nobody can be asked": (
        {"resource_references": [reference("JOB", "n" * 600_000)]},
        400,
        "The id of the JOB is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "a service account that no cluster has": (
        {"service_account": "n" * 600_000},
        400,
        "The service account is longer than 2000 bytes. Please specify a shorter one.",
        CHECKED,
    ),
    "no source": ({"pipeline_spec": None}, 400, NO_SOURCE, CHECKED),
    "an empty source": ({"pipeline_spec": {}}, 400, NO_SOURCE, CHECKED),
    "a version that is only owned": (
        {"pipeline_spec": None, "resource_references": [reference("PIPELINE_VERSION", "v1")]},
        400,
        NO_SOURCE,
        CHECKED,
    ),
    "manifest and pipeline": ({"pipeline_spec": INLINE | {"pipeline_id": "p"}}, 400, TWO_SOURCES, CHECKED),
    "manifest and version": ({"resource_references": [VERSION]}, 400, TWO_SOURCES, CHECKED),
    "no JSON": (
        {"pipeline_spec": {"workflow_manifest": "a: b"}},
        400,
        "Invalid argo workflow format. Workflow: a: b",
        CHECKED,
    ),
    "no object": (
        {"pipeline_spec": {"workflow_manifest": "[1]"}},
        400,
        "Invalid argo workflow format. Workflow: [1]",
        CHECKED,
    ),
    "a spec that is none": (
        {"pipeline_spec": {"workflow_manifest": '{"spec":1}'}},
        400,
        'Invalid argo workflow format. Workflow: {"spec":1}',
        CHECKED,
    ),
    "an unknown pipeline": (
        {"pipeline_spec": {"pipeline_id": "nope"}},
        404,
        "Pipeline nope not found.",
        CHECKED + "Get pipelineId failed.: ",
    ),
    "an unknown version": (
        {"pipeline_spec": None, "resource_references": [reference("PIPELINE_VERSION", "nope", "CREATOR")]},
        404,
        "Version nope not found.",
        CHECKED + "Get pipelineVersionId failed.: ",
    ),
    "a version of another pipeline": (
        {"pipeline_spec": {"pipeline_id": "p2"}, "resource_references": [VERSION]},
        400,
        "pipeline ID should be parent of pipeline version.",
        CHECKED,
    ),
    "a pipeline without a version": ({"pipeline_spec": {"pipeline_id": "empty"}}, 400, "No pipeline version.", CHECKED),
    "parameters too long": ({"pipeline_spec": INLINE | {"parameters": LONG}}, 400, TOO_LONG, CHECKED),
    "no concurrency": (
        {"max_concurrency": None},
        400,
        "The max concurrency of the job is out of range. Support 1-10. Received 0.",
        CHECKED,
    ),
    "too much concurrency": (
        {"max_concurrency": 11},
        400,
        "The max concurrency of the job is out of range. Support 1-10. Received 11.",
        CHECKED,
    ),
    "less than no concurrency": (
        {"max_concurrency": "-1"},
        400,
        "The max concurrency of the job is out of range. Support 1-10. Received -1.",
        CHECKED,
    ),
    "an empty cron": (triggered(cron_schedule={}), 400, f"{CRON}Empty spec string", CHECKED),
    "a cron of another grammar": (
        triggered(cron_schedule={"cron": "0 0 0 L * ?"}),
        400,
        f"{CRON}Failed to parse int from L: L",
        CHECKED,
    ),
    "no interval": (
        triggered(periodic_schedule={}),
        400,
        "Found invalid period schedule interval 0. Set at interval to least 1 second.",
        CHECKED,
    ),
    "a negative interval": (
        triggered(periodic_schedule={"interval_second": "-5"}),
        400,
        "Found invalid period schedule interval -5. Set at interval to least 1 second.",
        CHECKED,
    ),
    "two triggers": (
        triggered(periodic_schedule={"interval_second": 1}, cron_schedule={"cron": "@daily"}),
        400,
        "A trigger is either a cron schedule or a periodic schedule, not both.",
        "",
    ),
    "a package that is gone": (
        {"pipeline_spec": {"pipeline_id": "lost"}},
        404,
        "WorkflowSpecManifest a job not found.",
        CREATING + "Failed to fetch workflow spec.: ",
    ),
    "another kind": (
        {"pipeline_spec": manifest(kind="Pod")},
        400,
        "Failed to unmarshal workflow spec manifest. Unexpected resource type: Pod",
        CREATING,
    ),
    "an unknown parameter": (
        {"pipeline_spec": INLINE | {"parameters": [{"name": "whom"}, {"name": "Whom"}]}},
        400,
        "Unrecognized input parameter: Whom",
        CREATING + "Failed to verify parameters.: ",
    ),
    "an unknown experiment": (
        {"resource_references": [reference("EXPERIMENT", "nope")]},
        404,
        "Experiment nope not found.",
        CREATING + "Failed to get experiment.: ",
    ),
    "an unsupported type": (
        {"resource_references": [reference("PIPELINE", "p")]},
        400,
        "Unsupported resource type: PIPELINE",
        CONVERTING,
    ),
    "a reference without a key": (
        {"resource_references": [{"relationship": "OWNER"}]},
        400,
        "Unsupported resource type: UNKNOWN_RESOURCE_TYPE",
        CONVERTING,
    ),
    "no relationship": (
        {"resource_references": [{"key": {"type": "NAMESPACE", "id": "n"}}]},
        400,
        "Unsupported resource relationship: UNKNOWN_RELATIONSHIP",
        CONVERTING,
    ),
    "an unknown job": (
        {"resource_references": [reference("JOB", "nope", "CREATOR")]},
        404,
        "Job nope not found.",
        REFERRED,
    ),
    "an unknown version that is not the source": (
        {"resource_references": [reference("PIPELINE_VERSION", "nope")]},
        404,
        "Version nope not found.",
        REFERRED,
    ),
    "two namespaces": (
        {"resource_references": [reference("NAMESPACE", "a"), reference("NAMESPACE", "b")]},
        400,
        DUPLICATE,
        CONVERTING,
    ),
    "an experiment that is not the owner, beside the default one": (
        {"resource_references": [reference("EXPERIMENT", "e-default", "CREATOR")]},
        400,
        DUPLICATE,
        CONVERTING,
    ),
    "a version owned, beside the default one": (
        {"pipeline_spec": {"pipeline_id": "p"}, "resource_references": [reference("PIPELINE_VERSION", "v1")]},
        400,
        DUPLICATE,
        CONVERTING,
    ),
    "a workflow that could never run": (
        {"pipeline_spec": INVALID},
        400,
        "Failed to validate workflow for (a job): spec.entrypoint is required",
        CREATING,
    ),
    "a runtime config": ({"pipeline_spec": INLINE | {"runtime_config": {"pipeline_root": "x"}}}, 400, None, ""),
    # Of two faults the one that is checked first is told.
    "source before concurrency": ({"pipeline_spec": {}, "max_concurrency": 0}, 400, NO_SOURCE, CHECKED),
    "size before concurrency": (
        {"pipeline_spec": INLINE | {"parameters": LONG}, "max_concurrency": 0},
        400,
        TOO_LONG,
        CHECKED,
    ),
    "concurrency before cron": (
        {"max_concurrency": 0, **triggered(cron_schedule={"cron": "x"})},
        400,
        "The max concurrency of the job is out of range. Support 1-10. Received 0.",
        CHECKED,
    ),
    "trigger before parameters": (
        {"pipeline_spec": INLINE | {"parameters": [{"name": "x"}]}, **triggered(periodic_schedule={})},
        400,
        "Found invalid period schedule interval 0. Set at interval to least 1 second.",
        CHECKED,
    ),
    "parameters before experiment": (
        {
            "pipeline_spec": INLINE | {"parameters": [{"name": "x"}]},
            "resource_references": [reference("EXPERIMENT", "nope")],
        },
        400,
        "Unrecognized input parameter: x",
        CREATING,
    ),
    "experiment before validation": (
        {"pipeline_spec": INVALID, "resource_references": [reference("EXPERIMENT", "nope")]},
        404,
        "Experiment nope not found.",
        CREATING,
    ),
    "references before validation": (
        {"pipeline_spec": INVALID, "resource_references": [reference("JOB", "nope", "CREATOR")]},
        404,
        "Job nope not found.",
        REFERRED,
    ),
}
"""Fields beside those of JOB → status, message, and how the chain begins."""

MALFORMED: dict[str, dict[str, Any]] = {
    "a list": {"trigger": []},
    "a number for a flag": {"enabled": 1},
    "a text for a flag": {"enabled": "true"},
    "an unknown mode": {"mode": "SOMETIMES"},
    "a time that is none": triggered(cron_schedule={"cron": "@daily", "start_time": "yesterday"}),
    "a time before the calendar": triggered(
        cron_schedule={"cron": "@daily", "start_time": "0001-01-01T00:00:00+23:00"}
    ),
    "an interval that is no number": triggered(periodic_schedule={"interval_second": "often"}),
    "an interval beyond 64 bits": triggered(periodic_schedule={"interval_second": str(2**63)}),
    "an unknown type": {"resource_references": [reference("FOO", "x")]},
}


async def test_every_refusal_has_its_words_and_leaves_no_job(world: World) -> None:
    digest = await world.blobs.put_manifest(MANIFEST)
    world.peers.has_version("p", "v1", digest)
    world.peers.has_version("lost", "v-lost", "0" * 64)
    world.peers.defaults["empty"] = None
    for case, (fields, status, message, chain) in REFUSED.items():
        answered, body = await world.client.refused("POST", "/jobs", {**JOB, **fields})
        assert answered == status, (case, body)
        details = body["details"][0]
        assert details["error_message"] == message or message is None, case
        assert body["error"].startswith(chain), (case, body["error"])
        assert body["error"] == body["message"] == details["error_details"]
        assert body["code"] == {400: 3, 404: 5}[status]
    assert await world.database.fetchval("select (select count(*) from jobs) + (select count(*) from outbox)") == 0


async def test_what_is_no_job_at_all_is_told_without_details(world: World) -> None:
    for case, fields in MALFORMED.items():
        status, body = await world.client.refused("POST", "/jobs", {**JOB, **fields})
        assert (status, body["code"], body.get("details")) == (400, 3, None), (case, body)
    for text in (b"{", b"[]", b"1", b"\xff"):
        answer = await world.client.call("POST", f"{V1}/jobs", data=text)
        assert (answer.status, answer.json["code"]) == (400, 3), text
    status, body = await world.client.refused("POST", "/jobs")
    assert (status, body["details"][0]["error_message"]) == (400, NO_SOURCE)


async def test_ids_that_cannot_exist_are_unknown(world: World) -> None:
    for odd in ("x" * 5000, "%00", "a'b", "%FF", "a%20b", ""):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/enable"), ("POST", "/disable")):
            answer = await world.client.call(method, f"{V1}/jobs/{odd}{path}")
            assert answer.status == 404, (method, odd)


async def test_texts_that_a_database_cannot_hold_are_the_clients_to_mend(world: World) -> None:
    for field in ("name", "description", "service_account"):
        status, body = await world.client.refused("POST", "/jobs", {**JOB, field: "a\x00b"})
        assert (status, body["code"]) == (400, 3)
        job = await world.create(**{field: "\U0001f600 ' \n"})
        assert (await world.get(job["id"]))[field] == "\U0001f600 ' \n"


async def test_a_peer_that_does_not_answer_is_a_503_and_leaves_no_job(world: World) -> None:
    await world.peers.buses["run"].close()
    status, body = await world.client.refused("POST", "/jobs", dict(JOB))
    assert (status, body["code"]) == (503, 14)
    assert await world.client.get("/jobs") == {}


async def test_the_rows_refuse_what_no_job_can_be(world: World) -> None:
    job = await world.create()
    impossible = {
        "max_concurrency = 0": "jobs_max_concurrency_check",
        "cron = '@daily'": "jobs_cron_check",
        "trigger_kind = 'cron'": "jobs_cron_check",
        "trigger_kind = 'one-off', interval_seconds = null, starts_at = now()": "jobs_window_check",
        "interval_seconds = 0": "jobs_interval_seconds_check",
        "object_name = 'Up'": "jobs_object_name_check",
    }
    for change, constraint in impossible.items():
        assert await _violated(world, f"update jobs set {change}") == constraint
    other = await world.create()
    taken = (await world.row(job["id"]))["object_name"]
    clash = f"update jobs set object_name = '{taken}' where id = '{other['id']}'"
    assert await _violated(world, clash) == OBJECT_NAME_KEY


async def _violated(world: World, sql: str) -> str:
    try:
        await world.database.execute(sql)
    except ConstraintViolated as violation:
        return violation.constraint
    return ""
