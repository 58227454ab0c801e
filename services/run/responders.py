"""The question door of the run service."""

from __future__ import annotations

from shared.bus import Bus
from shared.contracts.questions import GET_RUN, ById
from shared.contracts.states import RunState

from .usecases import Runs


async def answer_questions(bus: Bus, runs: Runs) -> None:
    async def get(question: ById) -> RunState:
        return await runs.get_state(question.id)

    await bus.answer(GET_RUN, get)
