"""The routing table: every path of the API, as data, and the service that owns it.

`find` is a pure function from method and raw path to what must happen. It implements the routing rules of the API
(API specification, section 1.3) and knows nothing else: not HTTP, not where a service runs, not what an id means.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from enum import Enum
from urllib.parse import quote, unquote

import msgspec


class Owner(Enum):
    """Who answers a path. The values are the names used in texts, logs and metrics."""

    GATEWAY = "gateway"
    EXPERIMENT = "experiment"
    PIPELINE_REGISTRY = "pipeline-registry"
    RUN = "run"
    JOB_SCHEDULER = "job-scheduler"
    METRICS = "metrics"
    NOTIFIER = "notifier"


ANY = frozenset[str]()
"""The method set of a path that takes every method."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """The route's number in the API specification, or a name where it has none."""
    methods: frozenset[str]
    pattern: str
    """`{x}` takes one segment, also an empty one; `:verb` ends the last segment."""
    owner: Owner
    is_open: bool = False
    """Answered to everybody, also where authentication is on: what watches the process, and the documentation."""
    is_for_agent: bool = False
    """Where authentication is on, the agent of an external engine is let in by a token of its own, and nobody else."""


class Match(msgspec.Struct, frozen=True, kw_only=True):
    route: Route
    method: str
    """The method to forward by; differs from the client's where a form POST stands for a long GET."""
    query_is_in_body: bool = False
    """The body is a form whose fields are the query parameters, ahead of those in the URL."""

    @property
    def owner(self) -> Owner:
        return self.route.owner


class NotFound(msgspec.Struct, frozen=True, kw_only=True):
    text: str


class MethodNotAllowed(msgspec.Struct, frozen=True, kw_only=True):
    text: str = "Method Not Allowed\n"


class Redirect(msgspec.Struct, frozen=True, kw_only=True):
    """301 to the cleaned path. `location` is percent-encoded and has no query."""

    location: str


Finding = Match | NotFound | MethodNotAllowed | Redirect

_OUTSIDE = NotFound(text="404 page not found\n")
_UNKNOWN = NotFound(text="Not Found\n")
_NOT_ALLOWED = MethodNotAllowed()


PAGES = (
    "/docs",
    "/docs/",
    "/docs/start.js",
    "/docs/authentication.md",
    "/docs/backup.md",
    "/docs/events.md",
    "/docs/extensions.md",
    "/docs/hello-world.yaml",
    "/docs/metrics.md",
    "/docs/observability.md",
    "/docs/operations.md",
    "/docs/swagger-ui.css",
    "/docs/swagger-ui-bundle.js",
)
"""The documentation, file by file: nothing else of any folder can be asked for."""


