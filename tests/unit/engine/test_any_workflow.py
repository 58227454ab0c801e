"""Workflows nobody thought of: whatever they are and whatever happens, they end, and their graph is whole."""

from collections import Counter
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from services.run.engine.embedded.manifest import Workflow, parse
from services.run.engine.embedded.nodes import NodeType, Phase
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.reopen import reopen
from services.run.engine.embedded.validation import refuse_unsupported, validate
from tests.support.embedded_runs import NAME, FakeExecutor, Outcome

LEAF = {"image": "i", "command": ["x"]}
LEAVES: list[dict[str, Any]] = [
    {"name": "leaf", "container": LEAF, "outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/o"}}]}},
    {"name": "flaky", "container": LEAF, "retryStrategy": {"limit": 1, "backoff": {"duration": "2"}}},
    {"name": "short", "container": LEAF, "activeDeadlineSeconds": 2},
    {"name": "pause", "suspend": {"duration": "1"}},
]


@st.composite
def tasks(draw: st.DrawFn, templates: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 5))):
        task: dict[str, Any] = {"name": f"t{index}", "template": draw(st.sampled_from(templates))}
        earlier = [each["name"] for each in found]
        if earlier and (needs := draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2))):
            task["dependencies"] = needs
        if when := draw(st.sampled_from(["", "", "", "1 > 2", "2 > 1", "a b"])):
            task["when"] = when
        if draw(st.integers(0, 3)) == 0:
            task["withItems"] = draw(st.lists(st.sampled_from(["a", "b", {"k": 1}, 10]), max_size=3))
        if draw(st.integers(0, 4)) == 0:
            task["continueOn"] = {"failed": draw(st.booleans()), "error": draw(st.booleans())}
        if draw(st.integers(0, 4)) == 0:
            task["onExit"] = draw(st.sampled_from(templates))
        found.append(task)
    return found


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    leaves = [each["name"] for each in LEAVES]
    inner = {
        "name": "inner",
        "dag": {"tasks": draw(tasks(leaves)), "failFast": draw(st.booleans())},
        "parallelism": draw(st.integers(0, 2)),
        **draw(st.sampled_from([{}, {}, {"retryStrategy": {"limit": 1}}])),
    }
    steps = [
        [{key: value for key, value in task.items() if key != "dependencies"}]
        for task in draw(tasks([*leaves, "inner"]))
    ]
    outer = {
        "name": "outer",
        "dag": {"tasks": draw(tasks([*leaves, "inner", "stages"]))},
        "parallelism": draw(st.integers(0, 2)),
    }
    spec: dict[str, Any] = {"entrypoint": draw(st.sampled_from(["outer", "stages"]))}
    if parallelism := draw(st.integers(0, 3)):
        spec["parallelism"] = parallelism
    if draw(st.booleans()):
        spec["onExit"] = "leaf"
    if draw(st.integers(0, 4)) == 0:
        spec["activeDeadlineSeconds"] = draw(st.integers(0, 12))
    spec["templates"] = [outer, inner, {"name": "stages", "steps": steps}, *LEAVES]
    return parse({"spec": spec})


@settings(max_examples=100, deadline=None)
@given(
    manifest=workflows(),
    fates=st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), st.integers(0, 4)), min_size=1, max_size=7),
    restarts=st.frozensets(st.integers(0, 40), max_size=3),
    terminated_at=st.none() | st.integers(0, 30),
)
def test_every_run_ends_and_its_graph_is_whole(
    manifest: Workflow, fates: list[tuple[int, int]], restarts: frozenset[int], terminated_at: int | None
) -> None:
    validate(manifest)
    refuse_unsupported(manifest)

    def script(order: StepOrder) -> Outcome:
        code, seconds = fates[sum(order.node_name.encode()) % len(fates)]
        return Outcome(exit_code=code, seconds=seconds)

    run = FakeExecutor(manifest, script)
    moves = 0
    while not run.turn.finished:
        if moves in restarts:
            run.restart()
        if moves == terminated_at:
            run.terminate()
        run.step()
        moves += 1
        assert moves < 3000, "the run does not end"
    assert_whole(run)
    assert run.max_running <= (manifest.spec.parallelism or run.max_running)
    assert max(Counter(order.node_id for order in run.orders).values(), default=1) == 1, "a step ran twice"
    assert_can_be_retried(run)


def assert_whole(run: FakeExecutor) -> None:
    open_ = [node.name for node in run.stored.values() if not node.phase.is_fulfilled or node.finished_at is None]
    assert open_ == []
    reached = {NAME, *(node.id for node in run.stored.values() if node.name.startswith(f"{NAME}.onExit"))}
    frontier = list(reached)
    while frontier:
        for child in run.stored[frontier.pop()].children:
            if child not in reached:
                reached.add(child)
                frontier.append(child)
    assert reached == run.stored.keys(), "nodes float"
    for node in run.stored.values():
        if node.boundary_id:
            assert run.stored[node.boundary_id].type in {NodeType.DAG, NodeType.STEPS}


def assert_can_be_retried(run: FakeExecutor) -> None:
    """A failed run's retry ends well when all steps do; only what no step can mend fails again."""
    if run.turn.phase is Phase.SUCCEEDED:
        return
    # Without a deadline: a retried run has less to do, and may be in time where a first one is not.
    spec = msgspec.structs.replace(run.workflow.spec, active_deadline_seconds=None)
    manifest = msgspec.structs.replace(run.workflow, spec=spec)
    again = FakeExecutor(manifest, lambda _order: Outcome(seconds=0)).run()
    kept = reopen(NAME, run.stored.values()).kept
    retried = FakeExecutor(manifest, lambda _order: Outcome(seconds=0))
    retried.stored = {node.id: node for node in kept}
    retried.orders.clear()
    retried.running.clear()
    retried.pending_events.clear()
    retried.restart()
    retried.run()
    assert retried.turn.phase is again.turn.phase
    assert_whole(retried)
