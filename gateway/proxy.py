"""Carries a request to one replica of a service and the answer back, chunk by chunk.

The one place that speaks HTTP as a client. It refuses to know paths, owners and bodies: bytes go through as they are.

What it promises
    Memory does not grow with a body: a large one is pulled from one side only as fast as the other side takes it.
    A client that leaves takes its upstream request with it, and an upstream that dies in the middle of an answer
    breaks the client's transfer: a cut answer never looks complete.

When a request is sent again
    1. The connection was refused or timed out: the next replica, for any request. Nothing was sent.
    2. A pooled connection turns out to be closed, or to hold bytes nobody asked for, before anything is written: it is
       dropped and another is taken, for any request. Nothing was sent.
    3. A connection ends after a GET or HEAD was written and before the answer: once more, at another replica where
       there is one. The upstream may have closed it as idle in that moment, or died, and reading twice does no harm.
    Nothing else is repeated. A POST that was written may have been applied even though no byte came back, so its
    client is told (503) and decides.

Why a rolling restart does not produce that case
    A draining replica answers with `Connection: close` for DRAIN_NOTICE_SECONDS before it closes what is left. By then
    every connection used during the notice is gone, and one that was not used has been idle for longer than
    IDLE_SECONDS, so this side no longer uses it. New connections go to other replicas from the first such answer on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from shared import identity
from shared.errors import InvalidInput, Unavailable
from shared.web import DRAIN_NOTICE_SECONDS

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
"""As the server hands them over: lower-case names."""

IDLE_SECONDS = 0.75 * DRAIN_NOTICE_SECONDS
"""A pooled connection unused for so long is not used again. Must stay below the notice a draining replica gives."""

REST_SECONDS = 2 * DRAIN_NOTICE_SECONDS
"""A replica that refused a connection, or drains, is tried last for so long."""

RESOLVE_EVERY_SECONDS = 1.0

SMALL_BODY_BYTES = 256 * 1024
"""A request body that announces at most this is read whole before it is sent: headers and body leave in one write."""

WATCH_AFTER_SECONDS = 0.1
"""Only an exchange that lasts longer is watched for its client leaving; the short ones are spared the task."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FORWARDED = HOP_BY_HOP | {b"expect", b"x-request-id", b"traceparent", identity.HEADER.encode("ascii")}
_NOT_ANSWERED = HOP_BY_HOP | {b"date", b"server"}  # our own server writes both

_log = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete. Nobody is left to be answered."""


class AnswerBroken(Exception):
    """The upstream went away after the answer had begun. What the client has must not look complete."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upstream went away within an answer of status {status}")
        self.status = status


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask of a service."""

    method: str
    target: bytes
    """Path and query exactly as the client sent them."""
    headers: Headers
    request_id: str
    traceparent: str
    identity: str | None = None
    """Who asks, signed. Whatever a client sent in its place is dropped."""
    answer_headers: Headers = ()
    """Added to the answer, in place of the upstream's of the same name."""


