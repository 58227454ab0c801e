"""The whole API asked what nobody would think of asking, by its own description.

Schemathesis makes the requests from `/openapi.json`, both what the description allows and what it forbids. By itself it
would stay among ids that nobody has and bodies that fail at their first field, so half of the ids are real ones, and
half of the bodies are examples of the description with some of their fields made up. A stack on which nothing is down
may answer 5xx to two things only: an upload under a name that is taken, and a visualization.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema

from services.experiment.openapi import OPERATIONS as OF_EXPERIMENTS
from services.job_scheduler.openapi import OPERATIONS as OF_JOBS
from services.metrics.openapi import OPERATIONS as OF_METRICS
from services.notifier.openapi import OPERATIONS as OF_EVENTS
from services.pipeline_registry.openapi import OPERATIONS as OF_PIPELINES
from services.run.openapi import OPERATIONS as OF_RUNS
from tests.support import swagger
from tests.support.api import Api, workflow_of
from tests.support.hooks import judge
from tests.support.packages import PIPELINE, tarball
from tests.support.stack import Stack

AnyOperation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[AnyOperation]

_SEED: Final = 138
_EXAMPLES: Final = 40
"""Of each operation, and of each of: allowed, forbidden. All of it together takes less than a minute."""
_WITHIN_SECONDS: Final = 30

_OF_SERVICES = (*OF_EXPERIMENTS, *OF_PIPELINES, *OF_RUNS, *OF_JOBS, *OF_METRICS, *OF_EVENTS)
_ALLOWED: Final = [
    *("GetHealthz", "GetLiveness", "GetReadiness", "GetStartup", "GetMetrics"),
    # What deletes comes last, so that the others find something.
    *(each.id for each in sorted(_OF_SERVICES, key=lambda each: each.method == "DELETE")),
]
# An id in a path may be any text: where there is nothing else, nothing is forbidden.
_FORBIDDEN: Final = [each.id for each in _OF_SERVICES if each.body or each.takes_file or each.query]
_TRIALS: Final = [
    *(pytest.param(GenerationMode.NEGATIVE, each, id=f"{each}-forbidden") for each in _FORBIDDEN),
    *(pytest.param(GenerationMode.POSITIVE, each, id=f"{each}-allowed") for each in _ALLOWED),
]
_UPLOADS: Final = frozenset({"UploadPipeline", "UploadPipelineVersion"})
_VISUALIZATIONS: Final = frozenset({"CreateVisualization", "CreateVisualizationV1"})
_TAKEN: Final = "schemathesis"
_V1: Final = "/apis/v1beta1"
_TARBALL: Final = tarball(("pipeline.yaml", PIPELINE.encode()))
_PACKAGE: Final = Path(__file__).parents[2] / "infra" / "examples" / "ml-train-deploy.yaml"


class _Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of errors."""

    error: str
    message: str
    code: int
    details: list[dict[str, Any]] = []
    """Missing where the request could not even be read, as with the original's gateway."""


class _UploadError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    error_message: str
    error_details: str


@pytest.fixture(scope="module")
def schema(stack: Stack) -> BaseSchema:
    schema = schemathesis.openapi.from_url(f"{stack.url}/openapi.json")
    # There is no secret here, and what is filtered from a failed request keeps it from being repeated.
    schema.config.output.sanitization.update(enabled=False)
    return schema


@pytest.fixture(scope="module")
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def ids(stack: Stack) -> dict[str, str]:
    """Of things that are there, by the word that stands before them in a path."""
    api = Api(stack.url)
    experiment = api.post(f"{_V1}/experiments", {"name": _TAKEN})["id"]
    pipeline = api.upload(f"{_V1}/pipelines/upload?name={_TAKEN}", _PACKAGE.name, _PACKAGE.read_bytes())
    spec = {"pipeline_id": pipeline["id"], "parameters": [{"name": "rows", "value": "100"}]}
    owner = [{"key": {"type": "EXPERIMENT", "id": experiment}, "relationship": "OWNER"}]
    body = {"name": _TAKEN, "pipeline_spec": spec, "resource_references": owner}
    run = api.post(f"{_V1}/runs", body)["run"]["id"]
    job = api.post(f"{_V1}/jobs", {**body, "max_concurrency": "1"})["id"]
    detail = api.run_when(run, within_seconds=_WITHIN_SECONDS, statuses=frozenset({"Succeeded"}))
    nodes = workflow_of(detail)["status"]["nodes"].values()
    train = next(each for each in nodes if each["displayName"] == "train")
    return {
        "experiments": experiment,
        "pipelines": pipeline["id"],
        "pipeline_versions": pipeline["default_version"]["id"],
        "default_version": pipeline["default_version"]["id"],
        "runs": run,
        "jobs": job,
        "nodes": train["id"],
        "artifacts": train["outputs"]["artifacts"][0]["name"],
        "webhooks": api.post("/apis/headrace/v1/webhooks", {"name": _TAKEN, "url": "http://127.0.0.1:9/"})["id"],
    }


@pytest.fixture(scope="module", autouse=True)
def jobs(stack: Stack) -> Iterator[list[str]]:
    """Jobs that were made by chance; they would go on firing."""
    made: list[str] = []
    yield made
    for job in made:
        Api(stack.url).call("DELETE", f"{_V1}/jobs/{job}")