def _rows() -> Iterator[Route]:
    """Where two patterns take the same path, the one that stands first wins."""

    def v1(name: str, methods: str, pattern: str, owner: Owner, *, is_for_agent: bool = False) -> Route:
        return Route(
            name=name,
            methods=_methods(methods),
            pattern=f"/apis/v1beta1{pattern}",
            owner=owner,
            is_for_agent=is_for_agent,
        )

    yield v1("E1", "POST", "/experiments", Owner.EXPERIMENT)
    yield v1("E2", "GET", "/experiments", Owner.EXPERIMENT)
    yield v1("E3", "GET", "/experiments/{id}", Owner.EXPERIMENT)
    yield v1("E4", "DELETE", "/experiments/{id}", Owner.EXPERIMENT)
    yield v1("E5", "POST", "/experiments/{id}:archive", Owner.EXPERIMENT)
    yield v1("E6", "POST", "/experiments/{id}:unarchive", Owner.EXPERIMENT)

    yield v1("P6", "any", "/pipelines/upload", Owner.PIPELINE_REGISTRY)
    yield v1("P7", "any", "/pipelines/upload_version", Owner.PIPELINE_REGISTRY)
    yield v1("P1", "POST", "/pipelines", Owner.PIPELINE_REGISTRY)
    yield v1("P2", "GET", "/pipelines", Owner.PIPELINE_REGISTRY)
    yield v1("P3", "GET", "/pipelines/{id}", Owner.PIPELINE_REGISTRY)
    yield v1("P4", "DELETE", "/pipelines/{id}", Owner.PIPELINE_REGISTRY)
    yield v1("P5", "GET", "/pipelines/{id}/templates", Owner.PIPELINE_REGISTRY)
    yield v1("P8", "POST", "/pipelines/{pipeline_id}/default_version/{version_id}", Owner.PIPELINE_REGISTRY)
    yield v1("V1", "POST", "/pipeline_versions", Owner.PIPELINE_REGISTRY)
    yield v1("V2", "GET", "/pipeline_versions", Owner.PIPELINE_REGISTRY)
    yield v1("V3", "GET", "/pipeline_versions/{version_id}", Owner.PIPELINE_REGISTRY)
    yield v1("V4", "DELETE", "/pipeline_versions/{version_id}", Owner.PIPELINE_REGISTRY)
    yield v1("V5", "GET", "/pipeline_versions/{version_id}/templates", Owner.PIPELINE_REGISTRY)

    yield v1("R1", "POST", "/runs", Owner.RUN)
    yield v1("R2", "GET", "/runs", Owner.RUN)
    yield v1("R3", "GET", "/runs/{run_id}", Owner.RUN)
    yield v1("R4", "DELETE", "/runs/{id}", Owner.RUN)
    yield v1("R5", "POST", "/runs/{id}:archive", Owner.RUN)
    yield v1("R6", "POST", "/runs/{id}:unarchive", Owner.RUN)
    yield v1("R7", "POST", "/runs/{run_id}/retry", Owner.RUN)
    yield v1("R8", "POST", "/runs/{run_id}/terminate", Owner.RUN)
    yield v1("R9", "POST", "/runs/{run_id}:reportMetrics", Owner.METRICS)
    yield v1("R10", "GET", "/runs/{run_id}/nodes/{node_id}/artifacts/{artifact_name}:read", Owner.RUN)

    yield v1("J1", "POST", "/jobs", Owner.JOB_SCHEDULER)
    yield v1("J2", "GET", "/jobs", Owner.JOB_SCHEDULER)
    yield v1("J3", "GET", "/jobs/{id}", Owner.JOB_SCHEDULER)
    yield v1("J4", "DELETE", "/jobs/{id}", Owner.JOB_SCHEDULER)
    yield v1("J5", "POST", "/jobs/{id}/enable", Owner.JOB_SCHEDULER)
    yield v1("J6", "POST", "/jobs/{id}/disable", Owner.JOB_SCHEDULER)

    yield Route(name="X1", methods=ANY, pattern="/apis/v1beta1/healthz", owner=Owner.GATEWAY, is_open=True)
    yield v1("X2", "POST", "/workflows", Owner.RUN, is_for_agent=True)
    yield v1("X3", "POST", "/scheduledworkflows", Owner.JOB_SCHEDULER, is_for_agent=True)
    yield v1("X4", "POST", "/visualizations", Owner.RUN)
    yield v1("X4", "POST", "/visualizations/{namespace}", Owner.RUN)
    yield v1("X5", "GET", "/auth", Owner.RUN)
    yield v1("X7", "any", "/runs/{run_id}/nodes/{node_id}/log", Owner.RUN)
    yield Route(name="X7", methods=ANY, pattern="/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log", owner=Owner.RUN)
    yield Route(name="X8", methods=ANY, pattern="/metrics", owner=Owner.GATEWAY)

    def ours(name: str, pattern: str) -> Route:
        return Route(name=name, methods=_methods("GET"), pattern=pattern, owner=Owner.GATEWAY, is_open=True)

    yield ours("livez", "/livez")
    yield ours("readyz", "/readyz")
    yield ours("startupz", "/startupz")
    yield ours("openapi", "/openapi.json")
    yield ours("openapi", "/apis/headrace/v1/openapi.json")
    yield ours("asyncapi", "/asyncapi.json")
    yield ours("asyncapi", "/apis/headrace/v1/asyncapi.json")
    for page in PAGES:
        yield ours("docs", page)


EXTENSION_PREFIX = "/apis/headrace/v1/"

EXTENSIONS: dict[str, Route] = {
    segment: Route(name=f"headrace-{segment}", methods=ANY, pattern=f"{EXTENSION_PREFIX}{segment}", owner=owner)
    for segment, owner in {
        "runs": Owner.RUN,
        "events": Owner.NOTIFIER,
        "webhooks": Owner.NOTIFIER,
        "dead": Owner.NOTIFIER,
        "engine": Owner.RUN,
        "jobs": Owner.JOB_SCHEDULER,
        "pipelines": Owner.PIPELINE_REGISTRY,
        "experiments": Owner.EXPERIMENT,
        "metrics": Owner.METRICS,
    }.items()
}
"""Routes beyond the API, by the first segment after the prefix; what lies below is the service's own affair."""

_RUN_EVENTS = Route(
    name="headrace-run-events",
    methods=ANY,
    pattern=f"{EXTENSION_PREFIX}runs/{{run_id}}/events",
    owner=Owner.NOTIFIER,
)
"""The exception: what happens to a run is told by who tells what happens."""