class Replicas:
    """Where one service can be reached: its addresses in turn, the ones that refused a moment ago last."""

    def __init__(
        self,
        service: str,
        upstreams: Iterable[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        look_up: Callable[[str], Awaitable[set[str]]] | None = None,
    ) -> None:
        self.service = service
        self._clock = clock
        self._look_up = look_up or _look_up
        self._named: dict[str, tuple[str, ...]] = {}
        self._fixed: list[str] = []
        for upstream in upstreams:
            if upstream.startswith("dns+"):
                self._named[upstream] = ()
            else:
                self._fixed.append(upstream.rstrip("/"))
        self._addresses: tuple[str, ...] = tuple(self._fixed)
        self._rest_until: dict[str, float] = {}
        self._turn = -1

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def is_named(self) -> bool:
        """Some addresses come from a name that must be resolved again and again."""
        return bool(self._named)

    def in_turn(self) -> deque[str]:
        """Every address once. The first one differs from call to call, so that requests spread evenly."""
        if not self._addresses:
            return deque()
        self._turn = (self._turn + 1) % len(self._addresses)
        turned = (*self._addresses[self._turn :], *self._addresses[: self._turn])
        if not self._rest_until:
            return deque(turned)
        now = self._clock()
        return deque(sorted(turned, key=lambda address: self._rest_until.get(address, 0.0) > now))

    def note_refused(self, address: str) -> None:
        if address not in self._rest_until:
            _log.warning("%s: the replica at %s takes no connection", self.service, address)
        self._rest_until[address] = self._clock() + REST_SECONDS

    def note_draining(self, address: str) -> None:
        """It still answers, but closes soon: a connection opened now might not be read any more."""
        self._rest_until[address] = self._clock() + REST_SECONDS

    def note_reached(self, address: str) -> None:
        if self._rest_until.pop(address, None) is not None:
            _log.info("%s: the replica at %s answers again", self.service, address)

    async def resolve(self) -> None:
        """Ask for the addresses behind the names. A name that does not resolve keeps the addresses it had."""
        for upstream in self._named:
            parts = urlsplit(upstream)
            assert parts.hostname is not None
            assert parts.port is not None
            try:
                hosts = await self._look_up(parts.hostname)
            except OSError as error:
                _log.warning("%s: the name %s does not resolve: %s", self.service, parts.hostname, error)
                continue
            self._named[upstream] = tuple(_address(host, parts.port) for host in sorted(hosts))
        self._addresses = (*self._fixed, *(address for named in self._named.values() for address in named))
        self._rest_until = {at: until for at, until in self._rest_until.items() if at in self._addresses}

    async def keep_resolved(self) -> None:
        while True:
            await asyncio.sleep(RESOLVE_EVERY_SECONDS)
            await self.resolve()


class Proxy:
    """One pool of connections for all services."""

    def __init__(self, *, connect_timeout_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Proxy:
        self._session = aiohttp.ClientSession(
            connector=_Pool(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=1),
            timeout=self._timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=65536,
            max_field_size=65536,
            max_headers=1024,
        )
        # The client's own retry repeats a DELETE whose outcome is unknown, on the same replica; the rules are ours.
        self._session._retry_connection = False
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def forward(self, call: Call, replicas: Replicas, receive: Receive, send: Send) -> int:
        """Send `call` with the client's body to a replica and its answer to the client; returns the answer's status.

        Raises Unavailable while nothing was answered yet; ClientLeft; AnswerBroken.
        """
        body = ClientBody(receive, call.headers)
        presence = asyncio.timeout(None)
        try:
            async with presence:
                watch = _Watch(body, presence)
                try:
                    await body.read_if_small()
                    response = await self._open(call, replicas, body)
                    try:
                        return await _relay(response, call.answer_headers, send)
                    finally:
                        _let_go(response, body)
                finally:
                    watch.stop()
        except TimeoutError:
            if presence.expired():
                raise ClientLeft from None
            raise

    async def _open(self, call: Call, replicas: Replicas, body: ClientBody) -> aiohttp.ClientResponse:
        assert self._session is not None, "the proxy is not started"
        headers = _forwarded(call)
        target = call.target.decode("ascii", "surrogateescape")
        if not target.isascii():
            target = "".join(c if c.isascii() else f"%{ord(c) - 0xDC00:02X}" for c in target)
        may_repeat = call.method in ("GET", "HEAD")
        untried = replicas.in_turn()
        while untried:
            address = untried.popleft()
            try:
                response = await self._session.request(
                    call.method,
                    URL(address + target, encoded=True),
                    headers=headers,
                    data=body.to_send(),
                    allow_redirects=False,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                replicas.note_refused(address)
            except aiohttp.ClientError as error:
                if body.client_left:
                    raise ClientLeft from error
                if body.is_taken or not may_repeat:
                    _log.warning("%s: %s ended without an answer: %r", replicas.service, address, error)
                    raise Unavailable(
                        f"The {replicas.service} service did not answer; the request may have been applied.",
                        cause="the connection ended before the answer",
                    ) from error
                may_repeat = False
                untried.append(address)
            else:
                if response.headers.get("Connection", "").lower() == "close":
                    replicas.note_draining(address)
                else:
                    replicas.note_reached(address)
                return response
        raise Unavailable(f"The {replicas.service} service is not reachable.", cause="no replica accepts a connection")


class ClientBody:
    """The body of the client's request, pulled once."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self._announced = _announced_bytes(headers)
        self._whole: bytes | None = b"" if self._announced == 0 else None
        self.is_taken = False
        """Some of a streamed body was pulled, so that it cannot be sent again."""
        self.is_over = self._announced == 0
        self.client_left = False

    async def read_if_small(self) -> None:
        if self._whole is not None or self._announced is None or self._announced > SMALL_BODY_BYTES:
            return
        self._whole = b"".join([chunk async for chunk in self.chunks()])

    def to_send(self) -> bytes | AsyncIterator[bytes] | None:
        if self._whole is not None:
            return self._whole or None
        return self._streamed()

    async def until_client_leaves(self) -> None:
        """To be awaited only once the body is over: two may not receive at once."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_left = True

    async def _streamed(self) -> AsyncIterator[bytes]:
        self.is_taken = True
        async for chunk in self.chunks():
            yield chunk

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises ClientLeft."""
        while not self.is_over:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_left = True
                raise ClientLeft
            self.is_over = not message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk


async def read_form(receive: Receive, headers: Headers, *, at_most_bytes: int) -> bytes:
    """A form that stands for a query, whole. Raises InvalidInput above the limit, ClientLeft."""
    body = ClientBody(receive, headers)
    text = bytearray()
    async for chunk in body.chunks():
        text += chunk
        if len(text) > at_most_bytes:
            raise InvalidInput(f"A form that stands for a query may hold {at_most_bytes} bytes.")
    return bytes(text)


class _Watch:
    """Ends an exchange whose client leaves while nothing is being received from it.

    It expires `presence`, a timeout that never comes by itself: leaving that block as a TimeoutError is the one way
    to cancel our own task and still tell it from being cancelled by the server.
    """

    def __init__(self, body: ClientBody, presence: asyncio.Timeout) -> None:
        self._body = body
        self._presence = presence
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(WATCH_AFTER_SECONDS, self._begin)

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        if self._body.is_over:
            self._task = self._loop.create_task(self._leave_with_client(), name="gateway-client-watch")
        else:  # whoever pulls the body sees the client leave
            self._timer = self._loop.call_later(WATCH_AFTER_SECONDS, self._begin)

    async def _leave_with_client(self) -> None:
        await self._body.until_client_leaves()
        self._presence.reschedule(self._loop.time())


class _Pool(aiohttp.TCPConnector):
    """Hands out a pooled connection only while its upstream has left it untouched."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: weakref.WeakSet[object] = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None
            if protocol in self._used and _has_news(connection.transport):
                connection.close()
                continue
            self._used.add(protocol)
            return connection


def _has_news(transport: asyncio.Transport | None) -> bool:
    """The upstream closed the idle connection, or wrote to it, and the event loop has not read that yet."""
    if transport is None or transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def _relay(response: aiohttp.ClientResponse, further: Headers, send: Send) -> int:
    status = response.status
    await send({"type": "http.response.start", "status": status, "headers": _answered(response, further)})
    left = None if response.method == "HEAD" else response.content_length
    try:
        async for chunk in response.content.iter_any():
            if left is not None:
                left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left != 0})
            if left == 0:
                return status
    except aiohttp.ClientError as error:
        raise AnswerBroken(status) from error
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return status


def _let_go(response: aiohttp.ClientResponse, body: ClientBody) -> None:
    """Back to the pool where both sides are done with the exchange, closed otherwise."""
    if body.is_over and response.content.is_eof():
        response.release()
    else:
        response.close()


def _forwarded(call: Call) -> CIMultiDict[str]:
    dropped = _NOT_FORWARDED | _named_by_connection(call.headers)
    if any(name == b"transfer-encoding" for name, _ in call.headers):
        dropped |= {b"content-length"}  # Two lengths for one body are how requests are smuggled.
    headers = CIMultiDict((name.decode("latin-1"), _text(value)) for name, value in call.headers if name not in dropped)
    headers["X-Request-Id"] = call.request_id
    headers["traceparent"] = call.traceparent
    if call.identity is not None:
        headers[identity.HEADER] = call.identity
    return headers


def _answered(response: aiohttp.ClientResponse, further: Headers) -> list[tuple[bytes, bytes]]:
    given = [(name.lower(), value) for name, value in response.raw_headers]
    dropped = _NOT_ANSWERED | _named_by_connection(given) | {name for name, _ in further}
    if response.status in (204, 304):
        dropped |= {b"content-length"}
    return [*((name, value) for name, value in given if name not in dropped), *further]


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The further hop-by-hop headers that a Connection header names."""
    return frozenset(
        token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    )


def _announced_bytes(headers: Headers) -> int | None:
    """The body's length; None where it is only known at its end."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value)
    return length


def _text(value: bytes) -> str:
    """The client library encodes headers as UTF-8; what is not UTF-8 is taken letter by letter."""
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode("utf-8")
    return value.decode("latin-1")


async def _look_up(name: str) -> set[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return {str(address[0]) for *_, address in found}


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
