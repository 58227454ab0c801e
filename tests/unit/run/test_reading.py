"""What a cluster would refuse of a workflow is refused when a run is created of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.run import compose, reading
from services.run.domain import EngineName
from services.run.reading import Runner

TEMPLATE = {"name": "main", "container": {"image": "i"}}


def refusal(runner: Runner, *, template: dict[str, Any] | None = None, **metadata: Any) -> str:
    spec = {"entrypoint": "main", "templates": [TEMPLATE | (template or {})]}
    text = msgspec.json.encode({"metadata": metadata, "spec": spec}).decode()
    return reading.judge(compose.prepare(text, "d", compose.Rules()), runner)


def argo(**details: Any) -> Runner:
    return Runner(engine=EngineName.ARGO, **details)


def test_what_fits_is_taken_whatever_only_the_embedded_engine_cannot_do() -> None:
    metadata = {
        "labels": {"team": "mill", "example.org/stage": "", "a": "B_1.c"},
        "annotations": {"pipelines.kubeflow.org/pipeline_spec": "{" * 200_000, "x": "any text, of any kind"},
    }
    assert refusal(argo(), template={"daemon": True, "sidecars": [{"name": "s", "image": "i"}]}, **metadata) == ""


def test_a_workflow_that_is_larger_than_the_cluster_takes_is_refused_with_both_sizes_and_a_way_out() -> None:
    args = ["x" * 70_000]
    large = {"container": {"image": "i", "args": args}}
    assert refusal(argo(), template=large) == ""
    said = refusal(argo(most_workflow_bytes=70_000), template=large)
    size, room = (int(word) for word in said.split() if word.isdecimal())
    assert 70_000 < size < 71_000
    assert 50_000 < room < 60_000
    assert "HEADRACE_MOST_WORKFLOW_BYTES" in said
    assert "split the pipeline" in said
    # It is the cluster's limit, and none of other engines.
    for engine in (EngineName.EMBEDDED, EngineName.EXTERNAL):
        runner = Runner(engine=engine, most_workflow_bytes=70_000)
        assert refusal(runner, template={"container": {"image": "i", "command": ["true"], "args": args}}) == ""


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"annotations": {"a": "x" * 262_144}}, "metadata.annotations have 2621"),
        ({"labels": {"a": "two words"}}, 'metadata.labels.a: "two words" is no value'),
        ({"labels": {"a": "x" * 64}}, "is no value"),
        ({"labels": {"a": 1}}, "metadata.labels.a: 1 is no value"),
        ({"labels": {"two words": "a"}}, "metadata.labels: 'two words' is no name"),
        ({"labels": {"Upper.org/a": "a"}}, "metadata.labels: 'Upper.org/a' is no name"),
        ({"labels": {"/a": "a"}}, "metadata.labels: '/a' is no name"),
        ({"annotations": {"example.org/": "a"}}, "metadata.annotations: 'example.org/' is no name"),
        ({"annotations": {"a": {}}}, "metadata.annotations.a: {} is no value"),
    ],
)
def test_what_no_api_server_takes_as_metadata_is_refused_by_name(metadata: dict[str, Any], said: str) -> None:
    assert said in refusal(argo(), **metadata)
    embedded = {"container": {"image": "i", "command": ["true"]}}
    assert refusal(Runner(), template=embedded, **metadata) == ""