def test_every_described_operation_is_tried(schema: BaseSchema) -> None:
    assert {operation_id for operation_id, _ in _described(schema)} == set(_ALLOWED)


@pytest.mark.parametrize(("mode", "operation_id"), _TRIALS)
def test_no_request_finds_a_fault(
    schema: BaseSchema,
    http: requests.Session,
    ids: dict[str, str],
    jobs: list[str],
    mode: GenerationMode,
    operation_id: str,
) -> None:
    operation = dict(_described(schema))[operation_id]

    @seed(_SEED)
    @settings(
        max_examples=_EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_cases(operation, mode, ids))
    def ask(case: AnyCase) -> None:
        reply = case.call(session=http, timeout=_WITHIN_SECONDS, allow_redirects=False)
        kind = reply.headers.get("content-type", [""])[0]
        try:
            judge(case.method.upper(), str(reply.request.path_url), reply.status_code, kind, reply.content)
            _judge(operation_id, reply.status_code, kind, reply.content)
        except AssertionError as fault:
            pytest.fail(f"{fault}\nseed {_SEED}; {case.as_curl_command()}", pytrace=False)
        if operation_id == "CreateJob" and reply.status_code == 200:
            jobs.append(json.loads(reply.content)["id"])

    ask()


def _described(schema: BaseSchema) -> Iterator[tuple[str, AnyOperation]]:
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result.err()
        operation = result.ok()
        yield operation.definition.raw["operationId"], operation


@st.composite
def _cases(draw: st.DrawFn, operation: AnyOperation, mode: GenerationMode, ids: dict[str, str]) -> AnyCase:
    case = draw(operation.as_strategy(generation_mode=mode))
    for before, name in re.findall(r"/([a-z_]+)/\{([a-z_]+)\}", operation.path):
        if before in ids and draw(st.booleans()):
            case.path_parameters[name] = quote(ids[before], safe="")
    # What follows a log ends when its run does, and events never do; they are no answers to wait for here.
    case.query.pop("follow", None)
    if operation.path.endswith("/events"):
        case.query["until"] = "now"
    # Under a key that was used before, a creation looks no further.
    if draw(st.integers(0, 3)):
        case.headers.pop("Idempotency-Key", None)
    for name in ("resource_reference_key.id", "resource_key.id", "pipelineid"):
        if name in case.query and draw(st.booleans()):
            case.query[name] = ids[draw(st.sampled_from(["experiments", "pipelines", "pipeline_versions"]))]
    if "filter" in case.query and draw(st.booleans()):
        case.query["filter"] = json.dumps({"predicates": draw(st.lists(_PREDICATES, max_size=3))})
    if isinstance(case.body, dict) and draw(st.booleans()):
        content = operation.definition.raw["requestBody"]["content"]
        if "multipart/form-data" in content:
            # Known by its content: the form gives the file no name that says what it is.
            form: dict[str, Any] = {"uploadfile": _TARBALL}
            case.body = form
            case.query["name"] = draw(st.sampled_from([_TAKEN, case.query.get("name", "")]))
            case.query["pipelineid"] = ids["pipelines"]
        elif "example" in content["application/json"]:
            made_up: dict[str, Any] = {name: value for name, value in case.body.items() if draw(st.booleans())}
            case.body = {**_example_of(operation, ids), **made_up}
    return case


def _example_of(operation: AnyOperation, ids: dict[str, str]) -> dict[str, Any]:
    """The body that the description gives as its example, with a pipeline that is there."""
    content = operation.definition.raw["requestBody"]["content"]["application/json"]
    example: dict[str, Any] = copy.deepcopy(content["example"])
    for reference in example.get("resource_references", ()):
        reference["key"]["id"] = ids["pipelines"]
    return example


_PREDICATES: Final = st.fixed_dictionaries(
    {
        "op": st.sampled_from(
            ["EQUALS", "NOT_EQUALS", "GREATER_THAN", "LESS_THAN_EQUALS", "IN", "IS_SUBSTRING", 0, 99]
        ),
        "key": st.sampled_from(["id", "name", "created_at", "status", "storage_state", "finished_at", "metric:a", "'"]),
    },
    optional={
        "string_value": st.text(max_size=8),
        "int_value": st.integers(),
        "long_value": st.integers().map(str),
        "timestamp_value": st.sampled_from(["2026-01-01T00:00:00Z", "0000-00-00T00:00:00Z", "99999-01-01T00:00:00Z"]),
        "string_values": st.fixed_dictionaries({"values": st.lists(st.text(max_size=8), max_size=3)}),
    },
)


def _judge(operation_id: str, status: int, kind: str, body: bytes) -> None:
    """What the published reference does not say: which faults there may be, and errors of what it does not describe."""
    text = body[:1000].decode(errors="replace")
    if status >= 500:
        is_taken = operation_id in _UPLOADS and status == 500 and "already exist" in text.lower()
        is_picture = operation_id in _VISUALIZATIONS and status == 501
        assert is_taken or is_picture, f"a fault: {status} {text}"
    if status < 400:
        return
    if status in swagger.TEXT_STATUSES and kind.startswith("text/plain") and not body.startswith(b"{"):
        return
    shape = _UploadError if operation_id in _UPLOADS else _Status
    try:
        msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as reason:
        raise AssertionError(f"no error of the API: {status} {kind} {text}") from reason
