"""Any history of schedules, clocks, crashes and ends against a model that is simple enough to be believed.

The store is the real one, and its clock is moved: in front of the database's own stands one that reads a table. The
model knows slots as the seconds of a calendar that match, and nothing of next ones, bases and indexes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

import services.job_scheduler
from services.job_scheduler.domain import CronTrigger, Job, OneOff, PeriodicTrigger
from services.job_scheduler.slots import Slots
from shared.bus import Bus
from shared.contracts.states import ExperimentId, JobId, RunState, TriggerState
from shared.database import Database, Transaction
from shared.migrate import migrate
from shared.outbox import Outbox
from tests.support import jobs

BIRTH = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
_MIGRATIONS = Path(services.job_scheduler.__file__).parent / "migrations"


# What may be the case, and what may happen.


class Cron(msgspec.Struct, frozen=True):
    """Every so many seconds of a minute, or every so many minutes of an hour."""

    step: int
    unit: Literal["second", "minute"]

    @property
    def text(self) -> str:
        return f"*/{self.step} * * * * *" if self.unit == "second" else f"0 */{self.step} * * * *"

    def matches(self, at: datetime) -> bool:
        if self.unit == "second":
            return at.second % self.step == 0
        return at.second == 0 and at.minute % self.step == 0


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    what: int | Cron | None
    """An interval in seconds, an expression, or nothing at all."""
    start: int | None
    """In seconds from the birth, as the end."""
    end: int | None
    no_catchup: bool
    is_enabled: bool
    max_concurrency: int


class Tick(msgspec.Struct, frozen=True):
    seconds: float


class Fire(msgspec.Struct, frozen=True):
    limit: int
    replicas: int
    crash: Literal["before the commit", "after the commit"] | None


class End(msgspec.Struct, frozen=True):
    nth: int
    times: int


class Retry(msgspec.Struct, frozen=True):
    nth: int


class Switch(msgspec.Struct, frozen=True):
    job: int


Happening = Tick | Fire | End | Retry | Switch

schedules = st.builds(
    Schedule,
    what=st.one_of(
        st.integers(7, 30),
        st.integers(10, 90),
        st.builds(Cron, st.sampled_from([7, 15, 20, 30]), st.just("second")),
        st.builds(Cron, st.sampled_from([1, 2]), st.just("minute")),
        st.none(),
    ),
    start=st.one_of(st.none(), st.integers(-100, 100)),
    end=st.one_of(st.none(), st.none(), st.integers(-50, 300)),
    no_catchup=st.sampled_from([False, False, True]),
    is_enabled=st.sampled_from([True, True, False]),
    max_concurrency=st.sampled_from([3, 1, 2, 10]),
)
happenings = st.one_of(
    st.builds(Tick, st.sampled_from([30.0, 61.0, 10.0, 7.5, 1.0, -1.0, -20.0])),
    st.builds(Tick, st.just(10.0)),
    st.builds(
        Fire,
        st.integers(1, 4),
        st.integers(1, 2),
        st.sampled_from([None, None, "before the commit", "after the commit"]),
    ),
    st.builds(End, st.integers(0, 30), st.sampled_from([2, 1])),
    st.builds(Retry, st.integers(0, 30)),
    st.builds(Switch, st.integers(0, 3)),
)
histories = st.tuples(
    st.lists(schedules, min_size=2, max_size=3),
    st.lists(happenings, min_size=8, max_size=20),
    st.sampled_from([150.0, 0.0]),
)


# The model.


class Expected:
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.base = BIRTH if schedule.start is None else BIRTH + timedelta(seconds=schedule.start)

    def slots_until(self, now: datetime) -> list[datetime]:
        what = self.schedule.what
        if what is None:
            return [BIRTH] if now >= BIRTH else []
        until = now if self.schedule.end is None else min(now, BIRTH + timedelta(seconds=self.schedule.end))
        seconds = range(1, max(0, int((until - self.base).total_seconds())) + 1)
        each = ((second, self.base + timedelta(seconds=second)) for second in seconds)
        return [at for second, at in each if (what.matches(at) if isinstance(what, Cron) else second % what == 0)]

    def check(self, fired: list[datetime], latest: datetime, now: datetime) -> None:
        """After everything that could fire at `now` has, and `latest` was the latest time that there ever was."""
        assert fired == sorted(set(fired)), "out of order, or doubled"
        if isinstance(self.schedule.what, int) and self.schedule.no_catchup:
            # The slot that stands for all that were missed is the moment itself, and the next is counted from there.
            gaps = [after - before for before, after in pairwise(fired)]
            assert all(gap >= timedelta(seconds=self.schedule.what) for gap in gaps), "too early"
            assert bool(fired) == bool(self.slots_until(now)) or latest > now
            return
        due, ever_due = self.slots_until(now), self.slots_until(latest)
        if self.schedule.no_catchup:
            assert set(fired) <= set(ever_due), "no slot of this schedule"
            assert fired[-1:] == due[-1:] or fired[-1] > now, "the last slot stands for all"
        else:
            assert fired == ever_due[: len(fired)], "a slot was passed over, or is none of this schedule"
            assert len(fired) >= len(due), "missed"


# The world.


class Crash(Exception):
    pass


class Replica(Slots):
    crash: str | None = None

    async def fire(self, limit: int) -> int:
        fired = await super().fire(limit)
        if self.crash == "after the commit":
            raise Crash
        return fired

    async def write(self, tx: Transaction, now: datetime, planned: Any) -> None:
        await super().write(tx, now, planned)
        if self.crash == "before the commit":
            raise Crash


class History:
    def __init__(self, database: Database, replicas: list[Replica]) -> None:
        self._database = database
        self._replicas = replicas
        self._now = self._latest = BIRTH
        self._versions: dict[str, int] = {}
        self._alive: list[TriggerState] = []
        self._over: list[TriggerState] = []
        self._seen = 0

    async def live(self, schedules: list[Schedule], happenings: list[Happening], later: float) -> None:
        await self._database.execute("truncate jobs, slots, outbox")
        await self._set_clock()
        inserted = await jobs.insert(self._database, [_job(nth, each) for nth, each in enumerate(schedules)])
        for happening in happenings:
            await self._happen(happening, inserted)
        await self._happen(Tick(later), inserted)
        await self._settle()
        for job, schedule in zip(inserted, schedules, strict=True):
            rows = await self._database.fetch("select slot, index from slots where job_id = $1 order by index", job.id)
            assert [row["index"] for row in rows] == list(range(1, len(rows) + 1))
            event(f"slots: {min(len(rows), 5)}")
            Expected(schedule).check([row["slot"] for row in rows], self._latest, self._now)
        told = await self._database.fetchval("select count(*) from outbox where what = 'triggered'")
        assert told == await self._database.fetchval("select count(*) from slots")

    async def _happen(self, happening: Happening, inserted: list[Job]) -> None:
        match happening:
            case Tick(seconds):
                self._now += timedelta(seconds=seconds)
                self._latest = max(self._latest, self._now)
                await self._set_clock()
            case Fire(limit, replicas, crash):
                await self._fire(limit, self._replicas[:replicas], crash)
            case End(nth, times) if self._alive:
                trigger = self._alive.pop(nth % len(self._alive))
                self._over.append(trigger)
                await self._tell(trigger, "free", times)
            case Retry(nth) if self._over:
                trigger = self._over.pop(nth % len(self._over))
                self._alive.append(trigger)
                await self._tell(trigger, "occupy", 1)
            case Switch(nth):
                job = inserted[nth % len(inserted)]
                await self._database.execute("update jobs set is_enabled = not is_enabled where id = $1", job.id)

    async def _settle(self) -> None:
        """Until nothing is due: everything is enabled, and every run ends."""
        await self._database.execute("update jobs set is_enabled = true")
        while await self._fire(100, self._replicas[:1], None) or self._alive:
            while self._alive:
                await self._happen(End(0, 1), [])

    async def _fire(self, limit: int, replicas: list[Replica], crash: str | None) -> int:
        before = await self._active()
        replicas[0].crash = crash
        outcomes = await asyncio.gather(*(each.fire(limit) for each in replicas), return_exceptions=True)
        replicas[0].crash = None
        for outcome in outcomes:
            assert isinstance(outcome, int | Crash), outcome
        await self._hear()
        active, most = await self._active(), {job_id: most for job_id, _, most in await self._rows()}
        assert all(count <= max(most[job_id], before[job_id]) for job_id, count in active.items()), "too many alive"
        for job_id, count in active.items():
            assert count == sum(each.id == job_id for each in self._alive)
        return sum(outcome for outcome in outcomes if isinstance(outcome, int))

    async def _hear(self) -> None:
        rows = await self._database.fetch(
            "select seq, body from outbox where what = 'triggered' and seq > $1 order by seq", self._seen
        )
        for row in rows:
            self._seen = row["seq"]
            self._alive.append(msgspec.json.decode(row["body"], type=TriggerState))

    async def _tell(self, trigger: TriggerState, verb: Literal["free", "occupy"], times: int) -> None:
        version = self._versions[trigger.run_id] = self._versions.get(trigger.run_id, 0) + 1
        run = RunState(
            id=trigger.run_id,
            version=version,
            name="",
            experiment_id=ExperimentId("e"),
            job_id=JobId(trigger.id),
            created_at=BIRTH,
            scheduled_at=trigger.slot,
        )
        for _ in range(times):
            async with self._database.transaction() as tx:
                await getattr(self._replicas[0], verb)(tx, run)

    async def _active(self) -> dict[str, int]:
        return {job_id: active for job_id, active, _ in await self._rows()}

    async def _rows(self) -> list[tuple[str, int, int]]:
        rows = await self._database.fetch("select id, active_runs, max_concurrency from jobs")
        return [(row["id"], row["active_runs"], row["max_concurrency"]) for row in rows]

    async def _set_clock(self) -> None:
        await self._database.execute("update moved_clock set at = $1", self._now)


def _job(nth: int, schedule: Schedule) -> Job:
    start, end = (
        None if seconds is None else BIRTH + timedelta(seconds=seconds) for seconds in (schedule.start, schedule.end)
    )
    fields = {
        "no_catchup": schedule.no_catchup,
        "is_enabled": schedule.is_enabled,
        "max_concurrency": schedule.max_concurrency,
    }
    match schedule.what:
        case None:
            return jobs.job(nth, OneOff(), BIRTH, **fields)
        case Cron() as cron:
            return jobs.job(nth, CronTrigger(cron=cron.text, starts_at=start, ends_at=end), BIRTH, **fields)
        case int(seconds):
            trigger = PeriodicTrigger(interval_seconds=seconds, starts_at=start, ends_at=end)
            return jobs.job(nth, trigger, BIRTH, **fields)


@pytest.fixture
async def history_of(database_urls: Mapping[str, str]) -> AsyncIterator[tuple[Database, list[Replica]]]:
    url = database_urls["job_scheduler"]
    database = await Database(url, name="setting up").open()
    await migrate(database, _MIGRATIONS)
    await database.execute(
        """
        create table moved_clock (at timestamptz not null);
        insert into moved_clock values (now());
        create function clock_timestamp() returns timestamptz language sql volatile as 'select at from moved_clock';
        """
    )
    await database.close()
    moved = f"{url}?search_path=job_scheduler,pg_catalog,extensions"
    databases = [await Database(moved, name="replica", max_size=2).open() for _ in range(2)]
    # It is never opened, and says nothing to anybody.
    bus = Bus("nats://nobody", name="replica")
    replicas = [Replica(each, Outbox("job-scheduler"), bus, ask_seconds=1) for each in databases]
    yield databases[0], replicas
    for each in databases:
        await each.close()


@settings(
    max_examples=40,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=histories)
async def test_any_history_fires_what_the_model_expects(
    history_of: tuple[Database, list[Replica]], history: tuple[list[Schedule], list[Happening], float]
) -> None:
    await History(*history_of).live(*history)
