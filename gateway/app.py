"""Puts the gateway together, and answers what no service is asked: health, figures, documentation, unknown paths.

Requests do not pass Litestar's router: the routing rules of the API are not its rules (`table`), and every layer in
front of the proxy is paid by every request. Litestar holds the process's life: what starts, what stops, what is ready.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any, assert_never
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

import msgspec
from litestar import Litestar
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway.auth import CHALLENGE, CHALLENGE_AFTER_REFUSAL, Authentication, create_authentication
from gateway.openapi import Description
from gateway.pages import Pages
from gateway.proxy import AnswerBroken, Call, ClientLeft, Headers, Proxy, Receive, Replicas, Send, read_form
from gateway.settings import Settings
from gateway.table import Finding, Match, MethodNotAllowed, NotFound, Owner, Redirect, Route, find
from shared import telemetry
from shared.errors import InvalidInput, Refusal, Unauthenticated, Unavailable, http_body
from shared.identity import Signer
from shared.tasks import Tasks
from shared.web import Health, Service, request_id_of

LARGEST_FORM_BYTES = 60_000
"""A form that stands for a query, as sent and as written into the request line; the services' server reads URLs of up
to 65,535 bytes."""

ASK_WITHIN_SECONDS = 5.0
"""For a service's description of itself."""

CLIENT_LEFT = 499
"""Counted, never sent: nobody was there to read it."""

_log = logging.getLogger(__name__)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:]{2,45}\](:[0-9]{1,5})?")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_OF_A_BODY = frozenset({b"content-length", b"content-type", b"transfer-encoding", b"x-http-method-override"})

