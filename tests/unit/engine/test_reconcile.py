"""The conformance ladder's rows that need no process, and the rules around them."""

import json
from datetime import timedelta
from typing import Any

import pytest

from services.run.engine.embedded.nodes import NodeType, Phase
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile import (
    Collected,
    KillReason,
    Limits,
    State,
    StepFinished,
    StepLost,
    StepStarted,
    StepWaits,
    advance,
)
from services.run.engine.embedded.reopen import reopen
from tests.support.embedded_runs import MIDNIGHT, NAME, FakeExecutor, Outcome, Script, identity, succeed, workflow

LEAVES = """
  - {name: c, container: {image: i, command: [sh, -c, "true"]}}
  - {name: d, container: {image: i, command: [sh, -c, "true"]}}
  - name: out
    container: {image: i, command: [sh]}
    outputs:
      parameters: [{name: o, valueFrom: {path: /tmp/o}}]
      artifacts: [{name: art, path: /tmp/o, optional: true}]
  - {name: echo, inputs: {parameters: [{name: m}]}, container: {image: i, command: [echo, "{{inputs.parameters.m}}"]}}
  - {name: read, inputs: {artifacts: [{name: f, path: /f}]}, container: {image: i, command: [cat, /f]}}
  - {name: may-read, inputs: {artifacts: [{name: f, path: /f, optional: true}]}, container: {image: i, command: [cat]}}
"""


def dag(
    tasks: str,
    *,
    spec: str = "",
    template: str = "",
    more: str = "",
    script: Script = succeed,
    limits: Limits | None = None,
) -> FakeExecutor:
    manifest = workflow(f"""
spec:
  entrypoint: main
  {spec}
  templates:
  - name: main
    dag:
      tasks: {tasks}
    {template}
{LEAVES}{more}
""")
    return FakeExecutor(manifest, script, limits=limits)


def single(template: str, *, spec: str = "", script: Script = succeed) -> FakeExecutor:
    manifest = workflow(f"""
spec:
  entrypoint: main
  {spec}
  templates:
  - {template}
  - {{name: bye, container: {{image: i, command: [echo, "{{{{workflow.status}}}}", "{{{{workflow.failures}}}}"]}}}}
""")
    return FakeExecutor(manifest, script)


def fails(*names: str, code: int = 1) -> Script:
    """A script in which the steps of these names fail."""
    return lambda order: Outcome(exit_code=code if order.node_name.removeprefix(NAME) in names else 0)


def gives(**values: str) -> Script:
    """A script in which the step of a name gives this value as `o`."""
    return lambda order: Outcome(
        parameters={"o": values[key]} if (key := order.node_name.rpartition(".")[2]) in values else {}
    )


def args(order: StepOrder) -> tuple[str, ...]:
    return (*order.main.command, *order.main.args)


C = "{name: main, container: {image: i, command: [sh]}}"


# -- leaves ------------------------------------------------------------------------------------------------------------


def test_a_container_alone_is_one_node_with_the_workflows_name() -> None:
    run = single(C).run()
    assert [(node.id, node.type, node.phase) for node in run.stored.values()] == [(NAME, NodeType.POD, Phase.SUCCEEDED)]
    assert (run.turn.phase, run.turn.message) == (Phase.SUCCEEDED, "")
    assert run.stored[NAME].boundary_id == ""


def test_a_failing_container_fails_the_run_with_its_message() -> None:
    run = single(C, script=lambda _order: Outcome(exit_code=3)).run()
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, "Error (exit code 3)")
    outputs = run.node("").outputs
    assert outputs is not None
    assert outputs.exit_code == "3"


def test_a_pending_node_runs_when_its_process_does() -> None:
    run = single(C)
    assert run.node("").phase is Phase.PENDING
    run.step()
    assert run.node("").phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("event", "phase", "message"),
    [
        ({"exit_code": 0, "error": "no such file"}, Phase.ERROR, "no such file"),
        ({"exit_code": 2, "error": "no such file"}, Phase.FAILED, "Error (exit code 2)"),
        ({"exit_code": None, "error": "init failed"}, Phase.ERROR, "init failed"),
        ({"exit_code": 0, "error": "sidecar", "error_phase": Phase.FAILED}, Phase.FAILED, "sidecar"),
        ({"exit_code": 0, "killed": KillReason.TERMINATED}, Phase.FAILED, "terminated"),
        ({"exit_code": 137}, Phase.FAILED, "Error (exit code 137)"),
    ],
)
def test_the_order_of_blame(event: dict[str, Any], phase: Phase, message: str) -> None:
    run = single(C)
    run.take((StepFinished(node_id=NAME, at=run.now, **event),))
    assert (run.node("").phase, run.node("").message) == (phase, message)


def test_a_lost_step_is_an_error() -> None:
    run = single(C)
    run.take((StepLost(node_id=NAME, at=run.now),))
    assert (run.turn.phase, run.turn.message) == (Phase.ERROR, "pod deleted")


def test_reports_that_come_twice_or_about_nobody_change_nothing() -> None:
    run = single(C).run()
    late = (
        StepStarted(node_id=NAME, at=run.now),
        StepLost(node_id=NAME, at=run.now),
        StepLost(node_id="x", at=run.now),
    )
    turn = run.take(late)
    assert (turn.changed, turn.finished) == ((), True)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_step_that_waits_says_why_until_it_runs(is_restarted: bool) -> None:
    run = single(C)
    run.take((StepWaits(node_id=NAME, reason="no room"), StepWaits(node_id="x", reason="no room")))
    assert (run.node("").phase, run.node("").message) == (Phase.PENDING, "no room")
    assert run.take((StepWaits(node_id=NAME, reason="no room"),)).changed == ()

    if is_restarted:
        run.restart()
    run.step()
    run.take((StepWaits(node_id=NAME, reason="said too late"),))

    assert (run.node("").phase, run.node("").message) == (Phase.RUNNING, "")


def test_outputs_are_listed_in_the_templates_order_and_the_log_last() -> None:
    run = single(
        "{name: main, container: {image: i, command: [sh]}, outputs: {"
        "parameters: [{name: p, valueFrom: {path: /p}}, {name: lit, value: 'at {{pod.name}}'}],"
        "artifacts: [{name: z, path: /z}, {name: a, path: /a, optional: true}]}}",
        script=lambda _order: Outcome(parameters={"p": "x\n"}, artifacts=("z",)),
    ).run()
    outputs = run.node("").outputs
    assert outputs is not None
    assert [(each.name, each.value) for each in outputs.parameters] == [("p", "x\n"), ("lit", f"at {NAME}")]
    assert [(each.name, each.has_location) for each in outputs.artifacts] == [
        ("z", True),
        ("a", False),
        ("main-logs", True),
    ]


# -- DAGs --------------------------------------------------------------------------------------------------------------


def test_a_dag_of_one_links_its_node_and_names_the_last() -> None:
    run = dag("[{name: a, template: c}]").run()
    root, task = run.node(""), run.node(".a")
    assert (root.type, task.type) == (NodeType.DAG, NodeType.POD)
    assert (root.children, root.outbound_nodes, task.boundary_id) == ((task.id,), (task.id,), root.id)


def test_a_value_goes_down_a_chain() -> None:
    run = dag(
        "[{name: a, template: out}, {name: b, template: echo, dependencies: [a],"
        " arguments: {parameters: [{name: m, value: 'got {{tasks.a.outputs.parameters.o}}'}]}}]",
        script=gives(a="x\n"),
    ).run()
    assert args(run.order(".b")) == ("echo", "got x\n")
    assert run.children(".a") == [".b"]


