"""A restart at any point continues the run: everything follows from the manifest and the stored nodes."""

import json
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.run.engine.embedded.manifest import Workflow
from services.run.engine.embedded.nodes import Node, Phase
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reconcile import Limits, State, StepLost, StepStarted, advance
from tests.support.embedded_runs import MIDNIGHT, NAME, FakeExecutor, Outcome, Script, identity, workflow
from tests.unit.engine.test_corpus import EXPECTED, WALKED, as_expected

EVERYTHING = """
spec:
  entrypoint: main
  onExit: leaf
  parallelism: 3
  templates:
  - name: main
    dag:
      tasks:
      - {name: list, template: lister}
      - name: loop
        template: body
        dependencies: [list]
        withParam: "{{tasks.list.outputs.parameters.o}}"
        arguments: {parameters: [{name: m, value: "{{item}}"}]}
      - {name: retried, template: flaky, dependencies: [list], onExit: leaf}
      - {name: staged, template: stages, hooks: {exit: {template: group}}}
      - {name: never, template: leaf, when: 1 > 2}
      - {name: after-never, template: leaf, dependencies: [never]}
      - {name: omitted, template: leaf, dependencies: [may-fail]}
      - {name: may-fail, template: leaf}
      - {name: last, template: leaf, dependencies: [loop, retried, staged]}
  - name: body
    inputs: {parameters: [{name: m}]}
    parallelism: 1
    dag: {tasks: [{name: x, template: leaf}, {name: y, template: leaf, dependencies: [x]}, {name: z, template: leaf}]}
  - name: stages
    steps:
    - - {name: one, template: leaf, withItems: [a, b], onExit: leaf}
    - - {name: two, template: leaf}
      - {name: three, template: group}
  - {name: group, retryStrategy: {limit: 1}, dag: {tasks: [{name: g, template: leaf}]}}
  - name: lister
    container: {image: i, command: [sh]}
    outputs: {parameters: [{name: o, valueFrom: {path: /o}, globalName: all}]}
  - {name: flaky, retryStrategy: {limit: 3, backoff: {duration: "3", factor: 2}}, container: {image: i, command: [x]}}
  - {name: leaf, container: {image: i, command: [echo, "{{workflow.name}}"]}}
"""
MANIFEST = workflow(EVERYTHING)


def script(failing: frozenset[str]) -> Script:
    def ends(order: StepOrder) -> Outcome:
        name = order.node_name.removeprefix(NAME)
        seconds = 1 + sum(name.encode()) % 5
        values = {"o": json.dumps(["p", "q"])} if name == ".list" else {}
        return Outcome(exit_code=1 if name in failing else 0, parameters=values, seconds=seconds)

    return ends


def structure(run: FakeExecutor) -> dict[str, object]:
    """All that must not depend on when the engine was restarted: everything but times and the order of links."""
    return {
        node.name: (node.type, node.phase, node.message, sorted(node.children), node.boundary_id, node.outbound_nodes)
        for node in run.stored.values()
    }


FAILURES = st.frozensets(
    st.sampled_from(
        [".list", ".may-fail", ".retried(0)", ".retried(1)", ".loop(1:q).x", ".staged[1].three(0).g", ".staged[1].two"]
    )
)


@settings(max_examples=60, deadline=None)
@given(failing=FAILURES, restarts=st.frozensets(st.integers(min_value=0, max_value=90), max_size=4))
def test_restarts_at_any_points_change_nothing(failing: frozenset[str], restarts: frozenset[int]) -> None:
    undisturbed = FakeExecutor(MANIFEST, script(failing)).run()
    disturbed = FakeExecutor(MANIFEST, script(failing))
    moves = 0
    while not disturbed.turn.finished:
        if moves in restarts:
            disturbed.restart()
        disturbed.step()
        moves += 1
    assert structure(disturbed) == structure(undisturbed)
    assert len(disturbed.orders) == len(undisturbed.orders), "a step ran twice"
    assert (disturbed.turn.phase, disturbed.turn.message) == (undisturbed.turn.phase, undisturbed.turn.message)


@pytest.mark.parametrize("name", [name for name in WALKED if len(EXPECTED[name]["nodes"]) < 25])
def test_a_real_pipeline_survives_a_restart_before_every_move(name: str) -> None:
    undisturbed = as_expected(name).run()
    disturbed = as_expected(name)
    while not disturbed.turn.finished:
        disturbed.restart()
        disturbed.step()
    assert structure(disturbed) == structure(undisturbed)
    assert len(disturbed.orders) == len(undisturbed.orders)


def test_a_resumed_state_names_what_is_to_be_started_and_what_to_be_found_again() -> None:
    run = FakeExecutor(MANIFEST, script(frozenset()))
    pending = {order.node_id for order in run.turn.start}
    assert {order.node_id for order in run.restart().turn.start} == pending
    run.step()
    run.restart()
    assert (run.turn.start, {order.node_id for order in run.turn.reattach}) == ((), pending)


def test_a_step_that_is_not_found_again_is_an_attempt_that_failed() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  templates:
  - {name: main, retryStrategy: {limit: 1, retryPolicy: Always}, container: {image: i, command: [x]}}
