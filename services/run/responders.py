"""The question door of the run service."""

from __future__ import annotations

from shared.bus import Bus
from shared.contracts.questions import (
    CHECK_MANIFEST,
    GET_RUN,
    GET_RUN_VALUES,
    ById,
    ManifestAnswer,
    ManifestRequest,
)
from shared.contracts.states import RunState

from .usecases import Runs


async def answer_questions(bus: Bus, runs: Runs) -> None:
    async def get(question: ById) -> RunState:
        return await runs.get_state(question.id)

    async def check_manifest(question: ManifestRequest) -> ManifestAnswer:
        return await runs.check_manifest(question.manifest_digest, question.parameters)

    await bus.answer(GET_RUN, get)
    await bus.answer(GET_RUN_VALUES, runs.get_values)
    await bus.answer(CHECK_MANIFEST, check_manifest)