def test_the_branches_of_a_diamond_overlap() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: c, dependencies: [a]}, {name: c, template: c, dependencies: [a]},"
        " {name: d, template: c, dependencies: [b, c]}]"
    ).run()
    assert run.max_running == 2
    assert (run.children(".b"), run.children(".c")) == ([".d"], [".d"])


def test_one_branch_fails_and_the_other_goes_on() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: c}, {name: c, template: c, dependencies: [b]},"
        " {name: x, template: c, dependencies: [a]}, {name: y, template: c, dependencies: [x]}]",
        script=fails(".a"),
    ).run()
    assert run.phases() == {
        "": "Failed",
        ".a": "Failed",
        ".b": "Succeeded",
        ".c": "Succeeded",
        ".x": "Omitted",
        ".y": "Omitted",
    }
    assert run.node(".y").message == "omitted: depends condition not met"
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, "")


def test_a_false_condition_skips_and_what_follows_runs() -> None:
    run = dag("""[{name: a, template: c, when: '"x" == "y"'}, {name: b, template: c, dependencies: [a]}]""").run()
    skipped = run.node(".a")
    assert (skipped.type, skipped.phase) == (NodeType.SKIPPED, Phase.SKIPPED)
    assert skipped.message == 'when \'"x" == "y"\' evaluated false'
    assert skipped.finished_at == skipped.started_at
    assert (run.node(".b").phase, run.turn.phase) == (Phase.SUCCEEDED, Phase.SUCCEEDED)


def test_the_value_of_a_skipped_producer_stays_a_placeholder() -> None:
    run = dag(
        "[{name: s, template: out, when: '1 > 2'}, {name: x, template: echo, dependencies: [s],"
        " arguments: {parameters: [{name: m, value: '{{tasks.s.outputs.parameters.o}}'}]}}]"
    ).run()
    assert args(run.order(".x")) == ("echo", "{{tasks.s.outputs.parameters.o}}")


def test_the_artifact_of_a_skipped_producer_is_an_error() -> None:
    run = dag(
        "[{name: s, template: out, when: '1 > 2'}, {name: x, template: read, dependencies: [s],"
        " arguments: {artifacts: [{name: f, from: '{{tasks.s.outputs.artifacts.art}}'}]}}]"
    ).run()
    node = run.node(".x")
    assert (node.type, node.phase) == (NodeType.SKIPPED, Phase.ERROR)
    assert node.message == 'Unable to resolve: "tasks.s.outputs.artifacts.art"'
    assert run.turn.phase is Phase.ERROR


def test_an_optional_artifact_of_a_skipped_producer_is_left_out() -> None:
    run = dag(
        "[{name: s, template: out, when: '1 > 2'}, {name: x, template: may-read, dependencies: [s],"
        " arguments: {artifacts: [{name: f, from: '{{tasks.s.outputs.artifacts.art}}', optional: true}]}}]"
    ).run()
    assert run.order(".x").input_artifacts == ()
    assert run.turn.phase is Phase.SUCCEEDED


def test_artifacts_of_a_task_that_does_not_run_are_not_looked_at() -> None:
    run = dag(
        "[{name: s, template: out, when: '1 > 2'}, {name: x, template: read, dependencies: [s], when: '1 > 2',"
        " arguments: {artifacts: [{name: f, from: '{{tasks.s.outputs.artifacts.art}}'}]}}]"
    ).run()
    assert run.node(".x").phase is Phase.SKIPPED


def test_an_artifact_is_passed_on_by_its_key() -> None:
    run = dag(
        "[{name: a, template: out}, {name: b, template: read, dependencies: [a],"
        " arguments: {artifacts: [{name: f, from: '{{tasks.a.outputs.artifacts.art}}'}]}}]"
    ).run()
    (placed,) = run.order(".b").input_artifacts
    assert placed.s3 is not None
    assert run.node(".a").id in placed.s3["key"]
    inputs = run.node(".b").inputs
    assert inputs is not None
    assert inputs.artifacts[0].s3 == placed.s3


@pytest.mark.parametrize("value", ["not done", "", "flip-coin"])
def test_a_condition_that_makes_no_sense_is_an_error(value: str) -> None:
    run = dag(
        "[{name: a, template: out}, {name: b, template: c, dependencies: [a],"
        " when: '{{tasks.a.outputs.parameters.o}} == x'}]",
        script=gives(a=value),
    ).run()
    node = run.node(".b")
    assert (node.type, node.phase) == (NodeType.SKIPPED, Phase.ERROR)
    assert node.message.startswith(f"Invalid 'when' expression '{value} == x'")
    assert run.turn.phase is Phase.ERROR


def test_a_failed_leaf_that_may_fail_does_not_fail_the_run() -> None:
    run = dag("[{name: a, template: c, continueOn: {failed: true}}]", script=fails(".a")).run()
    assert (run.node(".a").phase, run.turn.phase) == (Phase.FAILED, Phase.SUCCEEDED)


def test_recovery_by_depends_does_not_fail_the_dag() -> None:
    run = dag("[{name: a, template: c}, {name: b, template: c, depends: a.Failed}]", script=fails(".a")).run()
    assert run.turn.phase is Phase.SUCCEEDED


def test_the_first_failed_target_in_name_order_gives_the_phase() -> None:
    tasks = "[{name: b, template: c}, {name: a, template: c, when: 'x y'}]"
    assert dag(tasks, script=fails(".b")).run().turn.phase is Phase.ERROR


def test_without_fail_fast_the_last_failed_target_gives_the_phase() -> None:
    run = FakeExecutor(
        workflow(f"""
spec:
  entrypoint: main
  templates:
  - {{name: main, dag: {{failFast: false, tasks: [{{name: a, template: c, when: x y}}, {{name: b, template: c}}]}}}}
{LEAVES}"""),
        fails(".b"),
    ).run()
    assert run.turn.phase is Phase.FAILED


def test_a_target_limits_what_is_run() -> None:
    run = FakeExecutor(
        workflow(f"""
spec:
  entrypoint: main
  templates:
  - name: main
    dag:
      target: b
      tasks: [{{name: a, template: c}}, {{name: b, template: c, dependencies: [a]}}, {{name: z, template: c}}]
{LEAVES}""")
    ).run()
    assert run.names() == {"", ".a", ".b"}


def test_outputs_come_up_through_levels() -> None:
    run = dag(
        "[{name: in, template: sub}, {name: b, template: both, dependencies: [in], arguments: {"
        "parameters: [{name: m, value: '{{tasks.in.outputs.parameters.up}}'}],"
        "artifacts: [{name: f, from: '{{tasks.in.outputs.artifacts.up}}'}]}}]",
        more="""
  - name: sub
    dag: {tasks: [{name: a, template: out}]}
    outputs:
      parameters: [{name: up, valueFrom: {parameter: "{{tasks.a.outputs.parameters.o}}"}}]
      artifacts: [{name: up, from: "{{tasks.a.outputs.artifacts.art}}"}]
  - name: both
    inputs: {parameters: [{name: m}], artifacts: [{name: f, path: /f}]}
    container: {image: i, command: [echo, "{{inputs.parameters.m}}", "{{inputs.artifacts.f.path}}"]}
""",
        script=gives(a="v"),
    ).run()
    assert args(run.order(".b")) == ("echo", "v", "/f")
    (placed,) = run.order(".b").input_artifacts
    assert placed.s3 is not None
    assert run.node(".in.a").id in placed.s3["key"]
    assert run.children(".in.a") == [".b"]


