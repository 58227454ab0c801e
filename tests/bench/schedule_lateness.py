"""How late the runs of recurring runs are, with ten thousand of them; what a backlog takes, and what idleness costs.

The slots are real ones of a stack that stands: lateness is from the slot to the run's row, both by the database's
clock. Slots come at full seconds, so all of a second come at once. Further replicas of the scheduler are processes
beside the stack's own. No run is ever started.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import msgspec
import psutil

from services.job_scheduler.slots import Slots
from shared.bus import Bus
from shared.database import Database
from shared.outbox import Outbox
from tests.bench import processes
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.house import House, rest, standing
from tests.bench.processes import Meter
from tests.support.api import Api
from tests.support.scheduler_process import Orders, scheduler_process

NAME = "schedule-lateness"
ABOUT = "a recurring run from its slot to the committed run: 10,000 jobs; 1, 2 and 4 replicas"

_JOBS = 10_000
_INTERVAL_SECONDS = 40
_PER_SECOND = _JOBS // _INTERVAL_SECONDS
_SECONDS = 8
_REPLICAS = (1, 2, 4)
_BUDGET_MILLISECONDS = 250.0
_BATCH = 200
_IDLE_SECONDS = 4.0
_WITHIN_SECONDS = 60

_MANIFEST = msgspec.json.encode(
    {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "bench-"},
        "spec": {
            "entrypoint": "main",
            "arguments": {"parameters": [{"name": "slot", "value": ""}]},
            "templates": [{"name": "main", "container": {"image": "busybox", "command": ["true"]}}],
        },
    }
).decode()


class Schedules(msgspec.Struct, frozen=True, kw_only=True):
    house: House
    jobs: Database
    runs: Database
    template: str
    """The job that all others are copies of; it never fires itself."""


async def measure() -> Result:
    with standing() as house, house.engine_paused():
        async with _schedules(house) as schedules:
            idle_alone = await _idle(schedules)
            await _plant(schedules, every_seconds=10**6, due_in_seconds=10**6)
            idle = await _idle(schedules)
            meter = Meter()
            claimed, made = await _work_off(schedules, meter)
            late: dict[int, list[float]] = {}
            async with AsyncExitStack() as replicas:
                for count in _REPLICAS:
                    for _ in range(count - max(late, default=1)):
                        await replicas.enter_async_context(_replica(house))
                    late[count] = await _lateness(schedules)
    lateness = [
        Row(
            quantity=f"run of a slot, {_PER_SECOND}/s, {count} replica{'s' if count > 1 else ''}, {what}",
            unit=Unit.MILLISECONDS,
            figure=percentile([late[count]], percent),
            budget=_BUDGET_MILLISECONDS if percent == 99 else None,
        )
        for count in _REPLICAS
        for what, percent in (("p50", 50), ("p99", 99), ("max", 100))
    ]
    throughput = (
        Row(quantity=f"slots claimed, {_JOBS:,} due at once", unit=Unit.PER_SECOND, figure=median([claimed])),
        Row(quantity=f"runs made of {_JOBS:,} slots told at once", unit=Unit.PER_SECOND, figure=median([made])),
        Row(
            quantity=f"scheduler, a second of idling with {_JOBS:,} jobs",
            unit=Unit.MILLISECONDS,
            figure=median([idle]),
            floors=(Floor(what="the same without a job", reading=median([idle_alone])),),
        ),
    )
    notes = (
        f"lateness: {len(late[1])} slots of {_SECONDS} seconds, {_PER_SECOND} of them at each full second",
        f"a run of a backlog costs {meter.each(_JOBS)}",
    )
    return Result(rows=(*lateness, *throughput), notes=notes)


@asynccontextmanager
async def _schedules(house: House) -> AsyncIterator[Schedules]:
    jobs, runs = [
        await Database(house.database_url(role), name="bench", max_size=4).open() for role in ("job_scheduler", "run")
    ]
    try:
        template = await asyncio.to_thread(_template, house)
        yield Schedules(house=house, jobs=jobs, runs=runs, template=template)
    finally:
        await jobs.close()
        await runs.close()


def _template(house: House) -> str:
    body: dict[str, Any] = {
        "name": "bench",
        "max_concurrency": "10",
        "pipeline_spec": {
            "workflow_manifest": _MANIFEST,
            "parameters": [{"name": "slot", "value": "[[ScheduledTime]]"}],
        },
        "trigger": {"periodic_schedule": {"interval_second": "1000000"}},
    }
    answer = Api(house.url).call("POST", "/apis/v1beta1/jobs", body=msgspec.json.encode(body).decode())
    if answer.status != 200:
        raise RuntimeError(f"no job: {answer.body!r}")
    return str(answer.json["id"])


async def _plant(schedules: Schedules, *, every_seconds: int, due_in_seconds: int) -> None:
    """Instead of all others; the first slots of one interval are spread over its seconds, from a time from now on."""
    await schedules.jobs.execute("delete from jobs where id <> $1", schedules.template)
    await schedules.jobs.execute("delete from slots")
    await schedules.jobs.execute(
        """
        with copied as (
            select gen_random_uuid()::text as new_id, $5 || lpad(nth::text, 8, '0') as new_name,
                date_trunc('second', clock_timestamp()) + make_interval(secs => $3 + nth % least($2, 40)) as due, jobs.*
            from jobs, generate_series(1, $4) as nth where jobs.id = $1
        )
        insert into jobs (
            id, object_name, name, is_enabled, no_catchup, max_concurrency, trigger_kind, interval_seconds, starts_at,
            experiment_id, namespace, resource_references, service_account, parameters, manifest_digest, next_slot_at
        )
        select new_id, new_name, name, true, false, 10, 'periodic', $2, due - make_interval(secs => $2),
            experiment_id, namespace, resource_references, service_account, parameters, manifest_digest, due
        from copied
        """,
        schedules.template,
        every_seconds,
        due_in_seconds,
        _JOBS,
        # Their workflows are called by it, and by the index, which begins anew.
        f"bench{secrets.token_hex(4)}",
    )
    await schedules.jobs.execute("analyze jobs")


async def _idle(schedules: Schedules) -> float:
    """Milliseconds of a processor in a second."""
    scheduler = psutil.Process(_scheduler(schedules.house))
    await rest(1)
    before, begin = scheduler.cpu_times(), time.perf_counter()
    await rest(_IDLE_SECONDS)
    after = scheduler.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used * 1000 / (time.perf_counter() - begin)


async def _work_off(schedules: Schedules, meter: Meter) -> tuple[float, float]:
    """How many slots a second are claimed by one replica, and made into runs afterwards."""
    bus = await Bus(schedules.house.nats_url("job-scheduler"), name="bench").open()
    slots = Slots(schedules.jobs, Outbox("job-scheduler"), bus, ask_seconds=1)
    try:
        with _stopped(_scheduler(schedules.house)):
            await _plant(schedules, every_seconds=10**6, due_in_seconds=-100)
            begin = time.perf_counter()
            count = 0
            while fired := await slots.fire(_BATCH):
                count += fired
            claimed = count / (time.perf_counter() - begin)
        begin = time.perf_counter()
        with meter.running():
            await _until_made(schedules, count)
        return claimed, count / (time.perf_counter() - begin)
    finally:
        await bus.close()


async def _lateness(schedules: Schedules) -> list[float]:
    """In milliseconds, of all slots of some seconds."""
    await _plant(schedules, every_seconds=_INTERVAL_SECONDS, due_in_seconds=3)
    before: int = await schedules.runs.fetchval("select count(*) from runs")
    await rest(3 + _SECONDS)
    await schedules.jobs.execute("update jobs set is_enabled = false")
    fired: int = await schedules.jobs.fetchval("select count(*) from slots")
    await _until_made(schedules, before + fired)
    rows = await schedules.runs.fetch(
        """
        select extract(epoch from created_at - scheduled_at)::float8 * 1000 as late from runs
        order by created_at desc limit $1
        """,
        fired,
    )
    return [row["late"] for row in rows]


async def _until_made(schedules: Schedules, count: int) -> None:
    async with asyncio.timeout(_WITHIN_SECONDS):
        while await schedules.runs.fetchval("select count(*) from runs") < count:  # noqa: ASYNC110 - rows tell nobody
            await asyncio.sleep(0.1)


def _scheduler(house: House) -> int:
    (found,) = (each for each in processes.family(house.pid) if each.name == "job-scheduler")
    return found.pid


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _replica(house: House) -> Any:
    return scheduler_process(
        Orders(database_url=house.database_url("job_scheduler"), nats_url=house.nats_url("job-scheduler"))
    )
