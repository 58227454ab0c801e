"""The gateway as a process of its own: its memory while large bodies pass, and a rolling restart behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.gateway.house import WITHIN_SECONDS, House, refusing_url

MIB = 1024 * 1024

GATEWAY_SOURCE = """
from gateway.app import create_app
from gateway.settings import Settings
from shared.settings import load
from shared.web import run_server

settings = load(Settings)
run_server(create_app(settings), host=settings.listen_host, port=settings.listen_port)
"""

SERVICE_SOURCE = """
import os

from litestar import Response

from shared.web import create_app, post, run_server


@post("/apis/v1beta1/runs")
async def create_run() -> Response[bytes]:
    return Response(b"{}", status_code=200)


run_server(create_app(service="run", routes=[create_run]), host="127.0.0.1", port=int(os.environ["PORT"]))
"""


@contextmanager
def process(source: str, url: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that serves at `url`."""
    child = subprocess.Popen([sys.executable, "-c", source], env=os.environ | environment)
    try:
        _await_ready(url, child)
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise


def _await_ready(url: str, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 3 * WITHIN_SECONDS
    with httpx.Client(base_url=url) as client:
        while not _is_ready(client):
            assert child.poll() is None, f"it ended with {child.returncode}"
            assert time.monotonic() < deadline, "it did not become ready"
            time.sleep(0.05)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _port(url: str) -> str:
    return url.rpartition(":")[2]


@contextmanager
def gateway_process(*upstreams: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    url = refusing_url()
    services = ("EXPERIMENT", "PIPELINE_REGISTRY", "RUN", "JOB_SCHEDULER", "METRICS", "NOTIFIER")
    environment = {f"HEADRACE_{service}_UPSTREAMS": ",".join(upstreams) for service in services}
    with process(GATEWAY_SOURCE, url, HEADRACE_LISTEN_PORT=_port(url), **environment) as child:
        yield url, child


def _largest_memory_bytes(pid: int) -> int:
    """The most this process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


class LargeBodies:
    """Answers a GET with 200 MiB as fast as it is taken, and counts the bytes of anything sent to it."""

    received_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                self.received_bytes += len(message.get("body", b""))
                more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["method"] == "GET":
            block = b"x" * MIB
            for _ in range(200):
                await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
async def test_large_bodies_pass_in_both_directions_without_being_held(house: House) -> None:
    async def upload() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield b"y" * MIB

    bodies = LargeBodies()
    with gateway_process(house.service(bodies).url) as (url, gateway):
        async with httpx.AsyncClient(base_url=url, timeout=WITHIN_SECONDS) as client:
            before = _largest_memory_bytes(gateway.pid)
            await client.post("/apis/v1beta1/pipelines/upload", content=upload())
            await client.post("/apis/v1beta1/pipelines/upload", content=b"z" * 32 * MIB)
            answered_bytes = 0
            async with client.stream("GET", "/apis/v1beta1/runs/a/nodes/b/log") as answer:
                async for chunk in answer.aiter_raw():
                    answered_bytes += len(chunk)
            grown = _largest_memory_bytes(gateway.pid) - before

    assert bodies.received_bytes == 64 * MIB
    assert answered_bytes == 200 * MIB
    assert grown < 16 * MIB


async def test_a_rolling_restart_behind_the_gateway_fails_no_request() -> None:
    staying_url, leaving_url = refusing_url(), refusing_url()
    codes: list[int] = []

    async def keep_creating(client: httpx.AsyncClient, until: asyncio.Event) -> None:
        while not until.is_set():
            codes.append((await client.post("/apis/v1beta1/runs", content=b"{}")).status_code)

    with ExitStack() as rooms:
        rooms.enter_context(process(SERVICE_SOURCE, staying_url, PORT=_port(staying_url)))
        leaving = rooms.enter_context(ExitStack())
        leaving.enter_context(process(SERVICE_SOURCE, leaving_url, PORT=_port(leaving_url)))
        gateway_url, _ = rooms.enter_context(gateway_process(leaving_url, staying_url))
        done = asyncio.Event()
        async with httpx.AsyncClient(base_url=gateway_url, timeout=WITHIN_SECONDS) as client:
            clients = [asyncio.create_task(keep_creating(client, done)) for _ in range(4)]
            await asyncio.to_thread(leaving.close)  # SIGTERM, drain, gone
            await asyncio.to_thread(
                leaving.enter_context, process(SERVICE_SOURCE, leaving_url, PORT=_port(leaving_url))
            )
            done.set()
            await asyncio.gather(*clients)

    assert len(codes) > 100
    assert set(codes) == {200}
