"""The verbs of jobs that runs trigger: an end of a run is noted once for each job, and makes one run as there is room.

What a run hands over is asked of its owner before the transaction opens; the transaction decides anew, and makes what
was asked for. So any number of replicas may do all of it at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime

import msgspec

from shared import replica
from shared.bus import Bus
from shared.contracts.questions import GET_RUN_VALUES, ValuesRequest
from shared.contracts.states import PipelineVersionState, RunId, RunState
from shared.database import Database, Transaction
from shared.errors import InvalidInput, NotFound, Unavailable

from . import causes, domain, firing, store
from .causes import Cause, Handover
from .domain import Ending, Job, Parameter
from .firing import Plan
from .slots import Slots, count_slots
from .usecases import wake_tickers

CAUSES_KEPT = 1000
"""How many causes of a job are remembered beyond those that wait. What is told twice is known by the cursor, too."""

_log = logging.getLogger(__name__)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a cause hands over to a job with these parameters, or why it makes nothing."""

    parameters: tuple[Parameter, ...]
    handover: Handover | None = None
    refusal: str = ""


Key = tuple[str, str, int]
"""Job, run and attempt."""


class Reactions:
    def __init__(self, database: Database, bus: Bus, slots: Slots, *, longest_chain: int, ask_seconds: float) -> None:
        self._database = database
        self._bus = bus
        self._slots = slots
        self._longest_chain = longest_chain
        self._ask_seconds = ask_seconds

    async def keep_version(self, tx: Transaction, version: PipelineVersionState) -> None:
        await replica.keep(tx, store.PIPELINE_VERSION, version, is_deleted=version.is_deleted)

    async def note(self, tx: Transaction, run: RunState, ending: Ending, told_at: datetime) -> None:
        """A run has ended. Harmless where that was noted before."""
        if await store.insert_causes(tx, run, ending, told_at):
            tx.after_commit(self._wake)

    async def fire(self, limit: int) -> int:
        """Make runs of what has triggered at most so many jobs. Returns of how many jobs something was made."""
        jobs = await store.list_caused(self._database, limit)
        if not jobs:
            return 0
        answers: dict[Key, Answer] = {}
        for of_job in await asyncio.gather(*(self._ask_for(job) for job in jobs)):
            answers |= of_job
        async with self._database.transaction() as tx:
            now, locked = await store.lock_caused(tx, [job.id for job in jobs])
            planned = [(job, plan) for job in locked if (plan := await self._planned(tx, job, now, answers))]
            if planned:
                await self._slots.write(tx, now, planned)
            for job, plan in planned:
                if plan.error:
                    await store.set_error(tx, job.id, plan.error)
        for _, plan in planned:
            count_slots("run", plan)
        return len(planned)

    async def _planned(self, tx: Transaction, job: Job, now: datetime, answers: Mapping[Key, Answer]) -> Plan | None:
        choice = causes.choose(job, await store.list_causes(tx, job.id), now)
        # Somebody may have changed the parameters meanwhile: then it is their turn in the next round.
        ready = [
            (cause, answer)
            for cause in choice.fires
            if (answer := answers.get(_key(job, cause))) and answer.parameters == job.parameters
        ]
        refused = [(cause, answer.refusal) for cause, answer in ready if answer.refusal]
        settled = [*choice.passed_over, *(cause for cause, _ in ready)]
        if not settled:
            return None
        await store.settle_causes(tx, job.id, settled, CAUSES_KEPT)
        return firing.plan_caused(
            job,
            [answer.handover for _, answer in ready if answer.handover is not None],
            passed_over=[(cause, domain.passed_over(cause.run.id)) for cause in choice.passed_over],
            refused=refused,
        )

    async def _ask_for(self, job: Job) -> dict[Key, Answer]:
        """What the causes hand over that are to fire now, but for those of which nobody answers."""
        now = await store.now(self._database)
        answers: dict[Key, Answer] = {}
        for cause in causes.choose(job, await store.list_causes(self._database, job.id), now).fires:
            try:
                answer = Answer(parameters=job.parameters, handover=await self._handover(job, cause))
            except Unavailable as error:
                _log.debug("job %s waits for what run %s hands over: %s", job.id, cause.run.id, error)
                break
            except (InvalidInput, NotFound) as refusal:
                why = domain.not_triggered(cause.run.id, refusal.message)
                answer = Answer(parameters=job.parameters, refusal=why)
            except Exception as error:  # noqa: BLE001 - a bug with one of them must not stop all
                _log.exception("job %s cannot be triggered by run %s", job.id, cause.run.id)
                why = domain.not_triggered(cause.run.id, f"What it hands over cannot be told: {error!r}")
                answer = Answer(parameters=job.parameters, refusal=why)
            answers[_key(job, cause)] = answer
        return answers

    async def _handover(self, job: Job, cause: Cause) -> Handover:
        """Raises InvalidInput and NotFound where something is missing, and Unavailable."""
        run = cause.run
        domain.check_depth(run.trigger_depth + 1, self._longest_chain)
        wanted = causes.wanted_by(job.parameters)
        handover = Handover(cause=cause)
        if wanted.outputs or wanted.metrics:
            request = ValuesRequest(
                run_id=RunId(run.id), attempt=run.attempt, outputs=wanted.outputs, metrics=wanted.metrics
            )
            answer = await self._bus.ask(GET_RUN_VALUES, request, within_seconds=self._ask_seconds)
            handover = Handover(
                cause=cause,
                outputs=dict(zip(wanted.outputs, answer.outputs, strict=True)),
                metrics=dict(zip(wanted.metrics, answer.metrics, strict=True)),
            )
        filled = tuple(Parameter(name=each.name, value=handover.into(each.value)) for each in job.parameters)
        domain.check_parameters_size(filled)
        domain.check_can_be_kept(filled)
        return handover

    async def _wake(self) -> None:
        await wake_tickers(self._bus)


def _key(job: Job, cause: Cause) -> Key:
    return job.id, cause.run.id, cause.run.attempt
