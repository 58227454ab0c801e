"""Retrying a whole run: what is done stays done, and the graph becomes as complete as after a first run."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.run.engine.embedded.nodes import NodeType, Phase
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile import State
from services.run.engine.embedded.reopen import Reopened, reopen
from tests.support.embedded_runs import NAME, FakeExecutor, Outcome, Script, workflow
from tests.unit.engine.test_corpus import EXPECTED, as_expected, completed, described
from tests.unit.engine.test_resume import MANIFEST, script, structure


def retry(run: FakeExecutor, again: Script) -> Reopened:
    """Retry a finished run, its steps ending as `again` says from now on."""
    reopened = reopen(NAME, run.stored.values())
    run.stored = {node.id: node for node in reopened.kept}
    run.orders.clear()
    run.script = again
    run.state = State.resume(
        run.workflow,
        run.identity,
        reopened.kept,
        started_at=run.state.started_at,
        deadline_from=run.now,
    )
    run.take(())
    return reopened


def test_a_retried_run_reuses_what_was_done() -> None:
    name = "sdk-1.8.22/own-resume-after-failure.yaml"
    run = as_expected(name).run()
    assert run.turn.phase is Phase.FAILED
    expected = EXPECTED[name]["afterRunRetry"]
    before = dict(run.stored)
    retry(run, lambda _order: Outcome(artifacts=()))
    run.run()
    found = {node["name"]: node for node in (described(run, each) for each in run.stored.values())}
    assert found == {node["name"]: completed(node) for node in expected["nodes"]}
    for spoken in expected["reusedSteps"]:
        node = run.node(spoken.removeprefix("<wf>"))
        assert (node.started_at, node.outputs) == (before[node.id].started_at, before[node.id].outputs)


FAILURES = st.frozensets(
    st.sampled_from(
        [
            ".list",
            ".loop(0:p).x",
            ".loop(1:q).z",
            ".may-fail",
            ".after-never",
            *(f".retried({attempt})" for attempt in range(4)),
            ".staged[0].one(1:b)",
            ".staged[1].three(0).g",
            ".staged[1].three(1).g",
            ".last",
            ".onExit",
        ]
    ),
    min_size=1,
)


@settings(max_examples=80, deadline=None)
@given(failing=FAILURES)
def test_after_a_retry_the_graph_is_as_complete_as_after_a_first_run(failing: frozenset[str]) -> None:
    run = FakeExecutor(MANIFEST, script(failing)).run()
    succeeded = {
        node.id
        for node in run.stored.values()
        if node.type is NodeType.POD and node.phase is Phase.SUCCEEDED and node.name != f"{NAME}.onExit"
    }
    ended = {node.name for node in run.stored.values() if node.phase is Phase.SUCCEEDED}
    retry(run, script(frozenset()))
    run.run()
    assert run.turn.phase is Phase.SUCCEEDED
    again = {order.node_name for order in run.orders if order.node_id in succeeded}
    tasks = {name.removesuffix("(0).g").removesuffix(".onExit") for name in again if ".onExit" in name}
    assert len(tasks) == len(again), "a step that was done ran again"
    assert tasks.isdisjoint(ended), "a hook ran again whose task was done"
    first = structure(FakeExecutor(MANIFEST, script(_still_failing(failing))).run())
    assert structure(run) == first


def _still_failing(failing: frozenset[str]) -> frozenset[str]:
    """A Retry node that succeeded is kept with its failed attempts; a failed one starts over."""
    exhausted = {f".retried({attempt})" for attempt in range(4)} <= failing
    attempts = frozenset() if exhausted or ".list" in failing else _leading(failing, ".retried")
    group_failed = {".staged[1].three(0).g", ".staged[1].three(1).g"} <= failing
    group = frozenset() if group_failed or ".staged[0].one(1:b)" in failing else failing & {".staged[1].three(0).g"}
    return attempts | group


def _leading(failing: frozenset[str], name: str) -> frozenset[str]:
    found: list[str] = []
    while f"{name}({len(found)})" in failing:
        found.append(f"{name}({len(found)})")
    return frozenset(found)


def test_the_hook_of_what_runs_again_is_called_again_and_no_other() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  templates:
  - name: main
    dag:
      tasks:
      - {name: done, template: leaf, onExit: leaf}
      - {name: fails, template: leaf, onExit: group}
      - {name: inner, template: group, onExit: leaf}
      - {name: like-a-hook, template: named}
  - {name: group, dag: {tasks: [{name: g, template: leaf}]}}
  - {name: named, dag: {tasks: [{name: onExit, template: leaf}, {name: x, template: leaf}]}}
  - {name: leaf, container: {image: i, command: [x]}}
""")
    run = FakeExecutor(manifest, script(frozenset({".fails", ".inner.g", ".like-a-hook.x"}))).run()
    assert run.node(".fails.onExit.g").phase is Phase.SUCCEEDED
    retry(run, script(frozenset()))
    assert run.run().turn.phase is Phase.SUCCEEDED
    again = {order.node_name.removeprefix(NAME) for order in run.orders}
    assert again == {".fails", ".fails.onExit.g", ".inner.g", ".inner.onExit", ".like-a-hook.x"}


def test_what_is_reopened_takes_no_room_before_its_turn() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  templates:
  - name: main
    parallelism: 1
    dag:
      tasks:
      - {name: a, template: leaf, continueOn: {failed: true}}
      - {name: b, template: group, dependencies: [a]}
      - {name: c, template: leaf}
  - {name: group, dag: {tasks: [{name: g, template: leaf}]}}
  - {name: leaf, container: {image: i, command: [x]}}
""")
    run = FakeExecutor(manifest, script(frozenset({".a", ".b.g"}))).run()
    assert run.turn.phase is Phase.FAILED
    retry(run, script(frozenset()))
    assert run.run().turn.phase is Phase.SUCCEEDED
    assert run.max_running == 1


def test_the_deadline_counts_from_the_retry_and_the_handler_runs_again() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  onExit: main
  activeDeadlineSeconds: 10
  templates: [{name: main, container: {image: i, command: [x]}}]
""")

    def slow(order: StepOrder) -> Outcome:
        return Outcome(seconds=60 if order.node_name == NAME else 1)

    run = FakeExecutor(manifest, slow).run()
    assert run.turn.phase is Phase.FAILED
    reopened = retry(run, lambda _order: Outcome(seconds=8))
    assert (reopened.kept, len(reopened.removed)) == ((), 2)
    assert run.run().turn.phase is Phase.SUCCEEDED
    assert [order.node_name for order in run.orders] == [NAME, f"{NAME}.onExit"]
