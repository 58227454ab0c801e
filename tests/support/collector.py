"""A collector of spans that takes OTLP over HTTP, as far as a test needs one."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from infra.embedded.ports import LOOPBACK, free_ports


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    process: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first of a trace."""
    attributes: dict[str, str]
    has_failed: bool
    seconds: float


class Collector:
    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Collected] = []

    def of_trace(self, trace_id: str) -> list[Collected]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def parent_of(self, span: Collected) -> Collected:
        (parent,) = {each.span_id: each for each in self.spans if each.span_id == span.parent_id}.values()
        return parent

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for span in (span for scope in of_resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Collected(
                        process=about["service.name"],
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        attributes={
                            each.key: each.value.string_value or str(each.value.int_value) for each in span.attributes
                        },
                        has_failed=span.status.code == 2,
                        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    )
                )
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


@contextmanager
def collecting() -> Iterator[Collector]:
    """In a thread of its own: an exporter hands over what is left while the test's loop waits for it."""
    (port,) = free_ports(1)
    collector = Collector(f"http://{LOOPBACK}:{port}")
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_forever)
    serving.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/traces", collector.take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, port).start()
        return runner

    try:
        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        yield collector
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        serving.join()
        loop.close()
