"""Which steps are the same, and which run each time."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest

from services.run.engine.embedded.cache import cacheable, duration_seconds
from services.run.engine.embedded.orders import StepOrder
from tests.support.embedded_runs import FakeExecutor, identity, workflow

STALENESS = "pipelines.kubeflow.org/max_cache_staleness"


def order(*, name: str = "wf-1", argument: str = "x", **changes: Any) -> StepOrder:
    """Of the step `use` in a run of this name; `changes` are parts of its template."""
    template = {
        "name": "use",
        "metadata": {"labels": {"pipelines.kubeflow.org/cache_enabled": "true"}},
        "inputs": {"parameters": [{"name": "p"}], "artifacts": [{"name": "f", "path": "/in/f"}]},
        "container": {"image": "i", "command": ["sh", "-c"], "args": ["cat /in/f {{inputs.parameters.p}}"]},
        "outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/tmp/o"}}]},
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    metadata = {**template["metadata"], **changes.pop("metadata", {})}  # type: ignore[dict-item]
    container = {**template["container"], **changes.pop("container", {})}  # type: ignore[dict-item]
    document = {
        "spec": {
            "entrypoint": "main",
            "templates": [
                {
                    "name": "main",
                    "dag": {
                        "tasks": [
                            {"name": "make", "template": "make"},
                            {
                                "name": "use",
                                "template": "use",
                                "dependencies": ["make"],
                                "arguments": {
                                    "parameters": [{"name": "p", "value": argument}],
                                    "artifacts": [{"name": "f", "from": "{{tasks.make.outputs.artifacts.f}}"}],
                                },
                            },
                        ]
                    },
                },
                {
                    "name": "make",
                    "container": {"image": "i", "command": ["true"]},
                    "outputs": {"artifacts": [{"name": "f", "path": "/tmp/f"}]},
                },
                {**template, "metadata": metadata, "container": container, **changes},
            ],
        }
    }
    made = FakeExecutor(workflow(json.dumps(document)), who=identity(name=name)).run()
    return next(each for each in made.orders if each.template_name == "use")


def key(**given: Any) -> str:
    found = cacheable(order(**given))
    assert found is not None
    return found.key


def test_the_key_is_the_digest_of_what_the_specification_lists() -> None:
    made = order()
    (placed,) = made.input_artifacts
    assert placed.s3 is not None
    document = {
        "container": {"args": ["cat /in/f x"], "command": ["sh", "-c"], "image": "i", "volumeMounts": []},
        "inputs": {
            "artifacts": [{"name": "f", "path": "/in/f", "s3": placed.s3["key"]}],
            "parameters": {"p": "x"},
        },
        "outputs": {"artifacts": [], "parameters": [{"name": "o", "valueFrom": {"path": "/tmp/o"}}]},
        "volumes": [],
        "initContainers": [],
        "sidecars": [],
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))

    assert key() == hashlib.sha256(text.encode()).hexdigest()


def test_how_a_step_is_run_makes_no_difference() -> None:
    assert key(activeDeadlineSeconds=7, retryStrategy={"limit": 2}) == key()


@pytest.mark.parametrize(
    "changes",
    [
        {"argument": "y"},
        {"container": {"image": "j"}},
        {"container": {"command": ["bash", "-c"]}},
        {"container": {"args": ["{{inputs.parameters.p}}"]}},
        {"container": {"args": ["cat /in/f {{inputs.parameters.p}} {{workflow.name}}"]}},
        {"container": {"env": [{"name": "A", "value": "1"}]}},
        {"container": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        {"container": {"envFrom": [{"secretRef": {"name": "s"}}]}},
        {"container": {"workingDir": "/tmp"}},
        {"container": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}},
        {"outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/tmp/other"}}]}},
        {"outputs": {"artifacts": [{"name": "o", "path": "/tmp/o"}]}},
        {"initContainers": [{"name": "first", "image": "i", "command": ["true"]}]},
        {"sidecars": [{"name": "beside", "image": "i", "command": ["true"]}]},
        {"name": "wf-2"},
    ],
    ids=str,
)
def test_whatever_the_step_is_made_of_makes_another_key(changes: dict[str, Any]) -> None:
    """The last one: an artifact of another execution, wherever its text is the same."""
    assert key(**changes) != key()


def test_the_key_knows_no_address_of_the_object_store() -> None:
    here = order()
    (placed,) = here.input_artifacts
    assert placed.s3 is not None
    moved = msgspec.structs.replace(placed, s3={**placed.s3, "endpoint": "127.0.0.1:4711"})
    there = msgspec.structs.replace(here, input_artifacts=(moved,))

    assert cacheable(there) == cacheable(here)


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"labels": {}}},
        {"metadata": {"labels": {"pipelines.kubeflow.org/cache_enabled": "false"}}},
        {
            "metadata": {
                "labels": {
                    "pipelines.kubeflow.org/cache_enabled": "true",
                    "pipelines.kubeflow.org/enable_caching": "false",
                }
            }
        },
        {"metadata": {"annotations": {STALENESS: "P0D"}}},
        {"metadata": {"annotations": {STALENESS: "a while"}}},
        {"metadata": {"annotations": {"pipelines.kubeflow.org/v2_component": "true"}}},
        {
            "metadata": {
                "labels": {
                    "pipelines.kubeflow.org/cache_enabled": "true",
                    "pipelines.kubeflow.org/pipeline-sdk-type": "tfx-template",
                }
            }
        },
        {"container": {"command": ["python", "/x/tfx/orchestration/kubeflow/container_entrypoint.py"]}},
        {"outputs": {"artifacts": [{"name": "o", "path": "/tmp/o", "s3": {"key": "always/here"}}]}},
    ],
    ids=str,
)
def test_some_steps_run_each_time(changes: dict[str, Any]) -> None:
    assert cacheable(order(**changes)) is None


def test_a_script_runs_each_time() -> None:
    text = """
spec:
  entrypoint: main
  templates:
  - name: main
    metadata: {labels: {pipelines.kubeflow.org/cache_enabled: "true"}}
    script: {image: i, command: [sh], source: "true"}
"""
    (made,) = FakeExecutor(workflow(text)).run().orders
    assert cacheable(made) is None


def test_a_staleness_is_how_old_an_earlier_one_may_be() -> None:
    found = cacheable(order(metadata={"annotations": {STALENESS: "P30D"}}))
    assert found is not None
    assert found.max_age_seconds == 30 * 86400
    assert found.key == key()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("P0D", 0),
        ("PT0S", 0),
        ("P1D", 86400),
        ("P2W", 1209600),
        ("P1M", 2592000),
        ("P1Y", 31536000),
        ("PT36H", 129600),
        ("P1DT2H3M4.5S", 93784.5),
        ("PT1M", 60),
        ("P999999999999Y", 31536000000),
        ("P", None),
        ("PT", None),
        ("P1DT", None),
        ("1D", None),
        ("P1S", None),
        ("PT1D", None),
        ("-P1D", None),
        ("p1d", None),
        ("", None),
    ],
)
def test_durations_are_iso_8601(text: str, seconds: float | None) -> None:
    assert duration_seconds(text) == seconds
