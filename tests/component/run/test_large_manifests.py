"""Manifests that are read in a process of their own: what comes of them, and of those that ask too much of it."""

from __future__ import annotations

from typing import Any

import msgspec

from services.run import reading
from services.run.compose import Rules
from services.run.domain import EngineName
from services.run.manifests import Manifests
from services.run.records import Records
from shared import go_yaml
from shared.outbox import Outbox
from shared.readers import Readers
from tests.component.run.conftest import MANIFEST, World
from tests.component.run.test_jobs import check
from tests.component.run.test_refusals import REFUSED
from tests.support.packages import ordinary

LARGE = msgspec.json.encode(go_yaml.load(ordinary(512 * 1024))).decode()
WITH_OBJECT = MANIFEST.replace(
    '"container":{"image":"busybox","command":["echo","{{workflow.uid}}"]}',
    '"resource":{"action":"create","manifest":"kind: Secret\\nmetadata: {name: s}"}',
)


def of(manifest: str) -> dict[str, Any]:
    return {"name": "n", "pipeline_spec": {"workflow_manifest": manifest}}


async def test_where_a_manifest_is_read_makes_no_difference(world: World) -> None:
    apart = await world.start_replica(large_manifest_bytes=1)
    world.peers.has_version("p1", "v1", "0" * 64)
    world.peers.has_version("p2", "v2", "0" * 64)
    world.peers.defaults["empty"] = None
    for case, (body, status, message, _) in REFUSED.items():
        answers = [await each.call("POST", "/runs", body) for each in (world.client, apart)]
        assert [each.status for each in answers] == [status, status], case
        # Some words name what nobody can foretell.
        assert message is None or answers[0] == answers[1], case

    replies = [(await each.call("POST", "/runs", of(MANIFEST))).body for each in (world.client, apart)]
    workflows = [msgspec.json.decode(each["pipeline_runtime"]["workflow_manifest"]) for each in replies]
    assert workflows[0]["spec"]["arguments"] == workflows[1]["spec"]["arguments"]
    assert replies[0]["run"]["pipeline_spec"] == replies[1]["run"]["pipeline_spec"]
    ids = [each["run"]["id"] for each in replies]
    shown = [[await each.workflow(run_id) for each in (world.client, apart)] for run_id in ids]
    assert [one == other for one, other in shown] == [True, True]


async def test_a_manifest_that_is_read_apart_is_judged_for_what_will_run_it(world: World) -> None:
    without_command = MANIFEST.replace(',"command":["echo","{{workflow.uid}}"]', "")
    for settings, status in (({}, 400), ({"runtime": "docker"}, 200), ({"engine": EngineName.EXTERNAL}, 200)):
        replica = await world.start_replica(large_manifest_bytes=1, **settings)
        assert (await replica.call("POST", "/runs", of(without_command))).status == status, settings


async def test_a_large_manifest_is_run_listed_and_handed_to_the_engine_whole(world: World) -> None:
    created = await world.client.call("POST", "/runs", of(LARGE))
    assert created.status == 200
    run_id = created.body["run"]["id"]
    assert created.body["run"]["pipeline_spec"]["workflow_manifest"] == LARGE
    workflow = await world.client.workflow(run_id)
    templates = msgspec.json.decode(LARGE)["spec"]["templates"]
    assert [each["name"] for each in workflow["spec"]["templates"]] == [each["name"] for each in templates]
    (listed,) = (await world.client.call("GET", "/runs")).body["runs"]
    assert listed["pipeline_spec"]["workflow_manifest"] == LARGE
    submission = await world.records.submission(run_id)
    assert submission is not None
    assert submission.workflow["spec"] == workflow["spec"]


async def test_a_manifest_that_takes_too_much_to_read_is_refused_with_the_setting(world: World) -> None:
    hasty = await world.start_replica(manifest_read_cpu_seconds=0.01)
    reason = (
        "Failed to unmarshal workflow spec manifest. it takes more than 0.01 s of processor time to read; "
        "the setting HEADRACE_MANIFEST_READ_CPU_SECONDS says so"
    )
    # The text of an object is YAML, which may say very much in few bytes.
    for manifest in (LARGE, WITH_OBJECT):
        answer = await hasty.call("POST", "/runs", of(manifest))
        assert (answer.status, answer.message) == (400, reason)
    assert (await hasty.call("POST", "/runs", of(MANIFEST))).status == 200
    assert await world.database.fetchval("select count(*) from runs") == 1
    assert (await world.client.call("POST", "/runs", of(WITH_OBJECT))).status == 200


async def test_a_manifest_that_takes_too_much_to_read_again_ends_its_run_and_no_other(world: World) -> None:
    """As after somebody has lowered the limits."""
    run_id = (await world.client.create(pipeline_spec={"workflow_manifest": LARGE}))["id"]
    other_id = (await world.client.create())["id"]
    poor = await world.start_replica(manifest_read_memory_bytes=2**20)
    assert (await poor.call("GET", f"/runs/{run_id}")).status == 503
    assert (await poor.call("GET", f"/runs/{other_id}")).status == 200

    limits = msgspec.structs.replace(world.settings, manifest_read_memory_bytes=2**20).manifest_limits
    readers = Readers(reading.WORK, limits)
    manifests = Manifests(
        world.database,
        world.blobs,
        Rules(),
        readers,
        world.settings.runner,
        cache_bytes=1,
        large_bytes=world.settings.large_manifest_bytes,
    )
    records = Records(world.database, Outbox("run"), manifests)
    assert await records.submission(run_id) is None
    assert await records.submission(other_id) is not None
    await readers.close()
    row = await world.row(run_id)
    assert row["status"] == "Error"
    assert row["error"].endswith("the setting HEADRACE_MANIFEST_READ_MEMORY_BYTES says so")
    assert await world.facts(run_id) == ["created", "error"]


async def test_a_large_manifest_is_checked_for_a_job(world: World) -> None:
    assert (await check(world, LARGE)).refusal == ""
    invalid = LARGE.replace('"entrypoint":"main"', '"entrypoint":"other"')
    assert (await check(world, invalid)).refusal == "template name 'other' undefined"
    assert (await check(world, LARGE + "}")).malformation


async def test_of_a_large_text_that_is_no_workflow_the_beginning_is_told(world: World) -> None:
    answer = await world.client.call("POST", "/runs", of("x" * 200_000))
    assert answer.status == 400
    assert answer.message == f"Invalid argo workflow format. Workflow: {'x' * 16_384}…"
