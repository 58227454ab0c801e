from __future__ import annotations

import json
from typing import Any

import pytest

from services.pipeline_registry.domain import Parameter
from services.pipeline_registry.templates import read_template
from shared.errors import InvalidInput
from tests.support.packages import CORPUS, PIPELINE, alias_bomb

HEAD = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\n"


def manifest_of(text: str) -> Any:
    return json.loads(read_template(text, "p").manifest)


def test_parameters_are_texts_and_one_without_default_has_no_value() -> None:
    assert read_template(PIPELINE, "p").parameters == (
        Parameter(name="greeting", value="hello"),
        Parameter(name="count", value="3"),
        Parameter(name="whom"),
    )


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("1.0", "1"),
        ("0.1", "0.1"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("2e-05", "0.00002"),
        ("1.5e+20", "150000000000000000000"),
        ("1.0e-7", "0.0000001"),
        ("1_000", "1000"),
        ("0x1f", "31"),
        ("0o17", "15"),
        ("017", "15"),
        ("08", "8"),
        ("true", "true"),
        ("yes", "true"),
        ("Off", "false"),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("12345678901234567890123", "12345678901234567890123"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00Z"),
        ("1:30", "1:30"),
        ("''", ""),
        ("'1e3'", "1e3"),
        ("!!str 1e3", "1e3"),
        ("{a: [1e3, x]}", '{"a":[1000,"x"]}'),
    ],
)
def test_a_parameters_value_becomes_the_text_go_would_make_of_it(written: str, text: str | None) -> None:
    template = read_template(f"{HEAD}spec: {{arguments: {{parameters: [{{name: a, value: {written}}}]}}}}", "p")
    assert template.parameters == (Parameter(name="a", value=text),)


def test_values_of_inputs_and_task_arguments_become_text_and_loop_items_stay_as_they_are() -> None:
    text = f"""{HEAD}
spec:
  templates:
  - name: main
    inputs: {{parameters: [{{name: a, default: 1}}]}}
    dag:
      tasks:
      - {{name: t, template: x, withItems: [1, {{a: 2}}], arguments: {{parameters: [{{name: a, value: true}}]}}}}
  - {{name: x, suspend: {{}}}}
"""
    template, _ = manifest_of(text)["spec"]["templates"]
    (task,) = template["dag"]["tasks"]
    assert template["inputs"] == {"parameters": [{"name": "a", "default": "1"}]}
    assert task["arguments"] == {"parameters": [{"name": "a", "value": "true"}]}
    assert task["withItems"] == [1, {"a": 2}]


def test_json_and_yaml_of_one_workflow_have_one_manifest() -> None:
    as_json = json.dumps(manifest_of(PIPELINE))
    assert read_template(as_json, "p").manifest == read_template(PIPELINE, "p").manifest


def test_numbers_and_booleans_are_texts_where_go_has_texts() -> None:
    text = f"""{HEAD}
metadata: {{labels: {{a: 1}}, annotations: {{b: yes, c: 2020-01-01}}}}
spec:
  templates:
  - name: main
    metadata: {{annotations: {{d: 1.0}}}}
    container: {{image: busybox, command: [sleep, 1e1], args: [-n, 5, 0.5, true, ~], env: [{{name: E, value: 017}}]}}
    initContainers: [{{name: i, image: busybox, args: [1]}}]
    sidecars: [{{name: s, image: busybox, args: [2], ports: [{{containerPort: 80}}]}}]
  - name: dag
    dag:
      tasks:
      - {{name: t, template: main, when: true, withItems: [{{command: [1], when: false, env: 3}}]}}
"""
    manifest = manifest_of(text)
    template, group = manifest["spec"]["templates"]
    assert manifest["metadata"]["labels"] == {"a": "1"}
    assert manifest["metadata"]["annotations"] == {"b": "true", "c": "2020-01-01"}
    assert template["metadata"] == {"annotations": {"d": "1"}}
    assert template["container"]["command"] == ["sleep", "10"]
    assert template["container"]["args"] == ["-n", "5", "0.5", "true", None]
    assert template["container"]["env"] == [{"name": "E", "value": "15"}]
    assert template["initContainers"][0]["args"] == ["1"]
    assert template["sidecars"][0]["args"] == ["2"]
    assert template["sidecars"][0]["ports"] == [{"containerPort": 80}]
    (task,) = group["dag"]["tasks"]
    assert (task["when"], task["withItems"]) == ("true", [{"command": [1], "when": False, "env": 3}])


@pytest.mark.parametrize(
    ("written", "meant"), [("1.0", 1), ("1e3", 1000), ("0.5", 0.5), ("1e21", 1e21), ("123456789012345678901234", None)]
)
def test_a_number_is_written_as_go_writes_it_whether_it_came_as_yaml_or_as_json(
    written: str, meant: float | None
) -> None:
    yaml = f"{HEAD}spec: {{items: [{written}]}}"
    as_json = f'{{"apiVersion":"argoproj.io/v1alpha1","kind":"Workflow","spec":{{"items":[{written}]}}}}'
    for text in (yaml, as_json):
        (found,) = manifest_of(text)["spec"]["items"]
        expected = int(written) if meant is None else meant
        assert (found, type(found)) == (expected, type(expected))


