"""The question door of the experiment service."""

from __future__ import annotations

from shared.bus import Bus
from shared.contracts.questions import GET_DEFAULT_EXPERIMENT, GET_EXPERIMENT, ById, Nothing
from shared.contracts.states import ExperimentState

from .usecases import Experiments, to_state


async def answer_questions(bus: Bus, experiments: Experiments) -> None:
    async def get(question: ById) -> ExperimentState:
        return to_state(await experiments.get(question.id))

    async def get_default(_: Nothing) -> ExperimentState:
        return to_state(await experiments.get_default())

    await bus.answer(GET_EXPERIMENT, get)
    await bus.answer(GET_DEFAULT_EXPERIMENT, get_default)
