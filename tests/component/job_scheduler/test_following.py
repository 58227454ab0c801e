from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from services.job_scheduler.app import create_app
from services.job_scheduler.settings import Settings
from services.job_scheduler.subscribers import EXPERIMENT
from shared import replica
from shared.contracts.events import EXPERIMENT_ARCHIVED, EXPERIMENT_CREATED, EXPERIMENT_DELETED
from shared.contracts.states import ExperimentState, StorageState
from shared.database import Database
from tests.support.peers import Peer, open_buses
from tests.support.service import V1, serving

LONG_AGO = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


def state(
    version: int, storage_state: StorageState = StorageState.AVAILABLE, *, is_deleted: bool = False
) -> ExperimentState:
    return ExperimentState(
        id="e", version=version, name="mine", storage_state=storage_state, created_at=LONG_AGO, is_deleted=is_deleted
    )


async def test_it_follows_experiments_and_says_how_far(
    database_urls: Mapping[str, str], nats_urls: Mapping[str, str]
) -> None:
    settings = Settings(database_url=database_urls["job_scheduler"], nats_url=nats_urls["job-scheduler"])
    buses = await open_buses(nats_urls, "experiment")
    experiments = Peer("experiment", buses["experiment"])
    async with serving(create_app(settings)) as client:
        assert (await client.call("GET", "/readyz")).status == 200
        database = await Database(settings.database_url, name="test").open()
        await experiments.tell(EXPERIMENT_CREATED, state(1))
        archived = state(2, StorageState.ARCHIVED)
        await experiments.tell(EXPERIMENT_ARCHIVED, archived)
        await experiments.until_applied_by("job-scheduler")
        assert await replica.find(database, EXPERIMENT, "e", ExperimentState) == archived
        await experiments.tell(EXPERIMENT_DELETED, state(3, is_deleted=True))
        await experiments.until_applied_by("job-scheduler")
        assert await replica.find(database, EXPERIMENT, "e", ExperimentState) is None
        await database.close()
    await buses["experiment"].close()


async def test_it_has_no_route_of_the_api_yet(database_urls: Mapping[str, str], nats_urls: Mapping[str, str]) -> None:
    settings = Settings(database_url=database_urls["job_scheduler"], nats_url=nats_urls["job-scheduler"])
    async with serving(create_app(settings)) as client:
        answer = await client.call("GET", f"{V1}/jobs")
        assert (answer.status, answer.body) == (404, b"Not Found\n")
