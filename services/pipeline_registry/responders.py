"""The question door of the pipeline registry."""

from __future__ import annotations

from shared.bus import Bus
from shared.contracts.questions import (
    GET_DEFAULT_VERSION,
    GET_VERSION,
    ById,
    Parameter,
    VersionAnswer,
    VersionRequest,
)
from shared.contracts.states import PipelineId, PipelineVersionId

from .domain import Pipeline, Version
from .usecases import Pipelines


async def answer_questions(bus: Bus, pipelines: Pipelines) -> None:
    async def get_version(question: VersionRequest) -> VersionAnswer:
        version = await pipelines.get_version(question.version_id, of_pipeline=question.pipeline_id)
        described = await pipelines.get(version.pipeline_id)
        return _answer(described.pipeline, version)

    async def get_default_version(question: ById) -> VersionAnswer:
        return _answer(*await pipelines.get_default_version(question.id))

    await bus.answer(GET_VERSION, get_version)
    await bus.answer(GET_DEFAULT_VERSION, get_default_version)


def _answer(pipeline: Pipeline, version: Version) -> VersionAnswer:
    return VersionAnswer(
        version_id=PipelineVersionId(version.id),
        version_name=version.name,
        pipeline_id=PipelineId(pipeline.id),
        pipeline_name=pipeline.name,
        manifest_digest=version.manifest_digest,
        parameters=tuple(Parameter(name=given.name, value=given.value) for given in version.parameters),
    )
