"""Every variable of the specification's section 4 as a step sees it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.run.engine.embedded.nodes import node_id
from tests.support.embedded_runs import NAME, FakeExecutor, Outcome, identity, workflow

TEXT = """
spec:
  entrypoint: main
  onExit: last
  priority: 7
  serviceAccountName: robot
  arguments: {parameters: [{name: a, value: "1"}, {name: b, value: 'two "x"'}]}
  templates:
  - name: main
    dag:
      tasks:
      - {name: first, template: first}
      - name: second
        template: second
        dependencies: [first]
        arguments: {parameters: [{name: p, value: "TAG"}, {name: q, value: "y"}]}
  - name: first
    container: {image: i, command: [x]}
    outputs: {parameters: [{name: o, valueFrom: {path: /tmp/o}, globalName: shared}]}
  - name: second
    inputs:
      parameters: [{name: p}, {name: q}]
      artifacts: [{name: f, path: /in/f, raw: {data: d}}]
    container: {image: i, command: ["{{inputs.parameters.p}}", "OWN"]}
    outputs: {artifacts: [{name: g, path: /out/g}], parameters: [{name: h, valueFrom: {path: /out/h}}]}
  - name: last
    container: {image: i, command: ["{{workflow.status}}", "{{workflow.duration}}"]}
"""
CREATED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
WHO = identity(created_at=CREATED, service_account="robot", labels={"team": "mill"}, annotations={"note": "wheel/4"})


def run_of(text: str) -> FakeExecutor:
    return FakeExecutor(workflow(text), lambda _: Outcome(parameters={"o": "value"}, result="said"), who=WHO).run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workflow.name", NAME),
        ("workflow.namespace", "kubeflow"),
        ("workflow.uid", WHO.uid),
        ("workflow.serviceAccountName", "robot"),
        ("workflow.priority", "7"),
        ("workflow.parameters.b", 'two "x"'),
        ("workflow.parameters", '[{"name":"a","value":"1"},{"name":"b","value":"two \\"x\\""}]'),
        ("workflow.labels.team", "mill"),
        ("workflow.annotations.note", "wheel/4"),
        ("workflow.creationTimestamp", "2026-03-04T05:06:07Z"),
        ("workflow.creationTimestamp.s", str(int(CREATED.timestamp()))),
        ("workflow.creationTimestamp.Y", "2026"),
        ("workflow.creationTimestamp.d", "04"),
        ("workflow.creationTimestamp.H", "05"),
        ("workflow.outputs.parameters.shared", "value"),
        ("tasks.first.id", node_id(NAME, f"{NAME}.first")),
        ("tasks.first.status", "Succeeded"),
        ("tasks.first.startedAt", "2026-11-23T00:00:00Z"),
        ("tasks.first.finishedAt", "2026-11-23T00:00:01Z"),
        ("tasks.first.exitCode", "0"),
        ("tasks.first.outputs.result", "said"),
        ("tasks.first.outputs.parameters.o", "value"),
        # Nobody fires this run, and nothing is over yet.
        ("workflow.scheduledTime", "{{workflow.scheduledTime}}"),
        ("workflow.status", "{{workflow.status}}"),
        ("workflow.failures", "{{workflow.failures}}"),
    ],
)
def test_a_task_is_given_the_variable(name: str, value: str) -> None:
    run = run_of(TEXT.replace("TAG", f"{{{{{name}}}}}"))
    assert run.order(".second").main.command[0] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pod.name", node_id(NAME, f"{NAME}.second")),
        ("inputs.parameters.q", "y"),
        ("inputs.parameters", '[{"name":"p","value":"TAG"},{"name":"q","value":"y"}]'),
        ("inputs.artifacts.f.path", "/in/f"),
        ("outputs.artifacts.g.path", "/out/g"),
        ("outputs.parameters.h.path", "/out/h"),
    ],
)
def test_a_template_sees_what_it_is_called_with(name: str, value: str) -> None:
    run = run_of(TEXT.replace("OWN", f"{{{{{name}}}}}"))
    assert run.order(".second").main.command[1] == value


def test_the_exit_handler_sees_how_long_the_main_part_took() -> None:
    assert run_of(TEXT).order(".onExit").main.command == ("Succeeded", "2.000000")
