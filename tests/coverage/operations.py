"""Every route of the API specification's table 1.2, and the requests that show what it refuses. Data: tests ask.

What succeeds, how it is written and who got through it is seen in all tests. A cell that makes no sense says why. `{…}`
in a target names something that `tests.system.test_operations` has made. The numbers are those of the specification and
of the gateway's table; a route of two paths has a row for each, and below stand our own extensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from gateway.table import EXTENSION_PREFIX, Match, find
from tests.coverage.evidence import Aspect

V1: Final = "/apis/v1beta1"
NOBODY: Final = "00000000-0000-4000-8000-000000000000"

UPLOAD: Final = object()
"""A body that is a form with a good package."""


class Ask(msgspec.Struct, frozen=True):
    """A request and the status it must have. A body that is bytes is sent as it is."""

    method: str
    target: str
    status: int
    body: Any = None
    headers: Mapping[str, str] = {}
    by_agent: bool = False
    """With the token of an external engine's agent."""


class Nothing(msgspec.Struct, frozen=True):
    """Why there is nothing to show."""

    why: str


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    refused: Ask | Nothing
    """Input that it refuses, for what it says and not for whom it names."""
    unknown: Ask | Nothing
    """A thing that does not exist; for lists and creations, one that they refer to."""
    success: Nothing | None = None
    encoding: Nothing | None = None
    clients: Nothing | None = None

    def asks(self) -> dict[Aspect, Ask]:
        cells = {Aspect.VALIDATION: self.refused, Aspect.NOT_FOUND: self.unknown}
        return {aspect: cell for aspect, cell in cells.items() if isinstance(cell, Ask)}

    def reasons(self) -> dict[str, str]:
        """Why a column is empty, by its name."""
        cells = {
            Aspect.SUCCESS.value: self.success,
            Aspect.VALIDATION.value: self.refused,
            Aspect.NOT_FOUND.value: self.unknown,
            Aspect.ENCODING.value: self.encoding,
            CLIENTS: self.clients,
        }
        return {column: cell.why for column, cell in cells.items() if isinstance(cell, Nothing)}


CLIENTS: Final = "clients"

_ID_IS_ANY_TEXT: Final = Nothing("its whole input is ids, and an id may be any text: what is none is unknown")
_REFERS_TO_NOTHING: Final = Nothing("refers to nothing that could be missing")
_TAKES_NO_INPUT: Final = Nothing("takes no input")
_NO_GENERATOR: Final = Nothing("there is no generator of pictures: 501 whatever the request")
_NOT_SERVED: Final = Nothing("optional, and not served: its one client, the launcher of v2-compatible steps, uses gRPC")
_FOR_THE_AGENT: Final = Nothing("called by the agent of an external engine alone")


def takes_ids_alone(operation: Operation) -> bool:
    return operation.refused is _ID_IS_ANY_TEXT


def _by_id(method: str, path: str, after: str = "") -> Operation:
    return Operation(refused=_ID_IS_ANY_TEXT, unknown=Ask(method, f"{V1}/{path}/{NOBODY}{after}", 404))


def _list(path: str, *, unknown: str, status: int = 200, always: str = "") -> Operation:
    return Operation(
        refused=Ask("GET", f"{V1}/{path}?{always}sort_by=nothing", 400),
        unknown=Ask("GET", f"{V1}/{path}?{unknown}", status),
    )


_IN_NO_EXPERIMENT: Final = [{"key": {"type": "EXPERIMENT", "id": NOBODY}, "relationship": "OWNER"}]
_BY_EXPERIMENT: Final = f"resource_reference_key.type=EXPERIMENT&resource_reference_key.id={NOBODY}"
_NO_NAME: Final = "filter=" + quote('{"predicates":[{"op":1,"key":"name","stringValue":"nobody"}]}', safe="")
_NO_PIPELINE: Final = [{"key": {"type": "PIPELINE", "id": NOBODY}, "relationship": "OWNER"}]
_GONE: Final = "{package_url}.gone"

_ARTIFACTS: Final = f"{EXTENSION_PREFIX}runs/{{run}}/nodes/{{node}}/artifacts"
_WEBHOOKS: Final = f"{EXTENSION_PREFIX}webhooks"


def _log(prefix: str) -> Operation:
    return Operation(
        refused=Ask("GET", f"{prefix}/runs/{{run}}/nodes/{{node}}/log?follow=perhaps", 400),
        unknown=Ask("GET", f"{prefix}/runs/{NOBODY}/nodes/{{node}}/log", 404),
    )


def _reported(labels: Mapping[str, str]) -> str:
    """An object of a cluster as its agent sends it, of something that nobody knows here."""
    metadata = {"name": "nobody", "namespace": "kubeflow", "uid": NOBODY, "labels": labels}
    return json.dumps({"metadata": metadata, "spec": {}})