def test_an_output_of_a_skipped_task_needs_a_default() -> None:
    sub = """
  - name: sub
    dag: {tasks: [{name: a, template: out, when: '1 > 2'}]}
    outputs: {parameters: [{name: up, valueFrom: {parameter: "{{tasks.a.outputs.parameters.o}}"%s}}]}
"""
    task = "[{name: in, template: sub}]"
    broken = dag(task, more=sub % "").run()
    assert (broken.node(".in").phase, broken.turn.phase) == (Phase.ERROR, Phase.ERROR)
    assert broken.node(".in").message.startswith("Unable to resolve: ")
    outputs = dag(task, more=sub % ", default: d").run().node(".in").outputs
    assert outputs is not None
    assert outputs.parameter("up") == "d"


# -- loops -------------------------------------------------------------------------------------------------------------

ITEM = "arguments: {parameters: [{name: m, value: '{{item}}'}]}"


def test_a_loop_is_a_group_with_a_node_per_item() -> None:
    run = dag(f"[{{name: t, template: echo, withItems: [a, b, c], {ITEM}}}]").run()
    assert run.node(".t").type is NodeType.TASK_GROUP
    assert run.children(".t") == [".t(0:a)", ".t(1:b)", ".t(2:c)"]
    assert args(run.order(".t(1:b)")) == ("echo", "b")
    assert set(run.node("").outbound_nodes) == set(run.node(".t").children)


def test_items_of_mappings_are_named_by_their_pairs() -> None:
    run = dag(
        "[{name: t, template: echo, withItems: [{b: 2, a: 1}], "
        "arguments: {parameters: [{name: m, value: '{{item.a}}'}]}}]"
    ).run()
    assert args(run.order(".t(0:a:1,b:2)")) == ("echo", "1")


def test_an_unknown_key_of_an_item_is_an_error_of_the_task() -> None:
    run = dag(
        "[{name: t, template: echo, withItems: [{a: 1}], arguments: {parameters: [{name: m, value: '{{item.z}}'}]}}]"
    ).run()
    assert run.phases() == {"": "Error", ".t": "Error"}


def test_items_with_quotes_and_unicode_arrive_decoded() -> None:
    items = ['say "hi"', "naïve", "back\\slash", "two\nlines"]
    run = dag(
        f"[{{name: a, template: out}}, {{name: t, template: echo, dependencies: [a],"
        f" withParam: '{{{{tasks.a.outputs.parameters.o}}}}', {ITEM}}}]",
        script=gives(a=json.dumps(items)),
    ).run()
    assert [args(order)[1] for order in run.orders[1:]] == items


def test_a_fan_in_keeps_the_numeric_order() -> None:
    run = dag(
        f"[{{name: a, template: out}}, {{name: t, template: out-m, dependencies: [a],"
        f" withParam: '{{{{tasks.a.outputs.parameters.o}}}}', {ITEM}}}, {{name: z, template: echo, dependencies: [t],"
        " arguments: {parameters: [{name: m,"
        " value: '{{tasks.t.outputs.parameters.o}} {{tasks.t.outputs.parameters}}'}]}}]",
        more="""
  - name: out-m
    inputs: {parameters: [{name: m}]}
    container: {image: i, command: [echo, "{{inputs.parameters.m}}"]}
    outputs: {parameters: [{name: o, valueFrom: {path: /o}}]}
""",
        script=lambda order: Outcome(
            parameters={"o": str(list(range(12))) if order.node_name.endswith(".a") else "v" + args(order)[-1]}
        ),
    ).run()
    values, objects = args(run.order(".z"))[1].split(" ")
    assert json.loads(values) == [f"v{index}" for index in range(12)]
    assert json.loads(objects) == [{"o": f"v{index}"} for index in range(12)]


def test_an_empty_list_is_a_success_and_what_follows_runs() -> None:
    run = dag(
        f"[{{name: t, template: echo, withParam: '[]', {ITEM}}}, {{name: z, template: c, dependencies: [t]}}]"
    ).run()
    assert run.phases() == {"": "Succeeded", ".t": "Succeeded", ".z": "Succeeded"}
    assert run.children(".t") == [".z"]


def test_text_that_is_no_list_is_an_error() -> None:
    run = dag(f"[{{name: t, template: echo, withParam: abc, {ITEM}}}]").run()
    node = run.node(".t")
    assert (node.type, node.phase, run.turn.phase) == (NodeType.SKIPPED, Phase.ERROR, Phase.ERROR)
    assert node.message.startswith("withParam value could not be parsed as a JSON list: abc: ")


def test_one_failed_item_fails_the_group_and_the_others_finish() -> None:
    run = dag(
        f"[{{name: t, template: echo, withItems: [a, b, c], {ITEM}}}, {{name: z, template: c, dependencies: [t]}}]",
        script=fails(".t(1:b)"),
    ).run()
    assert run.phases() == {
        "": "Failed",
        ".t": "Failed",
        ".t(0:a)": "Succeeded",
        ".t(1:b)": "Failed",
        ".t(2:c)": "Succeeded",
        ".z": "Omitted",
    }


def test_the_last_failed_item_gives_a_loop_its_phase() -> None:
    run = dag(
        f"[{{name: t, template: echo, withItems: [a, b, c], {ITEM}}}]",
        script=lambda order: Outcome(
            exit_code=1 if "(0:" in order.node_name else 0, error="lost" if "(1:" in order.node_name else None
        ),
    ).run()
    assert run.phases() == {
        "": "Error",
        ".t": "Error",
        ".t(0:a)": "Failed",
        ".t(1:b)": "Error",
        ".t(2:c)": "Succeeded",
    }


def test_a_condition_on_a_loop_is_asked_per_item() -> None:
    run = dag(f"[{{name: t, template: echo, withItems: [1, 5], when: '{{{{item}}}} > 3', {ITEM}}}]").run()
    assert run.phases() == {"": "Succeeded", ".t": "Succeeded", ".t(0:1)": "Skipped", ".t(1:5)": "Succeeded"}


def test_nested_loops_nest_their_names() -> None:
    run = dag(
        f"[{{name: l, template: body, withItems: [x, y], {ITEM}}}]",
        more="""
  - name: body
    inputs: {parameters: [{name: m}]}
    dag:
      tasks:
      - {name: i, template: echo, withItems: [1, 2, 3],
         arguments: {parameters: [{name: m, value: "{{inputs.parameters.m}}{{item}}"}]}}
""",
    ).run()
    assert [args(order)[1] for order in run.orders] == ["x1", "x2", "x3", "y1", "y2", "y3"]
    assert ".l(1:y).i(2:3)" in run.names()


# -- recursion ---------------------------------------------------------------------------------------------------------


def recursion(depth: int, *, limits: Limits | None = None) -> FakeExecutor:
    manifest = workflow(f"""
spec:
  entrypoint: down
  arguments: {{parameters: [{{name: n, value: "{depth}"}}]}}
  templates:
  - name: down
    inputs: {{parameters: [{{name: n}}]}}
    dag:
      tasks:
      - {{name: less, template: less, arguments: {{parameters: [{{name: n, value: "{{{{inputs.parameters.n}}}}"}}]}}}}
      - name: down
        template: down
        dependencies: [less]
        when: "{{{{tasks.less.outputs.parameters.n}}}} > 0"
        arguments: {{parameters: [{{name: n, value: "{{{{tasks.less.outputs.parameters.n}}}}"}}]}}
  - name: less
    inputs: {{parameters: [{{name: n}}]}}
    container: {{image: i, command: [less, "{{{{inputs.parameters.n}}}}"]}}
    outputs: {{parameters: [{{name: n, valueFrom: {{path: /n}}}}]}}
""")
    return FakeExecutor(manifest, lambda order: Outcome(parameters={"n": str(int(args(order)[1]) - 1)}), limits=limits)


