"""Copies fed by events move forward only."""

import msgspec

from shared import replica
from shared.contracts.states import ExperimentState, StorageState
from tests.integration.nervous_system.conftest import House
from tests.support.facts import LONG_AGO


def experiment(version: int, storage_state: StorageState = StorageState.AVAILABLE) -> ExperimentState:
    return ExperimentState(id="a", version=version, name="mill", storage_state=storage_state, created_at=LONG_AGO)


async def keep(house: House, state: ExperimentState, *, is_deleted: bool = False) -> bool:
    async with house.listener.transaction() as tx:
        return await replica.keep(tx, "experiment", state, is_deleted=is_deleted)


async def test_a_copy_takes_what_is_newer_and_refuses_what_is_not(house: House) -> None:
    assert await replica.find(house.listener, "experiment", "a", ExperimentState) is None
    newer = experiment(2, StorageState.ARCHIVED)
    assert await keep(house, newer)
    assert not await keep(house, experiment(1))
    assert not await keep(house, experiment(2))
    assert await replica.find(house.listener, "experiment", "a", ExperimentState) == newer
    assert await replica.find(house.listener, "pipeline", "a", ExperimentState) is None


async def test_of_copies_that_come_together_each_takes_the_last_that_is_newer(house: House) -> None:
    other = msgspec.structs.replace(experiment(1), id="b")
    assert await keep(house, experiment(2))
    async with house.listener.transaction() as tx:
        states = (experiment(3), other, experiment(4, StorageState.ARCHIVED))
        assert await replica.keep_all(tx, "experiment", states) == 2
        assert await replica.keep_all(tx, "experiment", (experiment(3), other)) == 0
    assert await replica.find(house.listener, "experiment", "a", ExperimentState) == states[2]
    assert await replica.find(house.listener, "experiment", "b", ExperimentState) == other


async def test_copies_of_several_kinds_are_found_at_once(house: House) -> None:
    await keep(house, experiment(2))
    async with house.listener.transaction() as tx:
        await replica.keep(tx, "version", experiment(1))
        await replica.keep(tx, "gone", experiment(1), is_deleted=True)
    identities = [("experiment", "a"), ("version", "a"), ("gone", "a"), ("experiment", "b")]
    found = await replica.find_all(house.listener, identities)
    assert [found.find(kind, identity, ExperimentState) for kind, identity in identities] == [
        experiment(2),
        experiment(1),
        None,
        None,
    ]
    assert found.find("version", "b", ExperimentState) is None


async def test_a_deleted_record_stays_deleted(house: House) -> None:
    assert await keep(house, experiment(2), is_deleted=True)
    for version in (1, 2, 3):
        assert not await keep(house, experiment(version))
    assert await replica.find(house.listener, "experiment", "a", ExperimentState) is None