OPERATIONS: Final[Mapping[str, Operation]] = {
    "E1": Operation(refused=Ask("POST", f"{V1}/experiments", 400, {"name": ""}), unknown=_REFERS_TO_NOTHING),
    "E2": _list("experiments", unknown=_NO_NAME),
    "E3": _by_id("GET", "experiments"),
    "E4": _by_id("DELETE", "experiments"),
    "E5": _by_id("POST", "experiments", ":archive"),
    "E6": _by_id("POST", "experiments", ":unarchive"),
    "P1": Operation(
        refused=Ask("POST", f"{V1}/pipelines", 400, {"name": "no address"}),
        unknown=Ask("POST", f"{V1}/pipelines", 400, {"name": "gone", "url": {"pipeline_url": _GONE}}),
    ),
    "P2": _list("pipelines", unknown=_NO_NAME),
    "P3": _by_id("GET", "pipelines"),
    "P4": _by_id("DELETE", "pipelines"),
    "P5": _by_id("GET", "pipelines", "/templates"),
    "P6": Operation(refused=Ask("POST", f"{V1}/pipelines/upload", 400, b"not a form"), unknown=_REFERS_TO_NOTHING),
    "P7": Operation(
        refused=Ask("POST", f"{V1}/pipelines/upload_version", 400, b"not a form"),
        unknown=Ask("POST", f"{V1}/pipelines/upload_version?name=a&pipelineid={NOBODY}", 400, UPLOAD),
    ),
    "P8": Operation(
        refused=Ask("POST", f"{V1}/pipelines/{{pipeline}}/default_version/{{foreign_version}}", 400),
        unknown=Ask("POST", f"{V1}/pipelines/{NOBODY}/default_version/{NOBODY}", 404),
    ),
    "V1": Operation(
        refused=Ask("POST", f"{V1}/pipeline_versions", 400, {"name": "no address"}),
        unknown=Ask(
            "POST",
            f"{V1}/pipeline_versions",
            404,
            {
                "name": "no pipeline",
                "package_url": {"pipeline_url": "{package_url}"},
                "resource_references": _NO_PIPELINE,
            },
        ),
    ),
    "V2": _list(
        "pipeline_versions",
        unknown=f"resource_key.type=PIPELINE&resource_key.id={NOBODY}",
        status=404,
        always="resource_key.type=PIPELINE&resource_key.id={pipeline}&",
    ),
    "V3": _by_id("GET", "pipeline_versions"),
    "V4": _by_id("DELETE", "pipeline_versions"),
    "V5": _by_id("GET", "pipeline_versions", "/templates"),
    "R1": Operation(
        refused=Ask("POST", f"{V1}/runs", 400, {"name": "without a workflow"}),
        unknown=Ask("POST", f"{V1}/runs", 404, {"name": "nowhere", "pipeline_spec": {"pipeline_id": NOBODY}}),
    ),
    "R2": _list("runs", unknown=_BY_EXPERIMENT),
    "R3": _by_id("GET", "runs"),
    "R4": _by_id("DELETE", "runs"),
    "R5": _by_id("POST", "runs", ":archive"),
    "R6": _by_id("POST", "runs", ":unarchive"),
    "R7": Operation(
        refused=Ask("POST", f"{V1}/runs/{{run}}/retry", 409), unknown=Ask("POST", f"{V1}/runs/{NOBODY}/retry", 404)
    ),
    "R8": Operation(
        refused=Ask("POST", f"{V1}/runs/{{run}}/terminate", 400),
        unknown=Ask("POST", f"{V1}/runs/{NOBODY}/terminate", 404),
    ),
    "R9": Operation(
        refused=Ask("POST", f"{V1}/runs/{{run}}:reportMetrics", 400, [1]),
        unknown=Ask(
            "POST",
            f"{V1}/runs/{NOBODY}:reportMetrics",
            404,
            {"metrics": [{"name": "a", "node_id": "b", "number_value": 1}]},
        ),
    ),
    "R10": Operation(
        refused=_ID_IS_ANY_TEXT,
        unknown=Ask("GET", f"{V1}/runs/{NOBODY}/nodes/a/artifacts/b:read", 404),
    ),
    "J1": Operation(
        refused=Ask("POST", f"{V1}/jobs", 400, {"name": "without a workflow"}),
        unknown=Ask(
            "POST",
            f"{V1}/jobs",
            404,
            {
                "name": "nowhere",
                "max_concurrency": "1",
                "pipeline_spec": {"pipeline_id": "{pipeline}"},
                "resource_references": _IN_NO_EXPERIMENT,
            },
        ),
    ),
    "J2": _list("jobs", unknown=_BY_EXPERIMENT),
    "J3": _by_id("GET", "jobs"),
    "J4": _by_id("DELETE", "jobs"),
    "J5": _by_id("POST", "jobs", "/enable"),
    "J6": _by_id("POST", "jobs", "/disable"),
    "X1": Operation(refused=_TAKES_NO_INPUT, unknown=_REFERS_TO_NOTHING),
    "X2": Operation(
        refused=Ask("POST", f"{V1}/workflows", 400, "no workflow", by_agent=True),
        unknown=Ask("POST", f"{V1}/workflows", 404, _reported({"pipeline/runid": NOBODY}), by_agent=True),
        clients=_FOR_THE_AGENT,
    ),
    "X3": Operation(
        refused=Ask("POST", f"{V1}/scheduledworkflows", 400, "no workflow", by_agent=True),
        unknown=Ask("POST", f"{V1}/scheduledworkflows", 400, _reported({}), by_agent=True),
        clients=_FOR_THE_AGENT,
    ),
    "X4": Operation(refused=_NO_GENERATOR, unknown=_NO_GENERATOR, success=_NO_GENERATOR),
    "X4 {namespace}": Operation(refused=_NO_GENERATOR, unknown=_NO_GENERATOR, success=_NO_GENERATOR),
    "X5": Operation(
        refused=Ask("GET", f"{V1}/auth?namespace=kubeflow", 400),
        unknown=Nothing("a namespace need not exist to be asked about"),
    ),
    "X6": Operation(
        refused=_NOT_SERVED,
        unknown=Ask("GET", "/apis/v1alpha1/tasks", 404),
        success=_NOT_SERVED,
        encoding=_NOT_SERVED,
        clients=_NOT_SERVED,
    ),
    "X7": _log(V1),
    "X7 v1alpha1": _log("/apis/v1alpha1"),
    "X8": Operation(refused=_TAKES_NO_INPUT, unknown=_REFERS_TO_NOTHING),
    "artifact": Operation(
        refused=Ask("GET", f"{_ARTIFACTS}/main-logs", 416, headers={"Range": "bytes=99999999-"}),
        unknown=Ask("GET", f"{_ARTIFACTS}/nothing", 404),
    ),
    "dead": Operation(
        refused=Ask("GET", f"{EXTENSION_PREFIX}dead?page_size=-1", 400),
        unknown=Ask("GET", f"{EXTENSION_PREFIX}dead?subscriber=nobody", 404),
    ),
    "engine": Operation(refused=_TAKES_NO_INPUT, unknown=_REFERS_TO_NOTHING),
    "events": Operation(
        refused=Ask("GET", f"{EXTENSION_PREFIX}events?since=yesterday", 400), unknown=_REFERS_TO_NOTHING
    ),
    "run-events": Operation(
        refused=Ask("GET", f"{EXTENSION_PREFIX}runs/{{run}}/events?until=never", 400),
        unknown=Ask("GET", f"{EXTENSION_PREFIX}runs/{NOBODY}/events", 404),
    ),
    "webhooks": Operation(
        refused=Ask("POST", _WEBHOOKS, 400, {"name": "hook", "url": "ftp://hooks.example/"}),
        unknown=_REFERS_TO_NOTHING,
    ),
    "webhook": Operation(
        refused=Ask("PATCH", f"{_WEBHOOKS}/{{webhook}}", 400, {"facts": ["suceeded"]}),
        unknown=Ask("POST", f"{_WEBHOOKS}/{NOBODY}:test", 404),
    ),
    "deliveries": Operation(
        refused=Ask("GET", f"{_WEBHOOKS}/{{webhook}}/deliveries?page_size=-1", 400),
        unknown=Ask("POST", f"{_WEBHOOKS}/{{webhook}}/deliveries/{NOBODY}:redeliver", 404),
    ),
}