def test_recursion_counts_down_and_ends_skipped() -> None:
    run = recursion(3).run()
    assert run.phases() == {
        "": "Succeeded",
        ".less": "Succeeded",
        ".down": "Succeeded",
        ".down.less": "Succeeded",
        ".down.down": "Succeeded",
        ".down.down.less": "Succeeded",
        ".down.down.down": "Skipped",
    }


def test_recursion_goes_deep_without_a_deep_stack() -> None:
    run = recursion(300).run()
    assert run.turn.phase is Phase.SUCCEEDED
    assert len(run.orders) == 300


def test_recursion_is_stopped_at_a_depth() -> None:
    run = recursion(50, limits=Limits(depth=10)).run()
    assert run.turn.phase is Phase.ERROR
    assert run.node(".down" * 11).message == "templates are nested deeper than 10 levels (HEADRACE_MOST_LEVELS)"


def test_unbounded_recursion_of_width_is_stopped_too() -> None:
    manifest = workflow("""
spec:
  entrypoint: m
  templates: [{name: m, dag: {tasks: [{name: a, template: m}, {name: b, template: m}]}}]
""")
    run = FakeExecutor(manifest, limits=Limits(nodes=200)).run()
    assert run.turn.phase is Phase.ERROR
    assert len(run.stored) <= 600


# -- the exit handler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "handler", "phase", "message"),
    [
        (0, 0, Phase.SUCCEEDED, ""),
        (0, 7, Phase.FAILED, "Error (exit code 7)"),
        (2, 0, Phase.FAILED, "Error (exit code 2)"),
        (2, 7, Phase.FAILED, "Error (exit code 2)"),
    ],
)
def test_the_run_ends_as_the_main_part_or_else_the_handler(main: int, handler: int, phase: Phase, message: str) -> None:
    run = single(
        C,
        spec="onExit: bye",
        script=lambda order: Outcome(exit_code=handler if order.node_name.endswith(".onExit") else main),
    ).run()
    assert (run.turn.phase, run.turn.message) == (phase, message)
    exiting = run.node(".onExit")
    assert (exiting.boundary_id, run.node("").children) == ("", ())
    assert args(run.order(".onExit"))[1] == ("Failed" if main else "Succeeded")


def test_the_handler_reads_what_failed_as_quoted_json() -> None:
    run = single(C, spec="onExit: bye", script=lambda order: Outcome(exit_code=0 if "onExit" in order.node_name else 2))
    run.run()
    text = args(run.order(".onExit"))[2]
    assert text.startswith('"[{\\"displayName\\":')
    (failure,) = json.loads(json.loads(text))
    assert failure == {
        "displayName": NAME,
        "message": "Error (exit code 2)",
        "templateName": "main",
        "phase": "Failed",
        "podName": NAME,
        "finishedAt": "2026-11-23T00:00:01Z",
    }


def test_the_handler_sees_an_error_of_the_main_part() -> None:
    run = single(
        C, spec="onExit: bye", script=lambda order: Outcome(error="no such file" if order.node_name == NAME else None)
    ).run()
    assert args(run.order(".onExit"))[1] == "Error"
    assert (run.turn.phase, run.turn.message) == (Phase.ERROR, "no such file")


def test_an_entry_that_cannot_begin_ends_the_run_without_a_handler() -> None:
    run = single("{name: main, inputs: {parameters: [{name: x}]}, container: {image: i}}", spec="onExit: bye")
    assert run.turn.finished
    assert run.turn.message == "error in entry template execution: inputs.parameters.x was not supplied"
    assert (run.turn.phase, run.stored) == (Phase.ERROR, {})


# -- hooks -------------------------------------------------------------------------------------------------------------

HOOKED = """
  - name: bye
    inputs: {parameters: [{name: m, default: nothing}]}
    container: {image: i, command: [bye, "{{inputs.parameters.m}}"]}
"""


def test_a_hook_runs_when_its_task_has_ended_and_before_what_follows() -> None:
    run = dag(
        "[{name: a, template: out, hooks: {exit: {template: bye, arguments: {parameters: [{name: m,"
        " value: '{{tasks.a.outputs.parameters.o}} {{tasks.a.status}} {{workflow.name}}'}]}}}},"
        " {name: b, template: c, dependencies: [a]}]",
        more=HOOKED,
        script=gives(a="v"),
    )
    while ".b" not in run.names():
        assert run.step()
    hook = run.node(".a.onExit")
    assert (hook.phase, hook.type, hook.display_name) == (Phase.SUCCEEDED, NodeType.POD, "a.onExit")
    assert hook.boundary_id == run.node("").id
    assert (run.children(".a"), run.children(".a.onExit")) == ([".a.onExit", ".b"], [])
    assert args(run.order(".a.onExit")) == ("bye", f"v Succeeded {NAME}")
    run.run()
    assert run.node("").outbound_nodes == (run.node(".b").id,)


@pytest.mark.parametrize(("ending", "phase"), [(".a", Phase.FAILED), (".a.onExit", Phase.SUCCEEDED)])
def test_the_task_makes_the_dags_phase_and_not_its_hook(ending: str, phase: Phase) -> None:
    run = dag("[{name: a, template: c, onExit: bye}]", more=HOOKED, script=fails(ending)).run()
    assert (run.turn.phase, run.node(".a.onExit").phase.is_completed) == (phase, True)
    assert args(run.order(".a.onExit")) == ("bye", "nothing")


def test_a_hook_without_arguments_gets_the_runs() -> None:
    run = dag(
        "[{name: a, template: c, onExit: bye}]", spec="arguments: {parameters: [{name: m, value: given}]}", more=HOOKED
    ).run()
    assert args(run.order(".a.onExit")) == ("bye", "given")


def test_what_did_not_run_has_no_hook() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: c, dependencies: [a], onExit: bye},"
        " {name: s, template: c, when: 1 > 2, onExit: bye}]",
        more=HOOKED,
        script=fails(".a"),
    ).run()
    assert run.phases() == {"": "Failed", ".a": "Failed", ".b": "Omitted", ".s": "Skipped"}


def test_a_task_that_could_not_begin_has_a_hook_all_the_same() -> None:
    run = dag("[{name: a, template: c, when: x y, onExit: bye}]", more=HOOKED).run()
    assert run.phases() == {"": "Error", ".a": "Error", ".a.onExit": "Succeeded"}


def test_a_hook_that_makes_no_sense_is_an_error_and_no_more() -> None:
    run = dag(
        "[{name: a, template: c, hooks: {exit: {template: read, arguments: {artifacts: [{name: f,"
        " from: '{{tasks.a.outputs.artifacts.none}}'}]}}}}]"
    ).run()
    assert run.phases() == {"": "Succeeded", ".a": "Succeeded", ".a.onExit": "Error"}
    assert run.node(".a.onExit").message == 'Unable to resolve: "tasks.a.outputs.artifacts.none"'


def test_a_hook_is_handed_artifacts_of_its_task() -> None:
    run = dag(
        "[{name: a, template: out, hooks: {exit: {template: read, arguments: {artifacts: [{name: f,"
        " from: '{{tasks.a.outputs.artifacts.art}}'}]}}}}]"
    ).run()
    (placed,) = run.order(".a.onExit").input_artifacts
    assert placed.s3 is not None
    assert run.node(".a").id in placed.s3["key"]


def test_a_retry_and_a_loop_have_one_hook_each() -> None:
    run = dag(
        "[{name: f, template: flaky, onExit: bye}, {name: l, template: echo, withItems: [a, b], onExit: bye,"
        f" {ITEM}}}, {{name: z, template: c, dependencies: [f, l]}}]",
        more=HOOKED + "  - {name: flaky, retryStrategy: {limit: 2}, container: {image: i, command: [x]}}\n",
        script=until(1),
    ).run()
    assert run.turn.phase is Phase.SUCCEEDED
    assert {name for name in run.names() if name.endswith("onExit")} == {".f.onExit", ".l.onExit"}
    assert run.children(".f") == [".f(0)", ".f(1)", ".f.onExit"]
    assert run.children(".f(1)") == [".z"]


