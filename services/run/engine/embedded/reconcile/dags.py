"""DAG templates: which task goes on when, and how the whole ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.run.engine.embedded.expression import ExpressionError, Outcome
from services.run.engine.embedded.loops import expand, item_lookup, item_text
from services.run.engine.embedded.manifest import ManifestError, Task, TaskName
from services.run.engine.embedded.nodes import Node, NodeInputs, NodeType, Phase, item_name, task_name
from services.run.engine.embedded.reconcile.frames import Call, Dag, TaskGroup
from services.run.engine.embedded.reconcile.outcomes import continues_on
from services.run.engine.embedded.reconcile.part import Part
from services.run.engine.embedded.reconcile.tasks import reason_to_skip, without_loop
from services.run.engine.embedded.template import Lookup, fill, first_of, has_item_tag
from services.run.engine.embedded.variables import inputs_lookup


class Dags(Part):
    """The DAGs of one turn."""

    def open(self, call: Call, inputs: NodeInputs) -> None:
        plan = self._plan.dag(call.template)
        node = self._graph.find_or_create(call, NodeType.DAG, inputs)
        frame = Dag(
            call=call,
            node_id=node.id,
            inputs=inputs,
            plan=plan,
            waiting={name: len(task.dependencies) for name, task in plan.tasks.items()},
        )
        self._state.frames[node.id] = frame
        for name, task in plan.tasks.items():
            if not task.dependencies:
                self._walk.soon(self._consider, frame, name)

    def _consider(self, dag: Dag, name: TaskName) -> None:
        """All that the task depends on is fulfilled: run, skip or omit it."""
        dag.considered += 1
        planned = dag.plan.tasks[name]
        node_name = task_name(dag.call.name, name)
        links = tuple(self._task_links(dag, planned.dependencies))
        stored = self._state.nodes.get(self._graph.id_of(node_name))
        if stored is not None and stored.phase.is_fulfilled:
            self._graph.link(links, stored.id)
            self._walk.tell(self._tasks.call(dag, planned.task, node_name, dag, links, artifacts={}), stored)
            return
        if planned.condition is not None and not planned.condition.holds(self._outcomes(dag, planned.dependencies)):
            message = "omitted: depends condition not met"
            self._skip_task(dag, planned.task, node_name, links, Phase.OMITTED, message)
            return
        try:
            self._begin_task(dag, planned.task, node_name, links)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self._skip_task(dag, planned.task, node_name, links, Phase.ERROR, str(error))

    def _begin_task(self, dag: Dag, declared: Task, node_name: str, links: tuple[str, ...]) -> None:
        lookup = first_of(self._plan.globals, inputs_lookup(dag.inputs), self._tasks.values(dag))
        task = self._tasks.filled(declared, dag, lookup)
        if task.expands:
            self._begin_loop(dag, task, node_name, links, lookup)
            return
        if (reason := reason_to_skip(task)) is not None:
            self._skip_task(dag, task, node_name, links, Phase.SKIPPED, reason)
            return
        self._walk.begin(self._tasks.call(dag, task, node_name, dag, links))

    def _skip_task(
        self, dag: Dag, task: Task, node_name: str, links: tuple[str, ...], phase: Phase, message: str
    ) -> None:
        self._walk.skip(self._tasks.call(dag, task, node_name, dag, links, artifacts={}), phase, message)

    def _begin_loop(self, dag: Dag, task: Task, node_name: str, links: tuple[str, ...], lookup: Lookup) -> None:
        """A TaskGroup, and below it one call per item. Errors are the task's, so they come before the first node."""
        if not task.when or has_item_tag(task.when) or reason_to_skip(task) is None:
            self._tasks.artifacts(dag, task)
        plain = without_loop(task)
        items = [(item_text(item), fill(plain, item_lookup(item), lookup)) for item in expand(task)]
        call = self._tasks.call(dag, task, node_name, dag, links, artifacts={})
        node = self._graph.find_or_create(call, NodeType.TASK_GROUP, None)
        group = TaskGroup(call=call, node_id=node.id, open=len(items))
        self._state.frames[node.id] = group
        if not items:
            self._walk.end(group, Phase.SUCCEEDED)
        for index, (text, item_task) in enumerate(items):
            self._walk.soon(self._begin_item, dag, group, item_task, item_name(node_name, index, text))

    def _begin_item(self, dag: Dag, group: TaskGroup, task: Task, node_name: str) -> None:
        call = self._tasks.call(dag, task, node_name, group, (group.node_id,), artifacts={})
        self._walk.begin_unless_skipped(dag, task, call)

    def item_done(self, group: TaskGroup) -> None:
        group.open -= 1
        if group.open:
            return
        failed = [node.phase for node in self._graph.items(self._state.nodes[group.node_id]) if node.phase.is_failure]
        self._walk.end(group, failed[-1] if failed else Phase.SUCCEEDED)

    def task_done(self, dag: Dag, name: TaskName, done_id: str) -> None:
        dag.done[name] = done_id
        dag.settled += 1
        for dependent in dag.plan.tasks[name].dependents:
            dag.waiting[dependent] -= 1
            if dag.waiting[dependent] == 0:
                self._walk.soon(self._consider, dag, dependent)
        if dag.settled == len(dag.plan.tasks):
            self._end_dag(dag, self._dag_phase(dag))
        elif dag.without_room:
            self._walk.crowded[dag.node_id] = dag

    def fail_fast(self, dag: Dag) -> None:
        """A DAG that has failed does not wait for room: when nothing of it runs, the rest gets no node (§6)."""
        assert dag.call.template.dag is not None
        waiting = len(dag.without_room)
        is_idle = waiting > 0 and waiting == dag.considered - dag.settled
        if not is_idle or not dag.call.template.dag.fail_fast or dag.node_id not in self._state.frames:
            return
        phase = self._dag_phase(dag)
        if not phase.is_failure:
            return
        for held in (dag.held, self._state.held):
            calls = list(held)
            held.clear()
            held.extend(call for call in calls if call.caller is not dag)
            for call in calls:
                if call.caller is dag:
                    self._graph.unlink(call.links, self._graph.id_of(call.name))
        self._end_dag(dag, phase)

    def _end_dag(self, dag: Dag, phase: Phase) -> None:
        ends = (dag.done[target] for target in dag.plan.targets if target in dag.done)
        outbound = tuple(dict.fromkeys(each for end in ends for each in self._graph.outbound(end)))
        self._walk.end_group(dag, phase, "", outbound, self._tasks.values(dag))

    def _dag_phase(self, dag: Dag) -> Phase:
        """The phase of the first failed target in name order; a target that did not run carries its ancestors' (§6)."""
        template = dag.call.template
        assert template.dag is not None
        carried: dict[TaskName, frozenset[Phase]] = {}
        failed = []
        for target in dag.plan.targets:
            if target not in dag.done:
                continue
            phases = self._carried_out(dag, target, carried)
            phase = next((each for each in (Phase.FAILED, Phase.ERROR) if each in phases), None)
            if phase is not None and not continues_on(dag.plan.tasks[target].task.continue_on, phase):
                failed.append(phase)
        if not failed:
            return Phase.SUCCEEDED
        return failed[0] if template.dag.fail_fast else failed[-1]

    def _carried_out(self, dag: Dag, task: TaskName, known: dict[TaskName, frozenset[Phase]]) -> frozenset[Phase]:
        """The phases of what completed last on the paths through this task.

        A task that completed carries its own phase; one that was skipped or omitted those of its dependencies. Inside
        a nested group the group's own phase stands for its members'.
        """
        stack = [task]
        while stack:
            name = stack[-1]
            phase = self._state.nodes[dag.done[name]].phase
            dependencies = dag.plan.tasks[name].dependencies
            unknown = [] if phase.is_completed else [each for each in dependencies if each not in known]
            if unknown:
                stack.extend(unknown)
                continue
            stack.pop()
            known[name] = (
                frozenset({phase}) if phase.is_completed else frozenset().union(*(known[each] for each in dependencies))
            )
        return known[task]

    def _outcomes(self, dag: Dag, names: Iterable[TaskName]) -> dict[str, frozenset[Outcome]]:
        return {name: self._outcome(self._state.nodes[dag.done[name]]) for name in names}

    def _outcome(self, node: Node) -> frozenset[Outcome]:
        outcomes = {_OUTCOMES[node.phase]} if node.phase in _OUTCOMES else set()
        if node.type is NodeType.TASK_GROUP:
            phases = [item.phase for item in self._graph.items(node)]
            if Phase.SUCCEEDED in phases:
                outcomes.add(Outcome.ANY_SUCCEEDED)
            if phases and all(phase.is_failure for phase in phases):
                outcomes.add(Outcome.ALL_FAILED)
        return frozenset(outcomes)

    def _task_links(self, dag: Dag, dependencies: Iterable[TaskName]) -> Iterator[str]:
        """Whose child a task is: the DAG's without dependencies, else of all their last nodes."""
        found = False
        for name in dependencies:
            found = True
            yield from self._graph.outbound(dag.done[name])
        if not found:
            yield dag.node_id


_OUTCOMES = {
    Phase.SUCCEEDED: Outcome.SUCCEEDED,
    Phase.FAILED: Outcome.FAILED,
    Phase.ERROR: Outcome.ERRORED,
    Phase.SKIPPED: Outcome.SKIPPED,
}
"""Omitted is none of these: under plain dependencies it goes on down the line."""