_BESIDE: Final[Mapping[str, str]] = {
    f"{V1}/visualizations/{{namespace}}": "X4 {namespace}",
    "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log": "X7 v1alpha1",
}
"""The second path of a route, by its pattern in the gateway's table."""

_EXTENSIONS: Final = {
    "artifact": re.compile(f"{EXTENSION_PREFIX}runs/[^/]*/nodes/[^/]*/artifacts/[^/]*"),
    "dead": re.compile(f"{EXTENSION_PREFIX}dead"),
    "engine": re.compile(f"{EXTENSION_PREFIX}engine"),
    "events": re.compile(f"{EXTENSION_PREFIX}events"),
    "webhooks": re.compile(_WEBHOOKS),
    "webhook": re.compile(f"{_WEBHOOKS}/[^/]*"),
    "deliveries": re.compile(f"{_WEBHOOKS}/[^/]*/deliveries(/[^/]*)?"),
    "run-events": re.compile(f"{EXTENSION_PREFIX}runs/[^/]*/events"),
}


def name_of(method: str, target: str) -> str | None:
    """The row that a request belongs to, or the name of a route that is no operation; None for an unknown path."""
    path = target.partition("?")[0]
    found = find(method, path.encode("utf-8", "surrogateescape"))
    if not isinstance(found, Match):
        return None
    extension = next((name for name, pattern in _EXTENSIONS.items() if pattern.fullmatch(path)), None)
    return extension or _BESIDE.get(found.route.pattern, found.route.name)