def test_each_item_of_an_expanding_step_has_a_hook_before_the_next_group() -> None:
    run = FakeExecutor(
        workflow(f"""
spec:
  entrypoint: main
  templates:
  - name: main
    steps:
    - - name: each
        template: out
        withItems: [x, y]
        hooks:
          exit:
            template: bye
            arguments: {{parameters: [{{name: m, value: "{{{{item}}}} {{{{steps.each.outputs.parameters.o}}}}"}}]}}
    - - {{name: last, template: c}}
{LEAVES}{HOOKED}"""),
        lambda order: Outcome(parameters={"o": order.node_name[-2]}, exit_code=order.template_name == "bye"),
    ).run()
    assert run.turn.phase is Phase.SUCCEEDED
    assert args(run.order("[0].each(1:y).onExit")) == ("bye", "y y")
    assert run.children("[0].each(0:x)") == ["[0].each(0:x).onExit", "[1]"]
    last = run.node("[1].last").started_at
    assert all(run.node(f"[0].each({item}).onExit").finished_at <= last for item in ("0:x", "1:y"))  # type: ignore[operator]


def test_a_hook_runs_to_its_end_when_the_run_is_stopped() -> None:
    run = dag(
        "[{name: a, template: c, onExit: bye}, {name: b, template: c, dependencies: [a]}]",
        more=HOOKED,
        script=lambda order: Outcome(seconds=5 if order.template_name == "bye" else 60),
    )
    run.run_for(1).terminate().run()
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, "terminated")
    assert run.phases() == {"": "Failed", ".a": "Failed", ".a.onExit": "Succeeded", ".b": "Omitted"}


def test_what_a_stop_kept_from_beginning_has_no_hook() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: c, onExit: bye}]",
        spec="parallelism: 1",
        more=HOOKED,
        script=lambda _order: Outcome(seconds=60),
    )
    run.run_for(1).terminate().run()
    assert run.phases() == {"": "Failed", ".a": "Failed", ".b": "Failed"}


# -- retries -----------------------------------------------------------------------------------------------------------


def retried(strategy: str, script: Script = succeed) -> FakeExecutor:
    return dag(
        "[{name: f, template: flaky}, {name: z, template: c, dependencies: [f]}]",
        more=f"""
  - name: flaky
    retryStrategy: {strategy}
    container: {{image: i, command: [try, "{{{{retries}}}}", "{{{{pod.name}}}}"]}}
    outputs: {{parameters: [{{name: o, valueFrom: {{path: /o}}}}]}}
""",
        script=script,
    )


def until(attempt: int, **failure: Any) -> Script:
    def script(order: StepOrder) -> Outcome:
        if order.template_name != "flaky" or order.attempt >= attempt:
            return Outcome(parameters={"o": f"attempt {order.attempt}"})
        return Outcome(**{"exit_code": 1, **failure})

    return script


def test_a_step_is_retried_until_it_succeeds() -> None:
    run = retried("{limit: 4}", until(2)).run()
    node = run.node(".f")
    assert (node.type, node.phase, node.message) == (NodeType.RETRY, Phase.SUCCEEDED, "")
    assert run.children(".f") == [".f(0)", ".f(1)", ".f(2)"]
    assert run.children(".f(2)") == [".z"]
    assert node.outputs == run.node(".f(2)").outputs
    assert args(run.order(".f(1)")) == ("try", "1", run.node(".f(1)").id)
    assert run.node(".f(1)").boundary_id == run.node(".f").boundary_id == NAME


@pytest.mark.parametrize(("limit", "attempts"), [(0, 1), (2, 3), ('"1"', 2)])
def test_the_limit_counts_the_attempts_after_the_first(limit: object, attempts: int) -> None:
    run = retried(f"{{limit: {limit}}}", until(99)).run()
    assert len(run.node(".f").children) == attempts
    assert (run.node(".f").phase, run.node(".f").message) == (Phase.FAILED, "No more retries left")
    assert (run.node(".z").phase, run.turn.phase) == (Phase.OMITTED, Phase.FAILED)


@pytest.mark.parametrize(
    ("policy", "failure", "attempts"),
    [
        ("OnError", {"exit_code": 1}, 1),
        ("OnError", {"exit_code": 0, "error": "missing output"}, 3),
        ("OnFailure", {"exit_code": 0, "error": "missing output"}, 1),
        ("Always", {"exit_code": 0, "error": "missing output"}, 3),
        ("OnTransientError", {"exit_code": 0, "error": "dial: connection refused"}, 3),
        ("OnTransientError", {"exit_code": 1}, 1),
    ],
)
def test_the_policy_says_which_ends_are_retried(policy: str, failure: dict[str, Any], attempts: int) -> None:
    run = retried(f"{{limit: 5, retryPolicy: {policy}}}", until(2, **failure)).run()
    assert len(run.node(".f").children) == attempts
    if attempts == 1:
        assert run.node(".f").message == run.node(".f(0)").message


def test_attempts_wait_longer_each_time() -> None:
    run = retried("{limit: 5, backoff: {duration: 1s, factor: 2}}", until(2)).run()
    starts = [run.node(f".f({attempt})").started_at - MIDNIGHT for attempt in range(3)]
    assert starts == [timedelta(seconds=0), timedelta(seconds=2), timedelta(seconds=5)]
    assert [text for name, text in run.messages if name.endswith(".f")] == ["Backoff for 1s", "Backoff for 2s"]


@pytest.mark.parametrize(
    ("backoff", "message"),
    [
        ("{duration: '10', maxDuration: 5s}", "Backoff would exceed max duration limit"),
        ("{duration: '1', maxDuration: 500ms}", "Max duration limit exceeded"),
    ],
)
def test_a_maximum_duration_ends_the_retries(backoff: str, message: str) -> None:
    run = retried(f"{{limit: 5, backoff: {backoff}}}", until(9, seconds=0.4 if "10" in backoff else 2))
    run.run()
    assert (run.node(".f").phase, run.node(".f").message) == (Phase.FAILED, message)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("backoff: {duration: '1', factor: -1}", "'-1' is not a number"),
        ("backoff: {duration: '1', factor: nan}", "'nan' is not a number"),
        ("backoff: {duration: x}", "'x' is not a duration"),
        ("limit: x", "retryStrategy.limit 'x' is not an integer"),
    ],
)
def test_a_strategy_that_makes_no_sense_is_an_error_before_the_first_attempt(strategy: str, message: str) -> None:
    run = retried(f"{{{strategy}}}").run()
    assert (run.node(".f").phase, run.node(".f").message) == (Phase.ERROR, message)
    assert run.orders == []


def test_no_number_of_a_manifest_is_too_large_to_wait_for() -> None:
    endless = "9" * 400
    waiting = retried(f"{{backoff: {{duration: '{endless}h', factor: 9e300}}}}", until(3)).run_for(10)
    assert waiting.turn.wake_at is not None
    bounded = retried(f"{{backoff: {{duration: '1', factor: 9e300, maxDuration: '{endless}'}}}}", until(3)).run_for(10)
    assert bounded.node(".f").message == "Backoff would exceed max duration limit"
    paused = single(f"{{name: main, suspend: {{duration: '{endless}'}}}}", spec=f"activeDeadlineSeconds: {endless}")
    assert paused.turn.wake_at is not None
    lasting = single(f"{{name: main, container: {{image: i, command: [x]}}, activeDeadlineSeconds: {endless}}}")
    assert lasting.run().turn.phase is Phase.SUCCEEDED


