"""What a refusal calls the types of a request: as the proto does, whatever the structs here are called."""

from __future__ import annotations

import json

import msgspec
import pytest

from services.experiment.wire import WireExperiment
from services.job_scheduler.wire import WireJob
from services.metrics.wire import ReportRequest
from services.pipeline_registry.wire import WireVersion
from services.run.wire import WireAuthorization, WireRun
from shared import protojson
from shared.errors import InvalidInput, MalformedRequest
from shared.listing import Listing, ListRequest

REFERENCE = '{"resource_references":[{"key":{"type":"X"}}]}'


@pytest.mark.parametrize(
    ("kind", "body", "name"),
    [
        (WireExperiment, '{"storage_state":"X"}', "api.Experiment.StorageState"),
        (WireRun, '{"storage_state":"X"}', "api.Run.StorageState"),
        (WireRun, '{"metrics":[{"format":"X"}]}', "api.RunMetric.Format"),
        (WireRun, REFERENCE, "api.ResourceType"),
        (WireRun, '{"resource_references":[{"relationship":"X"}]}', "api.Relationship"),
        (WireJob, '{"mode":"X"}', "api.Job.Mode"),
        (WireVersion, REFERENCE, "api.ResourceType"),
        (ReportRequest, '{"metrics":[{"format":"X"}]}', "api.RunMetric.Format"),
    ],
)
def test_an_unknown_word_is_refused_by_the_name_of_its_enum(kind: type[msgspec.Struct], body: str, name: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        protojson.decode(body.encode(), kind)
    assert f'unknown value "X" for enum {name} ' in refusal.value.message
    with pytest.raises(MalformedRequest, match=f"cannot unmarshal bool into Go value of type {name} "):
        protojson.decode(body.replace('"X"', "true").encode(), kind)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"resources=X", "X is not a valid go_client.AuthorizeRequest_Resources"),
        (b"verb=X", "X is not a valid go_client.AuthorizeRequest_Verb"),
    ],
)
def test_an_unknown_word_in_a_query_is_refused_by_the_name_that_go_has_for_its_enum(query: bytes, message: str) -> None:
    with pytest.raises(MalformedRequest, match=message):
        protojson.query(WireAuthorization, query)


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ({"x": 1}, 'unknown field "x" in api.Filter'),
        ({"predicates": [{"x": 1}]}, 'unknown field "x" in api.Predicate (field predicates)'),
        ({"predicates": [{"op": "LIKE"}]}, 'unknown value "LIKE" for enum api.Predicate.Op (field predicates.op)'),
        ({"predicates": [{"int_values": {"x": 1}}]}, 'unknown field "x" in api.IntValues'),
        ({"predicates": [{"long_values": {"x": 1}}]}, 'unknown field "x" in api.LongValues'),
        ({"predicates": [{"string_values": {"x": 1}}]}, 'unknown field "x" in api.StringValues'),
    ],
)
def test_what_a_filter_cannot_say_is_refused_by_the_names_of_its_messages(filter_: object, message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Listing(model="Run", table="runs", columns="", fields={}).query(ListRequest(filter=json.dumps(filter_)))
    assert message in refusal.value.message
