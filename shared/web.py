"""The HTTP door that every service has: how a request reaches a handler and how its outcome becomes an answer.

A service brings handlers, readiness checks and the objects its handlers need; everything the API promises on every
route (specification, sections 1.3 and 3) is here, once: error bodies, the router's text answers, verbs after a colon,
health, metrics, request ids and traces. This module knows no resource and no rule of one.

Three layers, from the outside in:

* `Service.__call__` sees every request before routing: ids, metrics, who asks, the path as the router should read it.
* `_after_routing` sees every routed request: it undoes what only the router needed.
* Litestar calls the handler.

How a path is read:

* The text after the last colon of the last segment is a verb, and becomes a segment of its own: `/runs/abc:archive`
  is routed as `/runs/abc/:archive`. A route is declared in that form, `@post("/runs/{run_id:str}/:archive")`, and a
  route without a verb never matches a request with one.
* A trailing slash is an empty last segment: `GET /runs/` asks for the run whose id is empty. Litestar drops empty
  segments, therefore a blank that no client can send stands in for it while routing.
* An id that no row can have (NUL, not UTF-8) is read with U+FFFD in place of what is impossible; nobody finds it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import posixpath
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, partial
from types import FrameType
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import litestar
import msgspec
import uvicorn
from litestar import Litestar, MediaType, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, ControllerRouterHandler, LifespanHook, Receive, Scope, Send
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from shared import identity, protojson, telemetry
from shared.errors import Internal, MalformedRequest, NotSupported, Refusal, Unavailable, http_body
from shared.settings import load
from shared.tasks import Tasks

_log = logging.getLogger(__name__)

ReadinessCheck = Callable[[], Awaitable[None]]
"""Returns when the thing it names answers; raises otherwise."""

READINESS_TIMEOUT_SECONDS: Final = 2.0
DRAIN_NOTICE_SECONDS: Final = 1.0
"""Between dropping readiness and refusing connections: the time balancers get to look elsewhere."""
DRAIN_LIMIT_SECONDS: Final = 20
"""What requests in flight get to finish."""
_LAST_REQUESTS_SECONDS: Final = 0.1
"""Between refusing connections and closing those that are idle: a request may be on its way on the newest of them."""
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the gateway keeps an idle connection, so that it is the gateway who closes it."""
YOUNG_OBJECTS: Final = 10_000
"""So many may come to be before the garbage collector looks among them for cycles: a MiB or two."""
LONGEST_PATH: Final = 8192
"""Longer paths name nothing. The bound also keeps the router's cache of paths small."""

LONGEST_FORM_BYTES: Final = 1 << 20
"""Of a query posted as a form; nobody means what comes after."""

_FORM: Final = "application/x-www-form-urlencoded"
_EMPTY_SEGMENT: Final = "\x00"
_IDENTITY: Final = identity.HEADER.encode("ascii")
_OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/startupz", "/metrics", "/openapi.json"})
"""Answered to everybody: those who watch the process have no identity, and the description holds no data."""
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SUCCESS_HEADERS: Final = {"Grpc-Metadata-Content-Type": "application/grpc"}
_METRICS_TYPE: Final = CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # Litestar adds it again.