""")
    run = FakeExecutor(manifest, lambda _order: Outcome(seconds=60))
    run.step()
    run.restart()
    (lost,) = run.turn.reattach
    run.running.clear()
    run.take((StepLost(node_id=lost.node_id, at=run.now),))
    assert run.node("(0)").message == "pod deleted"
    assert run.run().turn.phase is Phase.SUCCEEDED
    assert run.children("") == ["(0)", "(1)"]


def test_a_later_attempt_is_found_again_at_once() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  templates:
  - {name: main, retryStrategy: {limit: 1, backoff: {duration: "3"}}, container: {image: i, command: [x]}}
""")
    run = FakeExecutor(manifest, script(frozenset({"(0)"})))
    while "(1)" not in run.names() or run.node("(1)").phase is not Phase.RUNNING:
        run.step()
    run.restart()
    assert [order.node_id for order in run.turn.reattach] == [run.node("(1)").id]


def test_a_restart_never_kills_a_step_before_its_deadline() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  templates: [{name: main, activeDeadlineSeconds: 2, container: {image: i, command: [x]}}]
""")
    run = FakeExecutor(manifest, lambda _order: Outcome(seconds=60))
    run.pending_events.clear()
    started = MIDNIGHT + timedelta(seconds=0.9)
    run.now = started
    run.take((StepStarted(node_id=NAME, at=started),))
    assert run.turn.wake_at == started + timedelta(seconds=2)
    run.restart()
    assert run.turn.wake_at is not None
    assert started + timedelta(seconds=2) <= run.turn.wake_at <= started + timedelta(seconds=3)


def test_a_termination_is_finished_after_a_restart() -> None:
    run = FakeExecutor(MANIFEST, lambda order: Outcome(seconds=60 if ".onExit" not in order.node_name else 1))
    run.run_for(1).terminate()
    run.pending_events.clear()
    for kill in run.kills:
        order = next(each for each in run.orders if each.node_id == kill.node_id)
        run.running[kill.node_id] = (run.now, order, Outcome())
    run.kills.clear()
    run.restart()
    assert {kill.node_id for kill in run.kills}
    assert run.run().turn.message == "terminated"


def test_stored_nodes_go_through_json_unharmed() -> None:
    run = FakeExecutor(MANIFEST, script(frozenset({".may-fail"}))).run()
    stored = msgspec.json.decode(msgspec.json.encode(list(run.stored.values())), type=list[Node])
    state = State.resume(MANIFEST, identity(), stored, started_at=MIDNIGHT)
    turn = advance(state, (), run.now)
    assert (turn.finished, turn.phase, turn.changed, turn.start) == (True, run.turn.phase, (), ())
    assert state.outputs.parameter("all") == '["p", "q"]'


def chain(length: int) -> Workflow:
    tasks = [
        f"{{name: t{index}, template: c{f', dependencies: [t{index - 1}]' if index else ''}}}"
        for index in range(length)
    ]
    return workflow(f"""
spec:
  entrypoint: main
  templates: [{{name: main, dag: {{tasks: [{", ".join(tasks)}]}}}}, {{name: c, container: {{image: i, command: [x]}}}}]
""")


def test_a_step_late_in_a_long_chain_touches_as_little_as_an_early_one() -> None:
    run = FakeExecutor(chain(300))
    sizes = []
    while run.step():
        sizes.append(len(run.turn.changed))
    # The step that ends, the step that begins; the last turn ends the DAG as well.
    assert max(sizes) <= 2


def test_a_restart_does_not_let_in_more_than_there_is_room_for() -> None:
    """`p` waits and `q` goes on, which the walk after a restart comes to later."""
    manifest = workflow("""
spec:
  entrypoint: main
  parallelism: 1
  templates:
  - {name: main, dag: {tasks: [{name: a, template: leaf}, {name: one, template: one}]}}
  - {name: one, parallelism: 1, dag: {tasks: [{name: p, template: leaf}, {name: q, template: pair}]}}
  - {name: pair, dag: {tasks: [{name: x, template: leaf}, {name: y, template: leaf}]}}
  - {name: leaf, container: {image: i, command: [x]}}
""")
    run = FakeExecutor(manifest)
    waited = False
    while not run.turn.finished:
        open_ = {name for name, phase in run.phases().items() if phase in ("Pending", "Running")}
        waited |= ".one.q" in open_ and ".one.p" not in run.names()
        assert not {".one.p", ".one.q"} <= open_
        run.restart()
        run.step()
    assert (waited, run.turn.phase, run.max_running) == (True, Phase.SUCCEEDED, 1)


def test_a_run_at_its_limits_goes_on_after_a_restart() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  templates:
  - {name: main, dag: {tasks: [{name: a, template: group}]}}
  - {name: group, dag: {tasks: [{name: a, template: leaf}, {name: b, template: leaf}]}}
  - {name: leaf, container: {image: i, command: [x]}}
""")
    run = FakeExecutor(manifest, limits=Limits(nodes=4, depth=1))
    assert len(run.stored) == 4
    run.restart()
    run.run()
    assert run.turn.phase is Phase.SUCCEEDED