def test_a_group_is_retried_as_a_whole() -> None:
    run = dag(
        "[{name: g, template: group}, {name: z, template: c, dependencies: [g]}]",
        more="  - {name: group, retryStrategy: {limit: 1}, dag: {tasks: [{name: a, template: c}]}}\n",
        script=fails(".g(0).a"),
    ).run()
    assert run.phases()[".g"] == "Succeeded"
    assert run.node(".g(1)").type is NodeType.DAG
    assert run.children(".g(1).a") == [".z"]


def test_a_text_that_makes_no_sense_is_not_retried() -> None:
    run = dag(
        "[{name: a, template: bad}]",
        more="  - {name: bad, retryStrategy: {retryPolicy: Always}, podSpecPatch: '{', container: {image: i}}\n",
    ).run()
    assert run.turn.phase is Phase.ERROR
    assert "podSpecPatch is not valid JSON" in run.node(".a").message


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_step_over_its_deadline_is_killed_alone() -> None:
    run = dag(
        "[{name: a, template: slow}, {name: b, template: c}]",
        more="  - {name: slow, activeDeadlineSeconds: 2, container: {image: i, command: [sleep]}}\n",
        script=lambda order: Outcome(seconds=30 if order.template_name == "slow" else 5),
    ).run()
    assert run.node(".a").message == "Pod was active on the node longer than the specified deadline"
    assert run.now - MIDNIGHT == timedelta(seconds=5)
    assert (run.node(".a").phase, run.node(".b").phase) == (Phase.FAILED, Phase.SUCCEEDED)


def test_each_attempt_has_the_deadline_anew() -> None:
    run = dag(
        "[{name: a, template: slow}]",
        more="  - {name: slow, activeDeadlineSeconds: 2, retryStrategy: {limit: 1}, container: {image: i}}\n",
        script=lambda order: Outcome(seconds=30 if order.attempt == 0 else 1.5),
    ).run()
    assert run.turn.phase is Phase.SUCCEEDED


def test_a_run_over_its_deadline_ends_and_its_handler_runs() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: d, dependencies: [a]},"
        " {name: z, template: c, dependencies: [b]}]",
        spec="activeDeadlineSeconds: 4\n  onExit: d",
        script=lambda order: Outcome(seconds=60 if order.template_name == "d" else 1),
    ).run()
    assert (run.node(".b").phase, run.node(".b").message) == (Phase.FAILED, "Step exceeded its deadline")
    assert (run.node(".z").phase, run.turn.phase, run.turn.message) == (Phase.OMITTED, Phase.FAILED, "")
    assert run.node(".onExit").phase is Phase.SUCCEEDED
    assert run.now - MIDNIGHT == timedelta(seconds=64)


def test_the_turn_says_when_to_come_back() -> None:
    run = dag("[{name: a, template: c}]", spec="activeDeadlineSeconds: 40", script=lambda _order: Outcome(seconds=3))
    assert run.turn.wake_at == MIDNIGHT + timedelta(seconds=40)
    run.run()
    assert run.turn.wake_at is None


def test_a_pause_ends_by_itself() -> None:
    run = dag("[{name: a, template: p}]", more="  - {name: p, suspend: {duration: 1m30s}}\n")
    assert (run.node(".a").type, run.node(".a").phase) == (NodeType.SUSPEND, Phase.RUNNING)
    run.run()
    assert run.now - MIDNIGHT == timedelta(seconds=90)
    assert run.turn.phase is Phase.SUCCEEDED


# -- parallelism -------------------------------------------------------------------------------------------------------


def test_a_runs_parallelism_counts_its_pods() -> None:
    tasks = "[{name: a, template: c}, {name: b, template: c}, {name: c, template: c}]"
    run = dag(tasks, spec="parallelism: 1")
    assert run.names() == {"", ".a"}
    run.run()
    assert (run.max_running, run.turn.phase, len(run.orders)) == (1, Phase.SUCCEEDED, 3)


PAIR = """
  - name: g
    %s
    inputs: {parameters: [{name: m}]}
    dag: {tasks: [{name: x, template: c}, {name: y, template: c}]}
"""


ONE = """
  - name: g
    inputs: {parameters: [{name: m}]}
    container: {image: i, command: [x]}
"""


def test_a_templates_parallelism_counts_its_direct_children() -> None:
    more = PAIR % ""
    tasks = f"[{{name: l, template: g, withItems: [1, 2, 3], {ITEM}}}]"
    run = dag(tasks, template="parallelism: 1", more=more).run()
    assert (run.max_running, len(run.orders), run.turn.phase) == (2, 6, Phase.SUCCEEDED)
    free = dag(tasks, template="parallelism: 0", more=more).run()
    assert free.max_running == 6


def test_both_limits_together_neither_hang_nor_leak() -> None:
    more = PAIR % "parallelism: 1"
    run = dag(f"[{{name: l, template: g, withItems: [1, 2, 3], {ITEM}}}]", spec="parallelism: 2", more=more).run()
    assert (run.max_running, len(run.orders), run.turn.phase) == (2, 6, Phase.SUCCEEDED)


def test_retries_take_their_turn_under_a_limit() -> None:
    run = dag(
        "[{name: a, template: flaky}, {name: b, template: flaky}]",
        spec="parallelism: 1",
        more="  - {name: flaky, retryStrategy: {limit: 2}, container: {image: i, command: [x]}}\n",
        script=until(1),
    ).run()
    assert (run.max_running, len(run.orders), run.turn.phase) == (1, 4, Phase.SUCCEEDED)


@pytest.mark.parametrize(
    ("spec", "template"), [("parallelism: 1", ""), ("", "parallelism: 1")], ids=["run", "template"]
)
def test_a_wide_node_is_not_written_anew_for_each_child_that_finds_room(spec: str, template: str) -> None:
    tasks = f"[{{name: l, template: g, withItems: [1, 2, 3, 4], {ITEM}}}]"
    run = dag(tasks, more=ONE, spec=spec, template=template)
    writes = []
    while not run.turn.finished:
        writes += [node.name for node in run.turn.changed if node.type is NodeType.TASK_GROUP]
        run.step()
    assert (run.max_running, len(writes), run.turn.phase) == (1, 1, Phase.SUCCEEDED)
    assert run.children(".l") == [".l(0:1)", ".l(1:2)", ".l(2:3)", ".l(3:4)"]


CROWDED = """
spec:
  entrypoint: main
  parallelism: 2
  templates:
  - {name: main, dag: {tasks: [{name: one, template: one}, {name: two, template: two}]}}
  - {name: two, dag: {tasks: [%s]}}
  - name: one
    dag:
      failFast: %s
      tasks:
      - {name: a, template: c}
      - {name: b, template: c}
      - {name: x, template: c, dependencies: [b]}
      - {name: y, template: c, dependencies: [x]}
"""


def crowded(*, fail_fast: bool, **more: Any) -> FakeExecutor:
    """Of the tasks of `one`, a fails and b ends while those of `two` have taken all the room that x would need."""
    others = ", ".join(f"{{name: t{number}, template: c}}" for number in range(5))
    return FakeExecutor(workflow(CROWDED % (others, str(fail_fast).lower()) + LEAVES), fails(".one.a"), **more)