_requests = Counter(
    "headrace_http_requests_total",
    "HTTP requests answered.",
    ("service", "method", "route", "code"),
    registry=telemetry.metrics,
)
_durations = Histogram(
    "headrace_http_request_duration_seconds",
    "From the request's head to the end of its answer.",
    ("service", "method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=telemetry.metrics,
)
_in_flight = Gauge(
    "headrace_http_requests_in_flight", "HTTP requests being answered.", ("service",), registry=telemetry.metrics
)

# Success is 200 on every route, also where something is created or deleted.
get = partial(litestar.get, status_code=200)
post = partial(litestar.post, status_code=200)
patch = partial(litestar.patch, status_code=200)
delete = partial(litestar.delete, status_code=200)


def create_app(
    *,
    service: str,
    routes: Sequence[ControllerRouterHandler],
    on_startup: Sequence[LifespanHook] = (),
    on_shutdown: Sequence[LifespanHook] = (),
    ready: Sequence[ReadinessCheck] = (),
    tasks: Tasks | None = None,
    dependencies: Mapping[str, object] | None = None,
    state: Mapping[str, object] | None = None,
    identity_key: str | None = None,
) -> Service:
    """The application of one service.

    `dependencies`: the objects that handlers receive by name (`runs: NamedDependency[Runs]`; path parameters are
    `run_id: FromPath[str]`); they live as long as the
    process.
    `identity_key`: what identities must be signed with; from the environment unless given, and nobody is asked where it
    is empty.
    `tasks`: what `/livez` watches. `ready`: what `/readyz` asks, all at once, bounded by `READINESS_TIMEOUT_SECONDS`.
    """
    health = Health(ready, tasks)
    key = load(identity.Settings).identity_key if identity_key is None else identity_key
    return Service(
        service=service,
        health=health,
        verifier=identity.Verifier(key) if key else None,
        route_handlers=[*routes, *_health_routes(health), _openapi_route(service, routes)],
        on_startup=list(on_startup),
        on_shutdown=list(on_shutdown),
        dependencies={name: _provide(thing) for name, thing in (dependencies or {}).items()},
        state=State(dict(state or {})),
        middleware=[_after_routing],
        exception_handlers={
            Refusal: _answer_refusal,
            NotFoundException: _answer_unknown_path,
            MethodNotAllowedException: _answer_wrong_method,
            HTTPException: _answer_framework_error,
            Exception: _answer_unexpected,
        },
        request_max_body_size=None,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def reply(document: msgspec.Struct | bytes | None = None) -> Response[bytes]:
    """A successful JSON answer; bytes are one already, and nothing to say is `{}`."""
    match document:
        case None:
            content = b"{}"
        case bytes():
            content = document
        case _:
            content = protojson.encode(document)
    return Response(content, status_code=200, media_type=MediaType.JSON, headers=_SUCCESS_HEADERS)


def run_server(app: Service, *, host: str, port: int, notice_seconds: float = DRAIN_NOTICE_SECONDS) -> None:
    """Serve until SIGTERM or SIGINT, then drain: readiness drops, balancers look elsewhere, requests finish, hooks run.

    A second signal ends the notice at once; where no balancer sends anybody, there need be none. Returns normally after
    a drain.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # Nobody asks for a client's address, and the gateway reads by itself what it shows.
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_LIMIT_SECONDS,
    )
    Server(config, app.health, notice_seconds).run()


class Health:
    """What a process says about itself.

    Alive: no background task is lost or stuck, so a restart would not help. Ready: everything it needs answers and it
    does not drain. Started: it was ready once.
    """

    def __init__(self, checks: Sequence[ReadinessCheck], tasks: Tasks | None) -> None:
        self._checks = tuple(checks)
        self._tasks = tasks
        self._started = False
        self._draining: list[Callable[[], None]] = []
        self.draining = False

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call back when the process is told to end: answers that have no end of their own must find one."""
        self._draining.append(callback)

    def drain(self) -> None:
        self.draining = True
        for callback in self._draining:
            callback()

    def why_not_alive(self) -> str | None:
        lost = self._tasks.lost() if self._tasks else []
        return f"lost or stuck: {', '.join(lost)}" if lost else None

    async def why_not_ready(self) -> str | None:
        if self.draining:
            return "draining"
        try:
            async with asyncio.timeout(READINESS_TIMEOUT_SECONDS):
                await asyncio.gather(*(check() for check in self._checks))
        except Exception as error:  # noqa: BLE001  Whatever a check raises is its way to say no.
            return f"{type(error).__name__}: {error}"
        self._started = True
        return None

    async def why_not_started(self) -> str | None:
        return None if self._started else await self.why_not_ready()


class Service(Litestar):
    """A Litestar application behind the layer that sees every request before it is routed."""

    __slots__ = ("_service", "_verifier", "health")

    def __init__(
        self, *, service: str, health: Health, verifier: identity.Verifier | None = None, **options: Any
    ) -> None:
        self._service = service
        self._verifier = verifier
        self.health = health
        super().__init__(**options)
        _resolve_in_turn(self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = request_id_of(headers.get(b"x-request-id", b"").decode("latin-1"))
        # Those who watch the process ask every few seconds, and nobody wants to see that.
        name = None if scope["path"] in _OPEN_PATHS else f"{self._service} request"
        seen: dict[str, str | int] = {}
        traceparent = headers.get(b"traceparent", b"").decode("latin-1")
        with (
            telemetry.in_request(request_id),
            telemetry.continue_trace(traceparent, name, kind="server", attributes=seen),
        ):
            await self._measured(scope, receive, send, request_id, seen)

    async def _measured(self, scope: Any, receive: Any, send: Any, request_id: str, seen: dict[str, str | int]) -> None:
        """`seen` is what the request's span tells of it."""
        code = 500
        started = time.perf_counter()

        async def send_with_ids(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                extra = [(b"x-request-id", request_id.encode("latin-1"))]
                if self.health.draining:
                    extra.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        in_flight = _in_flight.labels(self._service)
        in_flight.inc()
        try:
            if self._verifier is None or scope["path"] in _OPEN_PATHS:
                await self._routed(scope, receive, send_with_ids)
            else:
                await self._identified(self._verifier, scope, receive, send_with_ids)
        finally:
            in_flight.dec()
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = scope.get("path_template") or "unknown"
            seen |= {"http.request.method": method, "http.route": route, "http.response.status_code": code}
            _requests.labels(self._service, method, route, str(code)).inc()
            _durations.labels(self._service, method, route).observe(time.perf_counter() - started)

    async def _identified(self, verifier: identity.Verifier, scope: Any, receive: Any, send: Any) -> None:
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == _IDENTITY), None)
        try:
            caller = verifier.caller_of(header)
        except Refusal as refusal:
            await _send(send, refusal.status, msgspec.json.encode(http_body(refusal)), "application/json")
            return
        with identity.calling(caller):
            await self._routed(scope, receive, send)

    async def _routed(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].replace("\x00", "\ufffd")
        clean = _clean(path)
        if clean != path:
            query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
            await _send_text(send, 301, "", ("location", quote(clean) + query))
            return
        head, _, last = path.rpartition("/")
        if len(path) > LONGEST_PATH or last.startswith(":"):
            await _send_text(send, 404, "Not Found\n", ("x-content-type-options", "nosniff"))
            return
        scope["path"] = f"{head}/{_split_verb(last)}"
        if scope["method"] == "POST" and _header(scope, b"content-type") == _FORM:
            await self._form(scope, receive, send)
            return
        await super().__call__(scope, receive, send)

    async def _form(self, scope: Any, receive: Any, send: Any) -> None:
        """A form posted to where nothing is posted is a GET whose query was too long for a URL."""
        if override := _header(scope, b"x-http-method-override"):
            scope["method"] = override.upper()
            await super().__call__(scope, receive, send)
            return
        as_get: Any = {**scope, "method": "GET", "state": dict(scope.get("state") or {})}
        is_refused = False

        async def send_unless_refused(message: Any) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start":
                is_refused = message["status"] == 405
            if not is_refused:
                await send(message)

        await super().__call__(scope, receive, send_unless_refused)
        if is_refused:
            form = await _form_of(receive)
            as_get["query_string"] = b"&".join(part for part in (form, scope["query_string"]) if part)
            await super().__call__(as_get, receive, send)
            scope["path_template"] = as_get.get("path_template")


class Server(uvicorn.Server):
    """uvicorn, with a notice between the signal and the closed door."""

    def __init__(self, config: uvicorn.Config, health: Health, notice_seconds: float) -> None:
        super().__init__(config)
        self._health = health
        self._notice_seconds = notice_seconds
        self._close_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _collect_seldom()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The signal is not passed to uvicorn, which would raise it again after the drain: ending was asked for.
        if self._close_at is None and self.started:
            self._health.drain()
            self._close_at = time.monotonic() + self._notice_seconds
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the door a moment before the connections: who came in last has not been heard yet."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)


def _collect_seldom() -> None:
    """What exists now stays: the collector need not walk it again and again.

    What a request makes hardly ever holds a cycle, but some dozens of requests in flight hold as many objects as make
    the collector begin by default; it then walks them for nothing, a tenth of the processor time of a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


async def _send_text(send: Send, status: int, body: str, *headers: tuple[str, str]) -> None:
    await _send(send, status, body.encode(), "text/plain; charset=utf-8", *headers)


async def _send(send: Send, status: int, body: bytes, content_type: str, *headers: tuple[str, str]) -> None:
    """Answer from outside Litestar."""
    lines = [("content-type", content_type), ("content-length", str(len(body))), *headers]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def request_id_of(given: str | None) -> str:
    """The id that the client gave its request, where that is fit for a header and a log line; else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid4().hex


def _header(scope: Any, name: bytes) -> str:
    """The header's value without parameters, or nothing."""
    value = next((value for key, value in scope["headers"] if key == name), b"")
    return str(value.partition(b";")[0].decode("latin-1")).strip().lower()


async def _form_of(receive: Any) -> bytes:
    form = b""
    while len(form) <= LONGEST_FORM_BYTES:
        message = await receive()
        form += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return form[:LONGEST_FORM_BYTES]


def _clean(path: str) -> str:
    """The path without doubled slashes and dot segments; a trailing slash means something and stays."""
    if "//" not in path and "/." not in path:
        return path
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return f"{clean}/" if path.endswith("/") and clean != "/" else clean


def _split_verb(last: str) -> str:
    if not last:
        return _EMPTY_SEGMENT
    name, colon, verb = last.rpartition(":")
    return f"{name}/:{verb}" if colon else last


def _after_routing(app: ASGIApp) -> ASGIApp:
    """Give the handler the path parameters the client meant, and refuse what the router matched too generously."""

    async def unmask(scope: Scope, receive: Receive, send: Send) -> None:
        parameters = scope["path_params"]
        if scope.get("method") == "OPTIONS":  # Litestar adds OPTIONS to every route.
            raise MethodNotAllowedException
        for name, value in parameters.items():
            if value == _EMPTY_SEGMENT:
                # The router caches and shares its dictionary of parameters.
                scope["path_params"] = {**parameters, name: ""}
            elif str(value).startswith(":") and scope["path"].endswith(f"/{value}"):
                raise NotFoundException  # A verb was taken for an id.
        await app(scope, receive, send)

    return unmask


def _resolve_in_turn(app: Litestar) -> None:
    """Litestar starts a task for each dependency of a handler that has several. Ours are there already, and to take one
    after the other costs next to nothing."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for _, parameters in route.route_handler_map.values():
                parameters.dependency_batches = [{each} for batch in parameters.dependency_batches for each in batch]


def _provide(thing: object) -> Provide:
    return thing if isinstance(thing, Provide) else Provide(lambda: thing, sync_to_thread=False)


def _answer_refusal(_request: Request[Any, Any, Any], refusal: Refusal) -> Response[bytes]:
    if refusal.status >= 500 and not isinstance(refusal, (NotSupported, Unavailable)):
        _log.error("refused as our own fault: %s", refusal.error, exc_info=refusal)
    content = msgspec.json.encode(http_body(refusal))
    return Response(content, status_code=refusal.status, media_type=MediaType.JSON)


def _answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("%s %s failed", request.method, request.scope.get("path_template", "?"), exc_info=error)
    content = msgspec.json.encode(http_body(Internal("unexpected failure")))
    return Response(content, status_code=500, media_type=MediaType.JSON)


def _answer_framework_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Litestar's own refusals: a parameter that does not parse, a body too large, a client that went away."""
    if error.status_code >= 500:
        if error.detail == "client disconnected prematurely":
            return _text("", 499)
        return _answer_unexpected(request, error)
    content = msgspec.json.encode(http_body(MalformedRequest(error.detail)))
    return Response(content, status_code=error.status_code, media_type=MediaType.JSON)


def _answer_unknown_path(_request: Request[Any, Any, Any], _error: NotFoundException) -> Response[bytes]:
    return _text("Not Found\n", 404)


def _answer_wrong_method(_request: Request[Any, Any, Any], _error: MethodNotAllowedException) -> Response[bytes]:
    return _text("Method Not Allowed\n", 405)


def _health_routes(health: Health) -> list[ControllerRouterHandler]:
    @get("/livez", sync_to_thread=False)
    def livez() -> Response[bytes]:
        return _verdict(health.why_not_alive())

    @get("/readyz")
    async def readyz() -> Response[bytes]:
        return _verdict(await health.why_not_ready())

    @get("/startupz")
    async def startupz() -> Response[bytes]:
        return _verdict(await health.why_not_started())

    @get("/metrics", sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(generate_latest(telemetry.metrics), media_type=_METRICS_TYPE)

    return [livez, readyz, startupz, metrics]


def _openapi_route(service: str, routes: Sequence[ControllerRouterHandler]) -> ControllerRouterHandler:
    """What the service publishes about its operations, as the module `openapi` beside its routes describes them.

    That module is imported and the document built when somebody asks: other processes do not hold either.
    """
    package = next((handler.fn.__module__.rpartition(".")[0] for handler in routes if hasattr(handler, "fn")), "")

    @cache
    def document() -> bytes:
        from shared.openapi import describe

        if not package or importlib.util.find_spec(f"{package}.openapi") is None:
            return describe(service, (), {})
        described = importlib.import_module(f"{package}.openapi")
        return describe(service, described.OPERATIONS, described.NAMES)

    @get("/openapi.json", sync_to_thread=False)
    def openapi() -> Response[bytes]:
        return Response(document(), media_type=MediaType.JSON)

    return openapi


def _verdict(why_not: str | None) -> Response[bytes]:
    return _text("ok\n", 200) if why_not is None else _text(f"{why_not}\n", 503)


def _text(body: str, status: int) -> Response[bytes]:
    return Response(
        body.encode(),
        status_code=status,
        media_type=MediaType.TEXT,  # Litestar adds the charset.
        headers={"X-Content-Type-Options": "nosniff"},
    )
