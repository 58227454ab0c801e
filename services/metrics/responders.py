"""The question door of the metrics service."""

from __future__ import annotations

from shared.bus import Bus
from shared.contracts.questions import REPORT_METRICS, ReportAnswer, ReportRequest

from .domain import Format, Metric
from .usecases import Metrics


async def answer_questions(bus: Bus, metrics: Metrics) -> None:
    async def report(question: ReportRequest) -> ReportAnswer:
        """The asker waits by itself for what it wants to be seen, by the position of the answer."""
        given = [
            Metric(node_id=one.node_id, name=one.name, number=one.number, format=Format(one.format.value))
            for one in question.metrics
        ]
        done = await metrics.report(question.run_id, given, until_seen=False)
        return ReportAnswer(
            outcomes=tuple((outcome.status.value, outcome.message) for outcome in done.outcomes),
            position=done.position,
        )

    await bus.answer(REPORT_METRICS, report)
