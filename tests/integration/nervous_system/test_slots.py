"""Whatever happens to the replicas of the scheduler and to the servers behind them: each slot fires, and once.

Where it strikes is drawn from a seed, which a failure shows. HEADRACE_CHAOS_SEED repeats it, and
HEADRACE_CHAOS_KILLS asks for more.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.embedded.nats import NatsServer
from infra.embedded.postgres import Postgres
from services.job_scheduler.domain import Job, PeriodicTrigger
from shared.bus import Bus, declare_streams
from shared.contracts.events import JOB_TRIGGERED, RUN_CREATED, RUN_SUCCEEDED
from shared.contracts.states import JobId, RunState, RunStatus, TriggerState
from shared.database import Database, Transaction
from shared.errors import Unavailable
from shared.leases import Lease
from shared.migrate import migrate
from shared.outbox import Outbox, Relay
from shared.subscriptions import Done, Fact, Outcome, Subscriber
from tests.support import jobs
from tests.support.eventually import eventually
from tests.support.replica_process import ReplicaProcess
from tests.support.scheduler_process import Orders, scheduler_process

_FAULTS = int(os.environ.get("HEADRACE_CHAOS_KILLS", "3"))
_SEED = int(os.environ.get("HEADRACE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
_ROOT = Path(__file__).parents[3]
_JOBS = 12


@dataclass(kw_only=True)
class Schedules:
    """Replicas of the scheduler, and in place of the run service who makes runs that are over at once."""

    database: Database
    made: Database
    orders: Orders
    postgres: Postgres
    nats: NatsServer
    closing: AsyncExitStack
    replicas: list[ReplicaProcess] = field(default_factory=list)

    async def replica(self, **orders: Any) -> ReplicaProcess:
        replica = await self.closing.enter_async_context(
            scheduler_process(msgspec.structs.replace(self.orders, **orders))
        )
        self.replicas.append(replica)
        return replica

    async def fired(self) -> int:
        try:
            count: int = await self.database.fetchval("select coalesce(sum(last_index), 0)::bigint from jobs")
        except Unavailable:
            return 0
        return count

    async def fires_on(self, times: int = 1) -> None:
        """Slots come while it waits, unless there are no more."""
        before = await self.fired()

        async def is_on() -> bool:
            return await self.fired() >= before + times or await self.is_over()

        await eventually(is_on, within_seconds=40)

    async def is_over(self) -> bool:
        try:
            left: int = await self.database.fetchval(
                "select count(*) from jobs where next_slot_at is not null or active_runs > 0"
            )
        except Unavailable:
            return False
        return left == 0

    async def problems(self, expected: set[tuple[str, datetime]]) -> dict[str, int]:
        rows = await self.made.fetch("select job_id, slot from made")
        made = [(row["job_id"], row["slot"]) for row in rows]
        return {
            "due": len(expected),
            "fired": len(made),
            "missed": len(expected - set(made)),
            "doubled": len(made) - len(set(made)),
            "strange": len(set(made) - expected),
        }


@pytest.fixture
async def schedules(
    own_postgres: tuple[Postgres, dict[str, str]], own_nats: NatsServer, tmp_path: Path
) -> AsyncIterator[Schedules]:
    postgres, urls = own_postgres
    async with AsyncExitStack() as closing:
        opened: dict[str, Database] = {}
        for role in ("job_scheduler", "run"):
            opened[role] = await Database(urls[role], name="test").open()
            closing.push_async_callback(opened[role].close)
        await migrate(opened["job_scheduler"], _ROOT / "services" / "job_scheduler" / "migrations")
        (tmp_path / "nothing").mkdir()
        await migrate(opened["run"], tmp_path / "nothing")
        # Nothing in it is unique: what is made twice is seen twice.
        await opened["run"].execute("create table made (job_id text, slot timestamptz)")
        await declare_streams(own_nats.url("admin"))
        bus = await Bus(own_nats.url("run"), name="run").open()
        closing.push_async_callback(bus.close)
        outbox = Outbox("run", bus)

        async def make(tx: Transaction, fact: Fact[TriggerState]) -> Outcome:
            await tx.execute("insert into made (job_id, slot) values ($1, $2)", fact.state.id, fact.state.slot)
            for version, (kind, status) in enumerate(
                ((RUN_CREATED, RunStatus.NONE), (RUN_SUCCEEDED, RunStatus.SUCCEEDED)), start=1
            ):
                await outbox.add(tx, kind, _run(fact.state, version, status))
            return Done()

        lease = Lease(opened["run"], "relay:run", seconds=1)
        subscriber = Subscriber(
            "run", opened["run"], bus, {JOB_TRIGGERED: make}, lease_seconds=1, ack_wait_seconds=2, retry_seconds=0.1
        )
        tasks = [
            asyncio.create_task(Relay(opened["run"], bus, "run", lease=lease).run()),
            asyncio.create_task(subscriber.run()),
        ]
        yield Schedules(
            database=opened["job_scheduler"],
            made=opened["run"],
            orders=Orders(database_url=urls["job_scheduler"], nats_url=own_nats.url("job-scheduler")),
            postgres=postgres,
            nats=own_nats,
            closing=closing,
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run(trigger: TriggerState, version: int, status: RunStatus) -> RunState:
    return RunState(
        id=trigger.run_id,
        version=version,
        name=trigger.workflow_name,
        status=status,
        experiment_id=trigger.experiment_id,
        job_id=JobId(trigger.id),
        created_at=datetime.now(UTC),
        scheduled_at=trigger.slot,
    )


@pytest.mark.timeout(120 + 15 * _FAULTS)
@pytest.mark.parametrize("replicas", [2, 4])
async def test_whatever_happens_each_slot_fires_once(schedules: Schedules, replicas: int) -> None:
    chance = random.Random(_SEED)
    kinds = chance.sample(_KINDS, len(_KINDS))
    # However few, both numbers of replicas together meet all of them.
    faults = [kinds[(nth + replicas // 4 * _FAULTS) % len(kinds)] for nth in range(_FAULTS)]
    expected = _slots(await _begin(schedules, slots=6 + 2 * len(faults)))
    for _ in range(replicas):
        await schedules.replica()
    for fault in faults:
        await schedules.fires_on(chance.randrange(1, 2 * _JOBS))
        await fault(schedules, chance)

    assert await eventually(schedules.is_over, within_seconds=60)
    problems = await schedules.problems(expected)
    said = f"seed {_SEED}, {replicas} replicas, {[fault.__name__ for fault in faults]}: {problems}"
    print(said)
    assert problems == {"due": len(expected), "fired": len(expected), "missed": 0, "doubled": 0, "strange": 0}, said


async def _begin(schedules: Schedules, *, slots: int) -> list[Job]:
    """Half of what is due has been missed already, and is worked off beside what comes."""
    now: datetime = await schedules.database.fetchval("select date_trunc('second', clock_timestamp())")
    start = now - timedelta(seconds=slots // 2)
    return await jobs.insert(
        schedules.database,
        [
            jobs.job(nth, jobs.every(1, start=start, slots=slots), now, max_concurrency=1 + nth % 3)
            for nth in range(_JOBS)
        ],
    )


def _slots(inserted: list[Job]) -> set[tuple[str, datetime]]:
    expected = set()
    for job in inserted:
        trigger = job.trigger
        assert isinstance(trigger, PeriodicTrigger)
        assert trigger.starts_at is not None
        assert trigger.ends_at is not None
        slot = trigger.starts_at + timedelta(seconds=1)
        while slot <= trigger.ends_at:
            expected.add((str(job.id), slot))
            slot += timedelta(seconds=1)
    return expected


# What happens.


async def kill(schedules: Schedules, chance: random.Random) -> None:
    victim = schedules.replicas.pop(chance.randrange(len(schedules.replicas)))
    victim.send(signal.SIGKILL)
    await victim.died()
    await schedules.replica()


async def stop_for_a_while(schedules: Schedules, chance: random.Random) -> None:
    victim = chance.choice(schedules.replicas)
    victim.send(signal.SIGSTOP)
    await victim.stopped()
    await schedules.fires_on()
    victim.send(signal.SIGCONT)


async def kill_while_it_fires(schedules: Schedules, chance: random.Random) -> None:
    """One more replica, that dies of its first slot, before or after the commit."""
    victim = await schedules.replica(at=chance.choice(("before_commit", "after_commit")))
    schedules.replicas.remove(victim)
    await _until(schedules, victim.died())


async def stop_while_it_fires(schedules: Schedules, chance: random.Random) -> None:
    """It holds the rows of its jobs, until the database ends its transaction, and commits nothing when it wakes."""
    victim = await schedules.replica(at=chance.choice(("before_commit", "after_commit")), signal="SIGSTOP")
    await _until(schedules, victim.stopped(within_seconds=60))
    await schedules.fires_on()
    victim.send(signal.SIGCONT)


async def restart_the_database(schedules: Schedules, _: random.Random) -> None:
    await schedules.postgres.stop()
    await schedules.postgres.start()


async def take_the_broker_away(schedules: Schedules, _: random.Random) -> None:
    """Slots come until all room is taken; nothing that was told is lost."""
    await schedules.nats.stop()

    async def is_waiting() -> bool:
        waiting: int = await schedules.database.fetchval(
            "select count(*) from jobs where next_slot_at > clock_timestamp() or active_runs = max_concurrency "
            "or next_slot_at is null"
        )
        return waiting == _JOBS

    await eventually(is_waiting, within_seconds=40)
    await schedules.nats.start()


_KINDS = (
    kill,
    stop_for_a_while,
    kill_while_it_fires,
    stop_while_it_fires,
    restart_the_database,
    take_the_broker_away,
)


async def _until(schedules: Schedules, struck: Any) -> None:
    """Until it is so, or there is nothing left to fire for it."""
    striking = asyncio.ensure_future(struck)

    async def is_settled() -> bool:
        return striking.done() or await schedules.is_over()

    await eventually(is_settled, within_seconds=60)
    striking.cancel()
    await asyncio.gather(striking, return_exceptions=True)