def test_json_may_hold_what_yaml_may_not() -> None:
    document = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"annotations": {"a": "\U0001f600"}},
    }
    text = json.dumps(document, indent="\t")
    assert manifest_of(text)["metadata"]["annotations"] == {"a": "\U0001f600"}


def test_the_manifest_has_what_the_original_adds() -> None:
    manifest = manifest_of(PIPELINE)
    assert list(manifest) == ["apiVersion", "kind", "metadata", "spec", "status"]
    assert manifest["metadata"] == {"generateName": "hello-", "creationTimestamp": None}
    assert manifest["status"] == {"startedAt": None, "finishedAt": None}
    (template,) = manifest["spec"]["templates"]
    assert (template["inputs"], template["outputs"], template["metadata"]) == ({}, {}, {})
    assert template["container"]["resources"] == {}


def test_apiversion_and_kind_alone_are_a_workflow() -> None:
    assert manifest_of(HEAD)["spec"] == {"arguments": {}}
    assert read_template(HEAD, "p").parameters == ()


def test_only_the_first_document_counts() -> None:
    assert read_template(f"{HEAD}---\n: [not yaml", "p").parameters == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown template format"),
        ("just text", "unknown template format"),
        ("[1, 2]", "unknown template format"),
        ("apiVersion: apps/v1\nkind: Deployment", "unknown template format"),
        ('{"pipelineInfo": {"name": "p"}, "root": {}}', "unknown template format"),
        (
            "apiVersion: argoproj.io/v2\nkind: Workflow",
            "Unsupported argo version. Expected: argoproj.io/v1alpha1. Received: argoproj.io/v2",
        ),
        ("kind: Workflow", "Unsupported argo version. Expected: argoproj.io/v1alpha1. Received: "),
        (
            "apiVersion: argoproj.io/v1alpha1\nkind: CronWorkflow",
            "Unexpected resource type. Expected: Workflow. Received: CronWorkflow",
        ),
        ("a: [", "Failed to parse the workflow template."),
        ('{"a": ', "Failed to parse the workflow template."),
        ("a: !!python/object/apply:os.system [id]", "Failed to parse the workflow template."),
        (f"{HEAD}a: !!binary aGk=", "Failed to parse the workflow template."),
        (f"{HEAD}a: .nan", "Failed to parse the workflow template."),
        (f'{HEAD}a: "\\0"', "Failed to parse the workflow template."),
        (f"{HEAD}a: &a [*a]", "Failed to parse the workflow template."),
        (f"{HEAD}? [a, b]\n: c", "Failed to parse the workflow template."),
        (f"{HEAD}spec: text", "Failed to parse the workflow template."),
        (f"{HEAD}spec: {{templates: {{}}}}", "Failed to parse the workflow template."),
        (f"{HEAD}spec: {{templates: [text]}}", "Failed to parse the workflow template."),
        (f"{HEAD}metadata: []", "Failed to parse the workflow template."),
        (f"{HEAD}metadata: {{annotations: {{a: [1]}}}}", "Failed to parse the workflow template."),
        (f"{HEAD}spec: {{arguments: {{parameters: [{{value: 1}}]}}}}", "spec.arguments.parameters[0].name is required"),
        (f"{HEAD}spec: {{arguments: {{parameters: [text]}}}}", "Failed to parse the workflow template."),
        (f"{HEAD}spec: {{arguments: {{parameters: [{{name: 1}}]}}}}", "Failed to parse the workflow template."),
        (alias_bomb(), "Failed to parse the workflow template."),
    ],
)
def test_what_is_no_workflow_is_refused_in_the_words_of_the_api(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_template(text, "p")
    assert refusal.value.message == message


@pytest.mark.parametrize(("length", "passes"), [(9975, True), (9976, False)])
def test_parameters_are_limited_as_they_are_written(length: int, passes: bool) -> None:
    """`[{"name":"a","value":""}]` has 25 bytes without the value."""
    text = f"{HEAD}spec: {{arguments: {{parameters: [{{name: a, value: {'x' * length}}}]}}}}"
    if passes:
        read_template(text, "p")
        return
    with pytest.raises(InvalidInput, match=r"The input parameter length exceed maximum size of 10000\."):
        read_template(text, "p")


def test_angle_brackets_count_as_go_escapes_them() -> None:
    text = f"{HEAD}spec: {{arguments: {{parameters: [{{name: a, value: '{'<' * 1700}'}}]}}}}"
    with pytest.raises(InvalidInput, match="The input parameter length exceed"):
        read_template(text, "p")


def test_a_v2_compatible_workflow_learns_the_name_of_its_pipeline() -> None:
    text = f"""{HEAD}
metadata: {{annotations: {{pipelines.kubeflow.org/v2_pipeline: "true"}}}}
spec: {{arguments: {{parameters: [{{name: pipeline-name, value: x}}, {{name: b, value: y}}]}}}}
"""
    assert read_template(text, "mine").parameters == (
        Parameter(name="pipeline-name", value="pipeline/mine"),
        Parameter(name="b", value="y"),
    )


GOOD = [file for file in sorted(CORPUS.glob("*/*.yaml")) if not file.stem.startswith("own-invalid")]


@pytest.mark.parametrize("file", GOOD, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_compiled_pipeline_is_read(file: Any) -> None:
    template = read_template(file.read_text(), "p")
    # The manifest is a fixed point: reading it again changes nothing.
    assert read_template(template.manifest, "p") == template
