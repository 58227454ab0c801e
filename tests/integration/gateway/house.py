"""A gateway and the services behind it, as real servers on free ports.

Each server has a thread and an event loop of its own, as each has a process in life. What the gateway answers itself,
and what services made by `shared.web` answer through it, is held against the published reference. What a test plays in
the place of a service is not: it says whatever the test needs, to see it pass unchanged.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

import httpx
import msgspec
import uvicorn

from gateway.app import Gateway, create_app
from gateway.settings import Settings
from infra.embedded.ports import free_ports
from shared.web import Service
from tests.support import swagger
from tests.support.hooks import httpx_client
from tests.support.prompt_server import PromptServer

WITHIN_SECONDS = 10.0

PLAYED = "x-played-by-the-test"
"""Marks answers that no service gave."""

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a service received it."""

    method: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = [value.decode() for key, value in self.headers if key == name.encode()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class RecordingService:
    """Answers everything with 200 and remembers it."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer_headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
        self.status = 200

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen.append(
            Seen(
                method=scope["method"],
                raw_path=scope["raw_path"],
                query=scope["query_string"],
                headers=list(scope["headers"]),
                body=body,
            )
        )
        await send({"type": "http.response.start", "status": self.status, "headers": self.answer_headers})
        await send({"type": "http.response.body", "body": b"{}"})


class Running:
    def __init__(self, app: Any, *, lifespan: str = "off") -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = PromptServer(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan=lifespan,  # type: ignore[arg-type]
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"server-{self.port}")

    def _serve(self) -> None:
        started = self._server.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await started(sockets)
            self._ready.set()

        self._server.startup = startup  # type: ignore[method-assign]
        self._server.run(sockets=[self._socket])

    def start(self) -> Running:
        self._thread.start()
        assert self._ready.wait(WITHIN_SECONDS), "the server did not start"
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(WITHIN_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"
        self._socket.close()


@contextmanager
def running(app: Any, *, lifespan: str = "off") -> Iterator[Running]:
    server = Running(app, lifespan=lifespan).start()
    try:
        yield server
    finally:
        server.stop()


def settings_for(*upstreams: str, connect_timeout_seconds: float = 1.0, **further: Any) -> Settings:
    """Every service at the same replicas."""
    return Settings(
        experiment_upstreams=upstreams,
        pipeline_registry_upstreams=upstreams,
        run_upstreams=upstreams,
        job_scheduler_upstreams=upstreams,
        metrics_upstreams=upstreams,
        notifier_upstreams=upstreams,
        connect_timeout_seconds=connect_timeout_seconds,
        commit_sha="abc123",
        tag_name="1.0",
        **further,
    )


def refusing_url() -> str:
    """An address where nobody listens."""
    (port,) = free_ports(1)
    return f"http://127.0.0.1:{port}"


class House:
    """Starts services and gateways, and stops them with the test."""

    def __init__(self, rooms: ExitStack) -> None:
        self._rooms = rooms

    def service(self, app: Asgi) -> Running:
        return self._rooms.enter_context(running(app if isinstance(app, Service) else _played(app)))

    def gateway(self, *upstreams: str, **settings: Any) -> GatewayUnderTest:
        app = create_app(settings_for(*upstreams, **settings))
        return GatewayUnderTest(app, self._rooms.enter_context(running(app, lifespan="on")))


def _played(app: Asgi) -> Asgi:
    async def marked(scope: Any, receive: Any, send: Any) -> None:
        async def send_marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (PLAYED.encode(), b"1")]}
            await send(message)

        await app(scope, receive, send_marked)

    return marked


class GatewayUnderTest:
    def __init__(self, app: Gateway, server: Running) -> None:
        self.app = app
        self.port = server.port
        self.url = server.url

    def client(self) -> httpx.AsyncClient:
        return httpx_client(
            unless=lambda answer: PLAYED in answer.headers,
            judge=swagger.check,
            base_url=self.url,
            timeout=WITHIN_SECONDS,
        )

    async def exchange(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own and read to its end; for what a client library would tidy up."""
        async with asyncio.timeout(WITHIN_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                answer = await reader.read()
                _judge(request, answer)
                return answer
            finally:
                writer.close()
                await writer.wait_closed()


def _judge(request: bytes, raw_answer: bytes) -> None:
    if not request.isascii():
        return  # No HTTP: the server says so before there is a request to the API.
    answer = HTTPResponse(_Received(raw_answer))  # type: ignore[arg-type]
    answer.begin()
    if answer.headers.get(PLAYED) is None:
        method, target, _ = request.partition(b"\r\n")[0].decode("latin-1").split(" ")
        swagger.check(method, target, answer.status, answer.headers.get("content-type", ""), answer.read())


class _Received:
    """What `http.client` asks of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._data)
