"""The HTTP door as a process: what a client and a supervisor see of it, from start to SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import httpx
import pytest
import uvicorn
from litestar import Response

from infra.embedded.ports import free_ports
from shared import web

_PROGRAM = """
import asyncio, gc, sys
from litestar import Response
from shared import logs, web

released = asyncio.Event()

@web.get("/wait")
async def wait() -> Response[bytes]:
    await released.wait()
    return web.reply()

@web.post("/release")
async def release() -> Response[bytes]:
    released.set()
    return web.reply()

@web.get("/collector")
async def collector() -> Response[bytes]:
    return web.reply(b'{"frozen": %d, "threshold": %d}' % (gc.get_freeze_count(), gc.get_threshold()[0]))

async def started() -> None:
    print("started", flush=True)

async def stopped() -> None:
    print("stopped", flush=True)

logs.configure("door")
app = web.create_app(service="door", routes=[wait, release, collector], on_startup=[started], on_shutdown=[stopped])
web.run_server(app, host="127.0.0.1", port=int(sys.argv[1]))
"""


class Door:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(15):
            while True:
                with suppress(httpx.TransportError):
                    if await holds():
                        return
                await asyncio.sleep(0.02)

    async def answers(self, path: str, status: int) -> bool:
        return (await self.client.get(path)).status_code == status

    async def output(self) -> tuple[list[str], str]:
        out, err = await asyncio.wait_for(self.process.communicate(), 15)
        return out.decode().split(), err.decode()


async def _open(port: int) -> Door:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, str(port), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    return Door(process, port)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    (port,) = free_ports(1)
    door = await _open(port)
    try:
        await door.until(lambda: door.answers("/readyz", 200))
        yield door
    finally:
        if door.process.returncode is None:
            door.process.kill()
            await door.process.wait()
        await door.client.aclose()


async def test_a_terminated_server_drops_readiness_finishes_its_requests_and_ends_well(door: Door) -> None:
    async def in_flight(number: int) -> bool:
        return (
            f'headrace_http_requests_in_flight{{service="door"}} {number}.0' in (await door.client.get("/metrics")).text
        )

    waiting = asyncio.create_task(door.client.get("/wait"))
    await door.until(lambda: in_flight(2))  # The one that waits, and the one that asks.
    door.process.send_signal(signal.SIGTERM)
    await door.until(lambda: door.answers("/readyz", 503))
    assert not waiting.done()
    released = await door.client.post("/release")
    assert released.headers["connection"] == "close"
    assert (await waiting).status_code == 200
    out, err = await door.output()
    assert (door.process.returncode, out, err) == (0, ["started", "stopped"], "")


async def test_a_second_signal_ends_the_notice_at_once(door: Door) -> None:
    door.process.send_signal(signal.SIGINT)
    await door.until(lambda: door.answers("/readyz", 503))
    door.process.send_signal(signal.SIGINT)
    out, _err = await door.output()
    assert (door.process.returncode, out) == (0, ["started", "stopped"])


async def test_a_request_that_comes_as_the_door_closes_is_answered() -> None:
    (port,) = free_ports(1)

    @web.get("/mill")
    async def mill() -> Response[bytes]:
        return web.reply()

    app = web.create_app(service="door", routes=[mill])
    server = web.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None), app.health, 0)
    async with asyncio.timeout(20):
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not server.server_state.connections:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        app.health.drain()
        server.should_exit = True
        shutdown = server.shutdown

        async def write_and_shut_down(sockets: list[socket.socket] | None = None) -> None:
            writer.write(b"GET /mill HTTP/1.1\r\nHost: mill\r\n\r\n")  # Not read yet when the door closes.
            await shutdown(sockets)

        server.shutdown = write_and_shut_down  # type: ignore[method-assign]
        answer = await reader.read()
        await serving
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer


async def test_answers_do_not_tell_what_serves_them(door: Door) -> None:
    answer = await door.client.get("/livez")
    assert "server" not in answer.headers
    assert len(answer.headers["x-request-id"]) == 32


async def test_what_is_there_before_the_first_request_is_not_collected_again_and_again(door: Door) -> None:
    collector = (await door.client.get("/collector")).json()
    assert collector["frozen"] > 10_000
    assert collector["threshold"] == web.YOUNG_OBJECTS


async def test_a_taken_port_is_one_line_and_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        door = await _open(taken.getsockname()[1])
        out, err = await door.output()
        await door.client.aclose()
    assert door.process.returncode not in (0, None)
    assert out == ["started", "stopped"]
    assert "address already in use" in err
    assert len(err.splitlines()) == 1


async def test_the_bytes_of_a_path_never_break_the_server(door: Door) -> None:
    for path in (b"/wait/%00", b"/%ff%fe:x", b"/" + b"a" * 20_000, b"/%2F%2F", b"/\xc3\xa9", b"/a%zz", b"*"):
        host, port = "127.0.0.1", door.client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        status_line = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        assert status_line.split()[1] in (b"404", b"400", b"301"), (path, status_line)
