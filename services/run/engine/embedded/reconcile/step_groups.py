"""Steps templates: one group of steps after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from services.run.engine.embedded.expression import ExpressionError
from services.run.engine.embedded.loops import expand, item_lookup, item_text
from services.run.engine.embedded.manifest import ManifestError, Task
from services.run.engine.embedded.nodes import (
    Node,
    NodeInputs,
    NodeType,
    Phase,
    group_name,
    item_name,
    task_name,
    whole_seconds,
)
from services.run.engine.embedded.reconcile.frames import Call, Steps
from services.run.engine.embedded.reconcile.graph import in_index_order
from services.run.engine.embedded.reconcile.outcomes import continues_on
from services.run.engine.embedded.reconcile.part import Part
from services.run.engine.embedded.reconcile.tasks import without_loop
from services.run.engine.embedded.template import Lookup, fill, first_of
from services.run.engine.embedded.variables import inputs_lookup


class StepGroups(Part):
    """The Steps templates of one turn."""

    def open(self, call: Call, inputs: NodeInputs) -> None:
        node = self._graph.find_or_create(call, NodeType.STEPS, inputs)
        frame = Steps(call=call, node_id=node.id, inputs=inputs)
        self._state.frames[node.id] = frame
        self._walk.soon(self._begin_group, frame)

    def _begin_group(self, frame: Steps) -> None:
        """Open the step group `index`, or step over a stored one that is over."""
        assert frame.call.template.steps is not None
        declared = frame.call.template.steps[frame.index]
        name = group_name(frame.call.name, frame.index)
        links = tuple(self._step_outbound(frame)) if frame.index else (frame.node_id,)
        frame.current = [step.name for step in declared]
        group = self._state.nodes.get(self._graph.id_of(name))
        if group is None:
            group = self._graph.new(name, NodeType.STEP_GROUP, Phase.RUNNING, frame)
            self._graph.put(group)
        self._graph.link(links, group.id)
        if group.phase.is_fulfilled:
            self._recall_steps(frame, group, declared)
            self._walk.soon(self._group_ended, frame, group.id)
            return
        frame.open = 1  # Held while the steps are laid out, so that an early end does not close the group.
        frame.problem = None
        for step in declared:
            self._walk.soon(self._lay_out_step, frame, step, name, group.id)
        self._walk.soon(self.step_done, frame)

    def _recall_steps(self, frame: Steps, group: Node, declared: Sequence[Task]) -> None:
        for step in declared:
            name = task_name(group.name, step.name)
            children = [self._state.nodes[each] for each in self._graph.children(group.id) if each in self._state.nodes]
            single = [each for each in children if each.name == name]
            frame.steps[step.name] = [each.id for each in single or in_index_order(children, name)]

    def _lay_out_step(self, frame: Steps, declared: Task, group: str, group_id: str) -> None:
        node_name = task_name(group, declared.name)
        frame.steps[declared.name] = []
        try:
            lookup = first_of(self._plan.globals, inputs_lookup(frame.inputs), self._tasks.values(frame))
            task = self._tasks.filled(declared, frame, lookup)
            tasks = self._step_tasks(task, node_name, lookup)
        except (ManifestError, ExpressionError, RecursionError) as error:
            self._walk.refuse(self._place_step(frame, declared, node_name, group_id), str(error))
            return
        if not tasks:
            call = self._place_step(frame, task, node_name, group_id)
            self._walk.skip(call, Phase.SKIPPED, "Skipped, empty params")
        for name, each in tasks:
            call = self._place_step(frame, each, name, group_id)
            self._walk.begin_unless_skipped(frame, each, call)

    def _step_tasks(self, task: Task, node_name: str, lookup: Lookup) -> list[tuple[str, Task]]:
        if not task.expands:
            return [(node_name, task)]
        plain = without_loop(task)
        return [
            (item_name(node_name, index, item_text(item)), fill(plain, item_lookup(item), lookup))
            for index, item in enumerate(expand(task))
        ]

    def _place_step(self, frame: Steps, task: Task, node_name: str, group_id: str) -> Call:
        frame.open += 1
        frame.steps[task.name].append(self._graph.id_of(node_name))
        return self._tasks.call(frame, task, node_name, frame, (group_id,), artifacts={})

    def step_done(self, frame: Steps) -> None:
        frame.open -= 1
        if frame.open:
            return
        group = self._state.nodes[self._graph.id_of(group_name(frame.call.name, frame.index))]
        phase, message = self._group_result(frame)
        self._graph.put(
            msgspec.structs.replace(group, phase=phase, message=message, finished_at=whole_seconds(self._now))
        )
        self._group_ended(frame, group.id)

    def _group_result(self, frame: Steps) -> tuple[Phase, str]:
        if frame.problem is not None:
            return Phase.ERROR, frame.problem
        assert frame.call.template.steps is not None
        for step in frame.call.template.steps[frame.index]:
            for each in frame.steps[step.name]:
                phase = self._state.nodes[each].phase
                if phase.is_failure and not continues_on(step.continue_on, phase):
                    return Phase.FAILED, f"child '{each}' failed"
        return Phase.SUCCEEDED, ""

    def _group_ended(self, frame: Steps, group_id: str) -> None:
        assert frame.call.template.steps is not None
        group = self._state.nodes[group_id]
        outbound = tuple(self._step_outbound(frame))
        scope = self._tasks.values(frame)
        if group.phase.is_failure:
            self._walk.end_group(frame, Phase.FAILED, group.message, outbound, scope)
        elif frame.index + 1 < len(frame.call.template.steps):
            frame.index += 1
            self._walk.soon(self._begin_group, frame)
        else:
            self._walk.end_group(frame, Phase.SUCCEEDED, "", outbound, scope)

    def _step_outbound(self, frame: Steps) -> Iterator[str]:
        for step in frame.current:
            for each in frame.steps[step]:
                yield from self._graph.outbound(each)
