"""One run, from the client's request through facts and questions to the end of its step, as a collector sees it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.app import create_app as gateway_app
from gateway.settings import Settings as GatewaySettings
from services.metrics.app import create_app as metrics_app
from services.metrics.settings import Settings as MetricsSettings
from services.run import controller_app
from shared import tracing
from tests.component.run.conftest import V1, World, until
from tests.component.run.test_engine_settings import controller_settings
from tests.component.run.test_refusals import manifest
from tests.contract.engine.engines import runner_process
from tests.support.collector import Collected, collecting
from tests.support.service import serving

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENTS_SPAN = "00f067aa0ba902b7"


async def test_a_trace_leads_from_the_clients_request_to_the_end_of_the_step(
    world: World, nats_urls: dict[str, str], database_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = (world.client.base,)
    services = ("experiment", "pipeline_registry", "run", "job_scheduler", "metrics", "notifier")
    upstreams: dict[str, Any] = {f"{service}_upstreams": upstream for service in services}
    told = GatewaySettings(**upstreams)
    listening = MetricsSettings(database_url=database_urls["metrics"], nats_url=nats_urls["metrics"])
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with runner_process() as runner, tracing.exporting("house"):
            controlling = controller_app.create_app(controller_settings(world, nats_urls["run-controller"], runner))
            async with serving(gateway_app(told)) as gateway, serving(metrics_app(listening)), serving(controlling):
                container = {"image": "busybox", "command": ["sh", "-c", "exit 3"]}
                spec = manifest(spec={"entrypoint": "main", "templates": [{"name": "main", "container": container}]})
                answer = await gateway.call(
                    "POST",
                    f"{V1}/runs",
                    json={"name": "traced", "pipeline_spec": spec},
                    headers={"traceparent": f"00-{TRACE_ID}-{CLIENTS_SPAN}-01"},
                )
                assert answer.status == 200, answer.body
                run_id = answer.json["run"]["id"]

                async def is_told() -> bool:
                    seen = {span.name for span in collector.of_trace(TRACE_ID)}
                    return {"step", "publish run failed", "apply run created"} <= seen

                await until(is_told, within_seconds=60)

    def the(name: str) -> Collected:
        return next(span for span in collector.of_trace(TRACE_ID) if span.name == name)

    assert the("gateway request").parent_id == CLIENTS_SPAN
    assert the("run request").parent_id == the("gateway request").span_id
    assert the("run request").attributes["http.route"] == f"{V1}/runs"
    assert the("run request").attributes["http.response.status_code"] == "200"
    for name in ("publish run created", "apply run created", "submit run"):
        assert the(name).parent_id == the("run request").span_id, name
    step = the("step")
    # A controller that compares may submit once more, which is harmless.
    assert step.parent_id in {span.span_id for span in collector.of_trace(TRACE_ID) if span.name == "submit run"}
    assert (step.attributes["headrace.run_id"], step.attributes["headrace.phase"]) == (run_id, "Failed")
    assert step.has_failed
    asked = [span for span in collector.of_trace(TRACE_ID) if span.name.startswith("ask ")]
    answered = [span for span in collector.of_trace(TRACE_ID) if span.name.startswith("answer ")]
    assert asked, "creation asks for the default experiment"
    assert {span.parent_id for span in answered} <= {span.span_id for span in asked}
    known = {span.span_id for span in collector.of_trace(TRACE_ID)} | {CLIENTS_SPAN}
    assert {span.parent_id for span in collector.of_trace(TRACE_ID)} <= known, "no parent is missing"
    assert len(known) == len(collector.of_trace(TRACE_ID)) + 1
    row = await world.row(run_id)
    assert row["traceparent"][3:35] == TRACE_ID