def test_a_failed_dag_whose_rest_finds_no_room_fails_at_once() -> None:
    run = crowded(fail_fast=True)
    while not run.node(".one").phase.is_fulfilled:
        run.step()
    assert run.node(".two").phase is Phase.RUNNING
    run.run()
    assert (run.turn.phase, run.node(".one").phase) == (Phase.FAILED, Phase.FAILED)
    assert {name for name in run.names() if name.startswith(".one.")} == {".one.a", ".one.b"}
    assert (run.children(".one"), run.children(".one.b")) == ([".one.a", ".one.b"], [])
    assert len([name for name in run.names() if name.startswith(".two.")]) == 5


def test_a_dag_that_does_not_fail_fast_runs_the_rest_when_there_is_room() -> None:
    run = crowded(fail_fast=False).run()
    assert (run.node(".one").phase, run.node(".one.y").phase) == (Phase.FAILED, Phase.SUCCEEDED)


def test_a_dag_that_failed_fast_fails_so_after_a_restart_and_its_retry_runs_the_rest() -> None:
    run = crowded(fail_fast=True)
    while run.node(".one.b").phase is not Phase.SUCCEEDED:
        run.step()
    run.restart()
    run.run()
    assert ".one.x" not in run.names()
    again = reopen(NAME, run.stored.values())
    retried = crowded(fail_fast=True)
    retried.stored = {node.id: node for node in again.kept}
    retried.script = succeed
    retried.running.clear()
    retried.pending_events.clear()
    retried.restart()
    retried.run()
    assert (retried.turn.phase, retried.node(".one.y").phase) == (Phase.SUCCEEDED, Phase.SUCCEEDED)


# -- termination -------------------------------------------------------------------------------------------------------


def test_termination_kills_what_runs_and_lets_the_handler_run() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: c}, {name: z, template: c, dependencies: [a]}]",
        spec="onExit: d",
        script=lambda order: Outcome(seconds=1 if order.template_name == "d" else 60),
    )
    run.run_for(1).terminate().run()
    assert {kill.node_id for kill in run.kills} == {run.node(".a").id, run.node(".b").id}
    assert [run.node(name).message for name in (".a", ".b")] == ["terminated", "terminated"]
    assert run.node(".z").phase is Phase.OMITTED
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, "terminated")
    assert run.node(".onExit").phase is Phase.SUCCEEDED


def test_a_termination_reaches_steps_that_a_deadline_has_ended_already() -> None:
    run = dag("[{name: a, template: c}, {name: b, template: c, dependencies: [a]}]", spec="activeDeadlineSeconds: 4")
    run.step()
    run.now += timedelta(seconds=4)
    expired = advance(run.state, (), run.now)
    assert [kill.reason for kill in expired.kill] == [KillReason.RUN_DEADLINE]

    for _ in range(2):
        run.terminate()

    assert [kill.reason for kill in run.kills] == [KillReason.TERMINATED]
    run.take((StepFinished(node_id=run.order(".a").node_id, at=run.now, exit_code=137),))
    assert run.node(".a").message == KillReason.RUN_DEADLINE.value
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, "terminated")


def test_a_termination_during_the_handler_lets_it_finish() -> None:
    run = dag("[{name: a, template: c}]", spec="onExit: d")
    while run.names() != {"", ".a", ".onExit"}:
        run.step()
    run.terminate().run()
    assert run.kills == []
    assert (run.node(".onExit").phase, run.turn.phase) == (Phase.SUCCEEDED, Phase.SUCCEEDED)


def test_termination_before_anything_started_fails_the_run() -> None:
    run = dag("[{name: a, template: c}]", script=lambda _order: Outcome(seconds=60))
    run.terminate()
    assert (run.turn.phase, run.turn.message, run.turn.finished) == (Phase.FAILED, "terminated", True)


def test_what_a_limit_held_back_fails_without_starting() -> None:
    run = dag(
        "[{name: a, template: c}, {name: b, template: c}]",
        spec="parallelism: 1",
        script=lambda _order: Outcome(seconds=60),
    )
    run.run_for(1).terminate().run()
    assert len(run.orders) == 1
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, "terminated")


def test_no_attempt_follows_a_termination() -> None:
    run = retried("{limit: 5, backoff: {duration: '60'}}", until(9))
    run.run_for(10).terminate().run()
    assert len(run.node(".f").children) == 1
    assert (run.node(".f").phase, run.turn.message) == (Phase.FAILED, "terminated")


@pytest.mark.parametrize(("code", "message"), [(143, "terminated"), (137, "terminated"), (1, "Error (exit code 1)")])
def test_a_step_that_died_of_our_signal_was_terminated(code: int, message: str) -> None:
    run = dag("[{name: a, template: c}]", script=lambda _order: Outcome(seconds=60))
    run.run_for(1).terminate()
    run.pending_events.clear()
    run.take((StepFinished(node_id=run.node(".a").id, at=run.now, exit_code=code),))
    assert (run.node(".a").phase, run.node(".a").message) == (Phase.FAILED, message)


def test_a_step_that_ended_by_itself_keeps_its_phase() -> None:
    run = dag("[{name: a, template: c}]", script=lambda _order: Outcome(seconds=60))
    run.run_for(1).terminate()
    run.pending_events.clear()
    run.take((StepFinished(node_id=run.node(".a").id, at=run.now, exit_code=0),))
    assert (run.node(".a").phase, run.turn.phase) == (Phase.SUCCEEDED, Phase.SUCCEEDED)


# -- steps, results, exports -------------------------------------------------------------------------------------------


def test_steps_run_group_by_group() -> None:
    run = FakeExecutor(
        workflow(f"""
spec:
  entrypoint: main
  templates:
  - name: main
    steps:
    - - {{name: a, template: c}}
      - {{name: none, template: echo, withParam: "[]", {ITEM}}}
    - - {{name: b, template: c}}
{LEAVES}"""),
        fails("[1].b"),
    ).run()
    assert run.node("[0].none").message == "Skipped, empty params"
    assert set(run.children("[0]")) == {"[0].a", "[0].none"}
    assert run.children("[0].a") == ["[1]"]
    failed = run.node("[1]")
    assert (failed.type, failed.message) == (NodeType.STEP_GROUP, f"child '{run.node('[1].b').id}' failed")
    assert (run.turn.phase, run.turn.message) == (Phase.FAILED, failed.message)


def test_a_step_with_a_senseless_condition_makes_its_group_an_error() -> None:
    run = FakeExecutor(
        workflow(f"""
spec:
  entrypoint: main
  templates:
  - {{name: main, steps: [[{{name: a, template: c, when: x y}}, {{name: b, template: c}}], [{{name: z, template: c}}]]}}
{LEAVES}""")
    ).run()
    assert run.phases() == {"": "Failed", "[0]": "Error", "[0].a": "Error", "[0].b": "Succeeded"}


def test_stdout_is_kept_only_if_somebody_asks() -> None:
    tasks = (
        "[{name: a, template: c}, {name: b, template: c}, {name: z, template: echo, dependencies: [a],"
        " arguments: {parameters: [{name: m,"
        " value: '{{tasks.a.outputs.result}} {{tasks.a.exitCode}} {{tasks.a.status}}'}]}}]"
    )
    run = dag(tasks, script=lambda order: Outcome(result="printed" if order.needs_result else None)).run()
    assert [run.order(name).needs_result for name in (".a", ".b")] == [True, False]
    assert args(run.order(".z")) == ("echo", "printed 0 Succeeded")


def test_a_global_name_is_seen_by_all_and_by_the_run() -> None:
    run = dag(
        "[{name: a, template: glob}, {name: z, template: echo, dependencies: [a],"
        " arguments: {parameters: [{name: m, value: '{{workflow.outputs.parameters.all}}'}]}}]",
        more="""
  - name: glob
    container: {image: i, command: [sh]}
    outputs: {parameters: [{name: o, valueFrom: {path: /o}, globalName: all}]}
""",
        script=gives(a="seen"),
    ).run()
    assert args(run.order(".z")) == ("echo", "seen")
    assert run.state.outputs.parameter("all") == "seen"


