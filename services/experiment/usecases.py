"""The verbs of the experiment service. Knows rules and rows; knows neither HTTP nor what runs are."""

from __future__ import annotations

import uuid

from shared.bus import Bus
from shared.contracts import events
from shared.contracts.states import ExperimentId as PublicId
from shared.contracts.states import ExperimentState
from shared.contracts.states import StorageState as PublicStorageState
from shared.database import ConstraintViolated, Database, Transaction
from shared.errors import layer
from shared.idempotency import Keep, keep_nothing
from shared.identity import caller_subject
from shared.listing import ListRequest, Page
from shared.outbox import Outbox
from shared.subscriptions import until_published_and_applied

from . import domain, store
from .domain import Experiment, ExperimentId, StorageState

FOLLOWERS = ("run", "job-scheduler")
"""Who applies an experiment's facts to records that a client reads next."""


class Experiments:
    def __init__(self, database: Database, outbox: Outbox, bus: Bus, *, applied_wait_seconds: float) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._applied_wait_seconds = applied_wait_seconds

    async def create(self, name: str, description: str, keep: Keep[Experiment] = keep_nothing) -> Experiment:
        domain.check_name(name)
        experiment_id = ExperimentId(str(uuid.uuid4()))
        with layer("Create experiment failed."):
            try:
                async with self._database.transaction() as tx:
                    experiment = await self._insert(tx, experiment_id, name, description)
                    await keep(tx, experiment)
            except ConstraintViolated as violation:
                if violation.constraint == store.NAME_KEY:
                    raise domain.name_taken(name) from violation
                raise
            return experiment

    async def get(self, experiment_id: str) -> Experiment:
        experiment = await store.find(self._database, experiment_id)
        if experiment is None:
            raise domain.unknown(experiment_id)
        return experiment

    async def list(self, asked: ListRequest) -> Page[Experiment]:
        return await store.LISTING.page(self._database, store.LISTING.query(asked), store.to_experiment)

    async def get_default(self) -> Experiment:
        """The default experiment, made if there is none; one that is already called `Default` is adopted."""
        found = await store.find_default(self._database)
        if found is not None:
            return found
        async with self._database.transaction() as tx:
            await store.lock_default(tx)
            experiment = (
                await store.find_default(tx)
                or await store.find_by_name(tx, domain.DEFAULT_NAME)
                or await self._insert(
                    tx, ExperimentId(str(uuid.uuid4())), domain.DEFAULT_NAME, domain.DEFAULT_DESCRIPTION
                )
            )
            await store.set_default(tx, experiment.id)
            return experiment

    async def delete(self, experiment_id: str) -> None:
        """Nothing cascades: runs and jobs keep their reference to it (API specification, section 7, E4).

        Answers after nobody makes new ones in it any more, or after a bounded wait.
        """
        async with self._database.transaction() as tx:
            experiment = await store.delete(tx, experiment_id)
            if experiment is None:
                raise domain.unknown(experiment_id)
            fact_id = await self._outbox.add(tx, events.EXPERIMENT_DELETED, to_state(experiment, is_deleted=True))
        await self._until_followed(fact_id)

    async def archive(self, experiment_id: str) -> None:
        """Of one that is archived already, too: it takes the runs and jobs along that have come since."""
        await self._move(experiment_id, StorageState.ARCHIVED)

    async def unarchive(self, experiment_id: str) -> None:
        await self._move(experiment_id, StorageState.AVAILABLE)

    async def _move(self, experiment_id: str, state: StorageState) -> None:
        """Idempotent. Answers after its runs and jobs have followed, or after a bounded wait."""
        kind = events.EXPERIMENT_ARCHIVED if state is StorageState.ARCHIVED else events.EXPERIMENT_UNARCHIVED
        async with self._database.transaction() as tx:
            experiment = await store.set_storage_state(tx, experiment_id, state)
            if experiment is None:
                if await store.find(tx, experiment_id) is None:
                    raise domain.unknown(experiment_id)
                return
            fact_id = await self._outbox.add(tx, kind, to_state(experiment))
        await self._until_followed(fact_id)

    async def _until_followed(self, fact_id: uuid.UUID) -> None:
        await until_published_and_applied(
            self._bus, self._database, fact_id, FOLLOWERS, "experiment", within_seconds=self._applied_wait_seconds
        )

    async def _insert(self, tx: Transaction, experiment_id: ExperimentId, name: str, description: str) -> Experiment:
        experiment = await store.insert(tx, experiment_id, name, description, caller_subject())
        await self._outbox.add(tx, events.EXPERIMENT_CREATED, to_state(experiment))
        return experiment


def to_state(experiment: Experiment, *, is_deleted: bool = False) -> ExperimentState:
    return ExperimentState(
        id=PublicId(experiment.id),
        version=experiment.version,
        name=experiment.name,
        storage_state=PublicStorageState(experiment.storage_state),
        created_at=experiment.created_at,
        created_by=experiment.created_by,
        is_deleted=is_deleted,
    )
