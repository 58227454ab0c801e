"""Every SQL statement of the experiment service."""

from __future__ import annotations

from shared.database import Connection, Row, Transaction
from shared.listing import Column, Kind, Listing

from .domain import Experiment, ExperimentId, StorageState

NAME_KEY = "experiments_name_key"

LISTING = Listing(
    model="Experiment",
    table="experiments",
    columns="id, name, description, storage_state, version, created_by, created_at",
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "description": Column("description"),
        "namespace": Column("''::text"),  # There is one, and it has no name.
        "storage_state": Column(
            "storage_state",
            stored={
                "STORAGESTATE_AVAILABLE": StorageState.AVAILABLE.value,
                "STORAGESTATE_ARCHIVED": StorageState.ARCHIVED.value,
            },
        ),
    },
)


async def insert(
    tx: Transaction, experiment_id: ExperimentId, name: str, description: str, created_by: str
) -> Experiment:
    """Raises ConstraintViolated(NAME_KEY) where the name is taken."""
    row = await tx.fetchrow(
        """
        insert into experiments (id, name, description, created_by) values ($1, $2, $3, $4)
        returning id, name, description, storage_state, version, created_by, created_at
        """,
        experiment_id,
        name,
        description,
        created_by,
    )
    assert row is not None
    return to_experiment(row)


async def find(connection: Connection, experiment_id: str) -> Experiment | None:
    row = await connection.fetchrow(
        "select id, name, description, storage_state, version, created_by, created_at from experiments where id = $1",
        experiment_id,
    )
    return None if row is None else to_experiment(row)


async def find_by_name(tx: Transaction, name: str) -> Experiment | None:
    row = await tx.fetchrow(
        "select id, name, description, storage_state, version, created_by, created_at from experiments where name = $1",
        name,
    )
    return None if row is None else to_experiment(row)


async def set_storage_state(tx: Transaction, experiment_id: str, state: StorageState) -> Experiment | None:
    """The experiment as it is now; None where it is unknown, or was available already and should be.

    Archiving an archived one is another version of it.
    """
    row = await tx.fetchrow(
        """
        update experiments set storage_state = $2, version = version + 1
        where id = $1 and (storage_state <> $2 or $2 = 'archived')
        returning id, name, description, storage_state, version, created_by, created_at
        """,
        experiment_id,
        state.value,
    )
    return None if row is None else to_experiment(row)


async def delete(tx: Transaction, experiment_id: str) -> Experiment | None:
    row = await tx.fetchrow(
        """
        delete from experiments where id = $1
        returning id, name, description, storage_state, version + 1 as version, created_by, created_at
        """,
        experiment_id,
    )
    return None if row is None else to_experiment(row)


async def find_default(connection: Connection) -> Experiment | None:
    row = await connection.fetchrow(
        """
        select id, name, description, storage_state, version, created_by, created_at
        from experiments join default_experiment on experiment_id = id
        """
    )
    return None if row is None else to_experiment(row)


async def lock_default(tx: Transaction) -> None:
    await tx.execute("select 1 from default_experiment for update")


async def set_default(tx: Transaction, experiment_id: ExperimentId) -> None:
    await tx.execute("update default_experiment set experiment_id = $1", experiment_id)


def to_experiment(row: Row) -> Experiment:
    return Experiment(
        id=ExperimentId(row["id"]),
        name=row["name"],
        description=row["description"],
        storage_state=StorageState(row["storage_state"]),
        version=row["version"],
        created_by=row["created_by"],
        created_at=row["created_at"],
    )