def test_a_value_may_hold_a_variable_that_the_next_level_resolves() -> None:
    run = dag(
        "[{name: a, template: out}, {name: z, template: echo, dependencies: [a],"
        " arguments: {parameters: [{name: m, value: '{{tasks.a.outputs.parameters.o}}'}]}}]",
        more="",
        script=gives(a="{{workflow.name}}"),
    ).run()
    assert args(run.order(".z")) == ("echo", "{{workflow.name}}")


# -- expressions -------------------------------------------------------------------------------------------------------


def test_an_expression_joins_what_different_levels_know() -> None:
    run = dag(
        "[{name: a-b, template: out}, {name: t, template: echo, dependencies: [a-b], withItems: [1, 2],"
        " arguments: {parameters: [{name: m,"
        " value: \"{{=tasks['a-b'].outputs.parameters.o + item + workflow.parameters.p}}\"}]}}]",
        spec="arguments: {parameters: [{name: p, value: '!'}]}",
        script=gives(**{"a-b": "v"}),
    ).run()
    assert args(run.order(".t(1:2)")) == ("echo", "v2!")


def test_a_leafs_expression_joins_its_inputs_its_pod_and_the_run() -> None:
    run = single(
        "{name: main, inputs: {parameters: [{name: n, value: '3'}]}, retryStrategy: {limit: 1}, container: {image: i,"
        ' command: [echo, "{{=asInt(inputs.parameters.n) * (asInt(retries) + 2)}} {{=pod.name + workflow.name}}"]}}'
    ).run()
    assert args(run.order("(0)")) == ("echo", f"6 {run.node('(0)').id}{NAME}")


def test_an_expression_that_makes_no_sense_is_an_error_of_its_node() -> None:
    run = dag(
        "[{name: a, template: out}, {name: b, template: echo, dependencies: [a], arguments: {parameters: [{name: m,"
        " value: '{{=asInt(tasks.a.outputs.parameters.o)}}'}]}}, {name: c, template: bad}]",
        more='  - {name: bad, container: {image: i, command: ["{{=asInt(workflow.name)}}"]}}\n',
        script=gives(a="x"),
    ).run()
    assert run.phases() == {"": "Error", ".a": "Succeeded", ".b": "Error", ".c": "Error"}
    assert run.node(".b").message == (
        "failed to evaluate {{=asInt(tasks.a.outputs.parameters.o)}}: asInt cannot convert 'x'"
    )


def test_the_value_of_a_skipped_producer_leaves_an_expression_standing() -> None:
    text = "{{=tasks.s.outputs.parameters.o}}"
    run = dag(
        f"[{{name: s, template: out, when: '1 > 2'}}, {{name: x, template: echo, dependencies: [s],"
        f" arguments: {{parameters: [{{name: m, value: '{text}'}}]}}}}]"
    ).run()
    assert args(run.order(".x")) == ("echo", text)


def test_whose_stdout_an_expression_asks_for_keeps_it() -> None:
    run = dag(
        "[{name: a, template: c}, {name: z, template: echo, dependencies: [a],"
        " arguments: {parameters: [{name: m, value: \"{{=tasks['a'].outputs.result}}\"}]}}]",
        script=lambda order: Outcome(result="printed" if order.needs_result else None),
    ).run()
    assert args(run.order(".z")) == ("echo", "printed")


CHOSEN = "tasks.a.status == 'Succeeded' ? tasks.a.outputs.parameters.o : 'instead'"


@pytest.mark.parametrize(
    ("expression", "when", "value"),
    [
        (CHOSEN, "1 > 2", "instead"),
        (CHOSEN, "2 > 1", "V"),
        ("tasks.a.outputs.parameters.o", "1 > 2", "Unable to resolve: tasks.a.outputs.parameters.o"),
        (
            "asInt(tasks.a.status)",
            "2 > 1",
            "failed to evaluate asInt(tasks.a.status): asInt cannot convert 'Succeeded'",
        ),
    ],
)
def test_an_output_is_computed_from_what_ran(expression: str, when: str, value: str) -> None:
    run = dag(
        "[{name: g, template: group}]",
        more=f"""
  - name: group
    dag: {{tasks: [{{name: a, template: out, when: {when}}}]}}
    outputs: {{parameters: [{{name: up, valueFrom: {{expression: "{expression}"}}}}]}}
""",
        script=gives(a="V"),
    ).run()
    node = run.node(".g")
    assert (node.message or (node.outputs and node.outputs.parameter("up"))) == value


@pytest.mark.parametrize(
    ("expression", "attempts", "message"),
    [
        ("asInt(lastRetry.exitCode) == 7", 3, ""),
        ("asInt(lastRetry.exitCode) < 7", 1, "retryStrategy.expression evaluated to false"),
        ("lastRetry.status == 'Failed' && asInt(retries) < 1", 2, "retryStrategy.expression evaluated to false"),
        ("lastRetry.message contains 'exit code 7' && asFloat(lastRetry.duration) >= 1", 3, ""),
        ("lastRetry.exitCode", 1, "retryStrategy.expression: expected a boolean, got 7"),
    ],
)
def test_an_expression_says_which_ends_are_retried(expression: str, attempts: int, message: str) -> None:
    run = retried(f'{{limit: 5, expression: "{expression}"}}', until(2, exit_code=7)).run()
    assert len(run.node(".f").children) == attempts
    assert run.node(".f").message == message
    broken = message.startswith("retryStrategy.expression:")
    assert run.node(".f").phase is (Phase.ERROR if broken else Phase.FAILED if message else Phase.SUCCEEDED)


def test_a_strategy_with_an_expression_retries_errors_too() -> None:
    failure = {"exit_code": 0, "error": "missing output"}
    run = retried("{limit: 5, expression: \"lastRetry.status == 'Error'\"}", until(2, **failure)).run()
    assert (len(run.node(".f").children), run.turn.phase) == (3, Phase.SUCCEEDED)


@pytest.mark.parametrize(
    ("expression", "phase"),
    [("tasks.a.status == 'Failed'", "Succeeded"), ("tasks.a.status == 'Succeeded'", None), ("tasks.a.status", "Error")],
)
def test_a_hook_with_an_expression_runs_where_it_is_true(expression: str, phase: str | None) -> None:
    hook = f'hooks: {{exit: {{template: bye, expression: "{expression}"}}}}'
    run = dag(f"[{{name: a, template: c, {hook}}}]", more=HOOKED, script=fails(".a")).run()
    assert run.phases().get(".a.onExit") == phase


# -- purity ------------------------------------------------------------------------------------------------------------


def test_the_same_events_give_the_same_turns() -> None:
    manifest = recursion(3).workflow
    first, second = (State.new(manifest, identity()) for _ in range(2))
    assert advance(first, (), MIDNIGHT) == advance(second, (), MIDNIGHT)
    event = StepFinished(
        node_id=next(iter(first.frames.keys() - {NAME})),
        at=MIDNIGHT,
        exit_code=0,
        outputs=Collected(parameters={"n": "2"}),
    )
    assert advance(first, (event,), MIDNIGHT) == advance(second, (event,), MIDNIGHT)


def test_a_turn_holds_only_what_changed() -> None:
    names = ", ".join(f"{{name: t{index}, template: c}}" for index in range(50))
    run = dag(f"[{names}]")
    assert len(run.turn.changed) == 51
    run.step()
    turn = run.take((StepFinished(node_id=run.node(".t7").id, at=run.now, exit_code=0),))
    assert [node.name for node in turn.changed] == [f"{NAME}.t7"]
