"""What experiments do to jobs (API specification, section 7, E4 and E5)."""

from __future__ import annotations

from shared import replica
from shared.contracts import events
from shared.contracts.states import ExperimentState, StorageState
from tests.component.job_scheduler.conftest import JOB, World, experiment_state, reference

LONG_AGO = "2000-01-01T00:00:00Z"


async def test_an_archived_experiment_disables_its_jobs_and_gives_none_back(world: World) -> None:
    for experiment_id in ("mine", "other"):
        world.peers.has_experiment(experiment_id, experiment_id)
    mine = [reference("EXPERIMENT", "mine")]
    enabled = [(await world.create(enabled=True, resource_references=mine))["id"] for _ in range(3)]
    disabled = (await world.create(resource_references=mine))["id"]
    stranger = (await world.create(enabled=True, resource_references=[reference("EXPERIMENT", "other")]))["id"]
    await world.database.execute("update jobs set updated_at = $1::text::timestamptz", LONG_AGO)

    for version in (2, 3):  # The second one finds nothing left to do.
        archived = experiment_state("mine", version=version, storage_state=StorageState.ARCHIVED)
        await world.peers.experiment.tell(events.EXPERIMENT_ARCHIVED, archived)
        await world.peers.experiment.until_applied_by("job-scheduler")
        jobs = [await world.get(job_id) for job_id in enabled]
        assert [(job.get("enabled"), job["status"]) for job in jobs] == [(None, "Disabled")] * 3
        assert all(job["updated_at"] > LONG_AGO for job in jobs)
        assert [await world.facts(job_id) for job_id in enabled] == [["created", "disabled"]] * 3
    assert (await world.get(disabled))["updated_at"] == LONG_AGO
    assert await world.facts(disabled) == ["created"]
    assert (await world.get(stranger))["enabled"]

    await world.peers.experiment.tell(events.EXPERIMENT_UNARCHIVED, experiment_state("mine", version=4))
    await world.peers.experiment.until_applied_by("job-scheduler")
    assert "enabled" not in await world.get(enabled[0])


async def test_an_archived_experiment_takes_new_jobs_and_lets_jobs_be_enabled(world: World) -> None:
    archived = experiment_state("mine", "mine", storage_state=StorageState.ARCHIVED)
    await world.peers.experiment.tell(events.EXPERIMENT_ARCHIVED, archived)
    await world.peers.experiment.until_applied_by("job-scheduler")
    job = await world.create(resource_references=[reference("EXPERIMENT", "mine")])
    await world.client.post(f"/jobs/{job['id']}/enable")
    assert (await world.get(job["id"]))["enabled"]


async def test_a_deleted_experiment_leaves_its_jobs_and_their_reference(world: World) -> None:
    await world.peers.experiment.tell(events.EXPERIMENT_CREATED, experiment_state("mine", "mine"))
    await world.peers.experiment.until_applied_by("job-scheduler")
    mine = [reference("EXPERIMENT", "mine")]
    job = await world.create(enabled=True, resource_references=mine)

    await world.peers.experiment.tell(events.EXPERIMENT_DELETED, experiment_state("mine", version=2, is_deleted=True))
    await world.peers.experiment.until_applied_by("job-scheduler")

    assert await replica.find(world.database, "experiment", "mine", ExperimentState) is None
    again = await world.get(job["id"])
    assert again["enabled"]
    assert again["resource_references"][0]["name"] == "mine"
    by_experiment = {"resource_reference_key.type": "EXPERIMENT", "resource_reference_key.id": "mine"}
    assert len((await world.client.get("/jobs", **by_experiment))["jobs"]) == 1
    status, _ = await world.client.refused("POST", "/jobs", {**JOB, "resource_references": mine})
    assert status == 404
