"""The question door of the job scheduler."""

from __future__ import annotations

from shared.bus import Bus
from shared.contracts.questions import GET_JOB, ById
from shared.contracts.states import JobState

from .usecases import Jobs


async def answer_questions(bus: Bus, jobs: Jobs) -> None:
    async def get(question: ById) -> JobState:
        return await jobs.get_state(question.id)

    await bus.answer(GET_JOB, get)
