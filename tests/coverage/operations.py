"""Every operation of the API, and the requests that show each aspect of it. Data: the tests make the requests.

`{…}` in a target names something that `tests.system.test_operations` has made. The numbers are those of the API
specification and of the gateway's table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

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


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    refused: Ask
    """What it refuses, or where it takes no input, nonsense that it must not mind."""
    unknown: Ask
    """A thing that does not exist; for lists and creations, one that they refer to."""


def _by_id(method: str, path: str, after: str = "") -> Operation:
    """An operation whose whole input is an id: one that is none is as unknown as one that nobody has."""
    return Operation(
        refused=Ask(method, f"{V1}/{path}/%00%27%22%20%FF{after}", 404),
        unknown=Ask(method, f"{V1}/{path}/{NOBODY}{after}", 404),
    )


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

OPERATIONS: Final[Mapping[str, Operation]] = {
    "E1": Operation(
        refused=Ask("POST", f"{V1}/experiments", 400, {"name": ""}),
        unknown=Ask("POST", f"{V1}/experiments/{NOBODY}", 405, {}),
    ),
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
    "P6": Operation(
        refused=Ask("POST", f"{V1}/pipelines/upload", 400, b"not a form"),
        unknown=Ask("POST", f"{V1}/pipelines/upload/{NOBODY}", 404, b""),
    ),
    "P7": Operation(
        refused=Ask("POST", f"{V1}/pipelines/upload_version", 400, b"not a form"),
        unknown=Ask("POST", f"{V1}/pipelines/upload_version?name=a&pipelineid={NOBODY}", 400, UPLOAD),
    ),
    "P8": Operation(
        refused=Ask("POST", f"{V1}/pipelines/{{pipeline}}/default_version/%00%27", 404),
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
        refused=Ask("GET", f"{V1}/runs/{{run}}/nodes/{{run}}/artifacts/..%5C..%00:read", 404),
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
}
