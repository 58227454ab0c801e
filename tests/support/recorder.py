"""Stands between a client and the gateway, forwards what passes and keeps a note of it.

So what a client did is known from the wire and not from what it says of itself, and each answer is held against the
published reference, whatever the client makes of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import msgspec
import urllib3

from tests.coverage.operations import name_of
from tests.support import swagger
from tests.support.hooks import judge

_AT_ONCE_BYTES: Final = 65536
_NOT_FORWARDED: Final = frozenset({"connection", "content-length", "date", "host", "server", "transfer-encoding"})


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what came of it."""

    operation: str
    """The row of `tests.coverage.operations`."""
    method: str
    target: str
    status: int
    problem: str = ""
    """Why the answer is not one of the published reference."""


class Recorder(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    exchanges: list[Exchange] = msgspec.field(default_factory=list)

    def succeeded(self) -> set[str]:
        return {each.operation for each in self.exchanges if 200 <= each.status < 300}


@contextmanager
def recording(upstream: str) -> Iterator[Recorder]:
    """Raises NotAsPublished at its end where an answer was not."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Forwarder)
    server.daemon_threads = True
    recorder = Recorder(url=f"http://127.0.0.1:{server.server_address[1]}")
    with urllib3.PoolManager(timeout=60, retries=False) as pool:
        _Forwarder.homes[server] = (upstream, pool, recorder.exchanges)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join(timeout=5)
            server.server_close()
            del _Forwarder.homes[server]
    if problems := [each.problem for each in recorder.exchanges if each.problem]:
        raise swagger.NotAsPublished("\n".join(problems))


class _Forwarder(BaseHTTPRequestHandler):
    homes: Final[dict[object, tuple[str, urllib3.PoolManager, list[Exchange]]]] = {}

    def _forward(self) -> None:
        upstream, pool, exchanges = self.homes[self.server]
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
        reply = pool.request(
            self.command, upstream + self.path, body=body, headers=headers, redirect=False, preload_content=False
        )
        # Only what is judged has to be there as a whole; a log may be followed, and comes as it comes.
        whole = reply.data if any(swagger.operations(self.command, self.path.partition("?")[0])) else b""
        # Noted first: who has read the answer may look at the notes at once.
        exchanges.append(_exchange(self.command, self.path, reply, whole))
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        # The end of the connection is the end of the answer.
        self.end_headers()
        self.wfile.write(whole)
        while chunk := reply.read1(_AT_ONCE_BYTES):
            self.wfile.write(chunk)
        reply.release_conn()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The server asks for a method by the name of the request's."""
        if name.startswith("do_"):
            return self._forward
        raise AttributeError(name)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the exchanges are the log."""


def _exchange(method: str, target: str, reply: urllib3.BaseHTTPResponse, body: bytes) -> Exchange:
    problem = ""
    try:
        judge(method, target, reply.status, reply.headers.get("content-type", ""), body)
    except swagger.NotAsPublished as difference:
        problem = str(difference)
    return Exchange(
        operation=name_of(method, target) or "",
        method=method,
        target=target,
        status=reply.status,
        problem=problem,
    )