def find(method: str, raw_path: bytes, *, is_form: bool = False, method_override: str | None = None) -> Finding:
    """What a request asks for. `raw_path` is the path as sent, still percent-encoded, without query.

    `is_form` and `method_override` describe the two headers by which a client sends a query too long for a URL: a
    POST of a form counts as the GET of the same path, or as the method that the override names.
    """
    path = _decoded(raw_path)
    clean = _cleaned(path)
    if clean != path:
        return Redirect(location=quote(clean, safe="/:@&=+$,", errors="surrogateescape"))
    candidates = tuple(_candidates(path))
    if not candidates and path.startswith(EXTENSION_PREFIX):
        return _find_extension(method, path)
    if not candidates:
        return _UNKNOWN if path.startswith("/apis/") else _OUTSIDE
    return _by_method(candidates, method, is_form, method_override)


def _by_method(
    candidates: tuple[Route, ...], method: str, is_form: bool, method_override: str | None
) -> Match | MethodNotAllowed:
    first = candidates[0]
    if first.methods == ANY:
        return Match(route=first, method=method)
    stands_for_another = method == "POST" and is_form
    if stands_for_another and method_override:
        asked = method_override.upper()
        route = _taking(asked, candidates)
        return _NOT_ALLOWED if route is None else Match(route=route, method=asked, query_is_in_body=asked != "POST")
    if route := _taking(method, candidates):
        return Match(route=route, method=method)
    if stands_for_another and (route := _taking("GET", candidates)):
        return Match(route=route, method="GET", query_is_in_body=True)
    return _NOT_ALLOWED


def _taking(method: str, candidates: tuple[Route, ...]) -> Route | None:
    return next((route for route in candidates if method in route.methods), None)


def _find_extension(method: str, path: str) -> Match | NotFound:
    first, *below = path.removeprefix(EXTENSION_PREFIX).split("/")
    resource, _, _ = first.partition(":")
    is_of_a_run = resource == "runs" and len(below) == 2 and below[1] == "events"
    route = _RUN_EVENTS if is_of_a_run else EXTENSIONS.get(resource)
    return _UNKNOWN if route is None else Match(route=route, method=method)


def _candidates(path: str) -> Iterator[Route]:
    """The routes whose pattern takes the path, whatever their methods."""
    *leading, last = path[1:].split("/")
    # The text after the last colon is a verb, even where no route has it: an id cannot end in `:b`.
    name, colon, verb = last.rpartition(":")
    if colon and not name:
        return
    segments = (*leading, name if colon else last)
    for wanted, route in _INDEX.get((len(segments), _resource(segments), verb if colon else ""), ()):
        if all(segments[position] == text for position, text in wanted):
            yield route


def _decoded(raw_path: bytes) -> str:
    """Decoded before it is split: `%2F` makes a segment and `%3A` a verb. Bytes that are not text stay distinct."""
    return unquote(raw_path.decode("ascii", "surrogateescape"), errors="surrogateescape") or "/"


def _cleaned(path: str) -> str:
    """The path without empty and dot segments; a slash at the end is kept, for it means an empty id."""
    if "//" not in path and "/." not in path and path.startswith("/"):
        return path
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _methods(text: str) -> frozenset[str]:
    return ANY if text == "any" else frozenset(text.split())


Wanted = tuple[tuple[int, str], ...]
"""Positions and texts of a pattern's literal segments."""


Key = tuple[int, str, str]
"""Number of segments, resource and verb: what a path must share with a pattern exactly."""


def _resource(segments: tuple[str, ...]) -> str:
    """`runs` of /apis/v1beta1/runs/…; the last segment of a shorter path. No pattern has a variable there."""
    return segments[min(2, len(segments) - 1)]


def _compiled(routes: tuple[Route, ...]) -> dict[Key, tuple[tuple[Wanted, Route], ...]]:
    index: dict[Key, tuple[tuple[Wanted, Route], ...]] = {}
    for route in routes:
        *leading, last = route.pattern[1:].split("/")
        name, _, verb = last.rpartition(":") if ":" in last else (last, "", "")
        segments = (*leading, name)
        wanted = tuple((at, text) for at, text in enumerate(segments) if not text.startswith("{"))
        key = (len(segments), _resource(segments), verb)
        index[key] = (*index.get(key, ()), (wanted, route))
    return index


ROUTES: tuple[Route, ...] = tuple(_rows())
_INDEX = _compiled(ROUTES)