_requests = Counter(
    "headrace_gateway_requests_total",
    "Requests answered, by the service that owns the path.",
    ("service", "method", "code"),
    registry=telemetry.metrics,
)
_durations = Histogram(
    "headrace_gateway_request_duration_seconds",
    "From the request's head to the end of its answer.",
    ("service",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
    registry=telemetry.metrics,
)
_in_flight = Gauge(
    "headrace_gateway_requests_in_flight", "Requests being answered.", ("service",), registry=telemetry.metrics
)
_broken = Counter(
    "headrace_gateway_broken_answers_total",
    "Answers cut off because the service went away within them.",
    ("service",),
    registry=telemetry.metrics,
)


def create_app(settings: Settings) -> Gateway:
    tasks = Tasks()
    proxy = Proxy(connect_timeout_seconds=settings.connect_timeout_seconds)
    replicas = {
        Owner.EXPERIMENT: Replicas(Owner.EXPERIMENT.value, settings.experiment_upstreams),
        Owner.PIPELINE_REGISTRY: Replicas(Owner.PIPELINE_REGISTRY.value, settings.pipeline_registry_upstreams),
        Owner.RUN: Replicas(Owner.RUN.value, settings.run_upstreams),
        Owner.JOB_SCHEDULER: Replicas(Owner.JOB_SCHEDULER.value, settings.job_scheduler_upstreams),
        Owner.METRICS: Replicas(Owner.METRICS.value, settings.metrics_upstreams),
        Owner.NOTIFIER: Replicas(Owner.NOTIFIER.value, settings.notifier_upstreams),
    }
    health = Health((), tasks)
    authentication = create_authentication(settings)

    async def part_of(owner: Owner) -> bytes:
        return await _ask(proxy, replicas[owner], b"/openapi.json")

    door = Door(
        settings=settings,
        proxy=proxy,
        replicas=replicas,
        health=health,
        authentication=authentication,
        description=Description(tuple(replicas), part_of, needs_token=settings.authenticates),
    )

    @asynccontextmanager
    async def running(_app: Litestar) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(proxy)
            if authentication is not None:
                await stack.enter_async_context(authentication.running(tasks))
            for of_service in replicas.values():
                if of_service.is_named:
                    await of_service.resolve()
                    tasks.spawn(f"resolve-{of_service.service}", of_service.keep_resolved)
            try:
                yield
            finally:
                await tasks.stop()

    return Gateway(door=door, health=health, lifespan=[running])


class Gateway(Service):
    """Answers every request at the door, before Litestar would route it."""

    __slots__ = ("_door",)

    def __init__(self, *, door: Door, health: Health, **options: Any) -> None:
        self._door = door
        super().__init__(service="gateway", health=health, openapi_config=None, logging_config=None, **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._door(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Door:
    """One request, from its head to its end: name it, find its owner, answer or have it answered, count it."""

    def __init__(
        self,
        *,
        settings: Settings,
        proxy: Proxy,
        replicas: Mapping[Owner, Replicas],
        health: Health,
        authentication: Authentication | None,
        description: Description,
    ) -> None:
        self._proxy = proxy
        self._replicas = replicas
        self._health = health
        self._authentication = authentication
        self._signer = Signer(settings.identity_key)
        self._description = description
        self._pages = Pages()
        self._healthz = msgspec.json.encode(
            {"commit_sha": settings.commit_sha, "tag_name": settings.tag_name, "multi_user": False}
        )

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = request_id_of(_text(headers.get(b"x-request-id")))
        finding = _find(scope, headers)
        service = finding.owner.value if isinstance(finding, Match) else "none"
        code = 500
        started = time.perf_counter()
        in_flight = _in_flight.labels(service)
        in_flight.inc()
        seen: dict[str, str | int] = {"http.request.method": scope["method"], "headrace.service": service}
        # What is for this process alone, its health above all, is asked every few seconds.
        name = "gateway request" if isinstance(finding, Match) and finding.owner is not Owner.GATEWAY else None
        traceparent = _text(headers.get(b"traceparent"))
        try:
            with (
                telemetry.in_request(request_id),
                telemetry.continue_trace(traceparent, name, kind="server", attributes=seen),
            ):
                code = await self._answer(finding, scope, headers, request_id, receive, send)
                seen["http.response.status_code"] = code
        except ClientLeft:
            code = CLIENT_LEFT
        except AnswerBroken as broken:
            # To return without completing the answer is how an application has the server cut the connection.
            code = broken.status
            _log.warning("%s: the answer to request %s was cut: %s", service, request_id, broken)
            _broken.labels(service).inc()
        finally:
            in_flight.dec()
            method = scope["method"] if scope["method"] in _METHODS else "other"
            _requests.labels(service, method, str(code)).inc()
            _durations.labels(service).observe(time.perf_counter() - started)

    async def _answer(
        self,
        finding: Finding,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        request_id: str,
        receive: Receive,
        send: Send,
    ) -> int:
        further = [(b"x-request-id", request_id.encode("ascii"))]
        if self._health.draining:
            further.append((b"connection", b"close"))
        match finding:
            case Match():
                try:
                    identity = await self._identity_of(finding.route, headers.get(b"authorization"))
                    if finding.owner is Owner.GATEWAY:
                        return await self._answer_ourselves(finding, scope, headers, further, send)
                    return await self._forward(finding, scope, request_id, identity, further, receive, send)
                except Unauthenticated as refusal:
                    challenge = CHALLENGE_AFTER_REFUSAL if headers.get(b"authorization") else CHALLENGE
                    further.append((b"www-authenticate", challenge.encode("ascii")))
                    return await _send_refusal(send, refusal, further)
                except Refusal as refusal:
                    return await _send_refusal(send, refusal, further)
            case NotFound(text=text):
                return await _send_text(send, 404, text, further)
            case MethodNotAllowed(text=text):
                return await _send_text(send, 405, text, further)
            case Redirect(location=location):
                query = scope["query_string"]
                to = location.encode("ascii") + (b"?" + query if query else b"")
                return await _send(send, 301, b"", [(b"location", to), *further])
            case _:
                assert_never(finding)

    async def _identity_of(self, route: Route, authorization: bytes | None) -> str | None:
        """Who asks, signed for the services; None where nobody has to say. Raises Unauthenticated or
        PermissionDenied."""
        if self._authentication is None or route.is_open:
            return None
        if route.is_for_agent:
            caller = self._authentication.agent_of(authorization)
        else:
            caller = await self._authentication.caller_of(authorization)
        return self._signer.header_for(caller)

    async def _forward(
        self,
        match: Match,
        scope: Mapping[str, Any],
        request_id: str,
        identity: str | None,
        further: Headers,
        receive: Receive,
        send: Send,
    ) -> int:
        headers, query = scope["headers"], scope["query_string"]
        if match.query_is_in_body:
            form = await read_form(receive, headers, at_most_bytes=LARGEST_FORM_BYTES)
            # The form's fields come first, because the first value of a repeated parameter wins.
            query = b"&".join(part for part in (_as_query(form), query) if part)
            if len(query) > LARGEST_FORM_BYTES:
                raise InvalidInput(f"A form and a query may hold {LARGEST_FORM_BYTES} bytes together.")
            headers = [(name, value) for name, value in headers if name not in _OF_A_BODY]
        call = Call(
            method=match.method,
            target=scope["raw_path"] + (b"?" + query if query else b""),
            headers=headers,
            request_id=request_id,
            traceparent=telemetry.current_traceparent(),
            identity=identity,
            answer_headers=further,
        )
        return await self._proxy.forward(call, self._replicas[match.owner], receive, send)

    async def _answer_ourselves(
        self,
        match: Match,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        further: Headers,
        send: Send,
    ) -> int:
        match match.route.name:
            case "X1":
                return await _send(send, 200, self._healthz, [_PLAIN, *further])
            case "X8":
                content = generate_latest(telemetry.metrics)
                return await _send(send, 200, content, [(b"content-type", CONTENT_TYPE_LATEST.encode()), *further])
            case "livez":
                return await _send_verdict(send, self._health.why_not_alive(), further)
            case "readyz":
                return await _send_verdict(send, await self._health.why_not_ready(), further)
            case "startupz":
                return await _send_verdict(send, await self._health.why_not_started(), further)
            case "openapi":
                content = await self._description.document(_origin_of(scope, headers))
                return await _send(send, 200, content, [(b"content-type", b"application/json"), *further])
            case "asyncapi":
                return await _send(send, 200, _events_described(), [(b"content-type", b"application/json"), *further])
            case "docs":
                accept = headers.get(b"accept", b"")
                page = self._pages.at(match.route.pattern, _origin_of(scope, headers), accept)
                return await _send(send, page.status, page.content, [*page.headers, *further])
            case name:
                raise AssertionError(f"the table gives {name} to the gateway, which has no answer to it")


@cache
def _events_described() -> bytes:
    # Imported when somebody asks: the gateway speaks of facts nowhere else.
    from shared import asyncapi

    return msgspec.json.encode(asyncapi.document())


def _find(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> Finding:
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return find(
        scope["method"],
        scope["raw_path"],
        is_form=content_type == b"application/x-www-form-urlencoded",
        method_override=_text(headers.get(b"x-http-method-override")),
    )


def _origin_of(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str | None:
    """The address that the client sees us at, as far as it may be repeated to it."""
    host = _text(headers.get(b"x-forwarded-host")) or _text(headers.get(b"host")) or ""
    scheme = _text(headers.get(b"x-forwarded-proto")) or scope.get("scheme", "http")
    return f"{scheme}://{host}" if scheme in ("http", "https") and _HOST.fullmatch(host) else None


async def _ask(proxy: Proxy, replicas: Replicas, target: bytes) -> bytes:
    """What a service answers to a GET of ours. Raises Unavailable unless it is a success."""
    status = 0
    chunks: list[bytes] = []

    async def receive() -> dict[str, Any]:
        # There is no body, and nobody who could leave.
        never: dict[str, Any] = await asyncio.get_running_loop().create_future()
        return never

    async def keep(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        chunks.append(message.get("body", b""))

    call = Call(
        method="GET",
        target=target,
        headers=(),
        request_id=telemetry.current_request_id() or uuid4().hex,
        traceparent=telemetry.current_traceparent(),
    )
    try:
        async with asyncio.timeout(ASK_WITHIN_SECONDS):
            await proxy.forward(call, replicas, receive, keep)
    except (AnswerBroken, TimeoutError) as error:
        raise Unavailable(f"The {replicas.service} service did not answer.", cause=str(error)) from error
    if status != 200:
        raise Unavailable(f"The {replicas.service} service did not answer.", cause=f"status {status}")
    return b"".join(chunks)


def _as_query(form: bytes) -> bytes:
    """Parsed and written anew: a body may hold bytes that a request line must not."""
    fields = parse_qsl(form.decode("utf-8", "replace"), keep_blank_values=True)
    return urlencode(fields).encode("ascii")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


_PLAIN = (b"content-type", b"text/plain; charset=utf-8")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")


async def _send_text(send: Send, status: int, text: str, further: Headers) -> int:
    return await _send(send, status, text.encode(), [_PLAIN, _NO_SNIFFING, *further])


async def _send_verdict(send: Send, why_not: str | None, further: Headers) -> int:
    return await _send_text(send, 200 if why_not is None else 503, f"{why_not or 'ok'}\n", further)


async def _send_refusal(send: Send, refusal: Refusal, further: Headers) -> int:
    content = msgspec.json.encode(http_body(refusal))
    return await _send(send, refusal.status, content, [(b"content-type", b"application/json"), *further])


async def _send(send: Send, status: int, content: bytes, headers: Headers) -> int:
    length = (b"content-length", str(len(content)).encode("ascii"))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": content, "more_body": False})
    return status
