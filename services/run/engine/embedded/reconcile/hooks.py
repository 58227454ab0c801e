"""Exit hooks: what a task calls at its end, before its group is told."""

from __future__ import annotations

from functools import partial

from services.run.engine.embedded.expr import holds
from services.run.engine.embedded.expression import ExpressionError
from services.run.engine.embedded.manifest import Arguments, Hook, ManifestError, Task
from services.run.engine.embedded.nodes import Node, NodeArtifact, Phase, exit_name
from services.run.engine.embedded.plan import workflow_artifacts
from services.run.engine.embedded.reconcile.frames import Call, Dag, Hooked, Steps
from services.run.engine.embedded.reconcile.part import Part
from services.run.engine.embedded.template import Lookup, first_of
from services.run.engine.embedded.variables import inputs_lookup, node_value


class Hooks(Part):
    """The hooks of one turn."""

    def has_ended(self, node: Node) -> bool:
        """Whether something ran to an end; what a stop kept from beginning has no end to speak of."""
        stopping = self._state.stopping
        was_kept = stopping is not None and node.outputs is None and node.message == stopping.value
        return node.phase.is_completed and not was_kept

    def begin(self, call: Call, hook: Hook, ended: Node) -> None:
        """As the run's exit handler, it runs also when the run is stopped; what becomes of it fails nobody."""
        group = call.boundary
        assert isinstance(group, Dag | Steps)
        if isinstance(group, Dag):
            group.done[call.task] = ended.id  # The hook may ask for what its own task gave.
        hooked = Hooked(call=call, node_id=ended.id)
        name = exit_name(call.name)
        scope = self._hook_scope(call, ended, group)
        try:
            if hook.expression and not holds(hook.expression, scope):
                self.done(hooked)
                return
            task, artifacts = self._hook_task(call, hook, scope, group)
            of_hook = self._tasks.call(group, task, name, hooked, (ended.id,), artifacts)
        except (ManifestError, ExpressionError) as error:
            node = self._graph.add_not_run(name, group, hook.template, Phase.ERROR, str(error))
            self._graph.link((ended.id,), node.id)
            self.done(hooked)
            return
        of_hook.exempt = True
        self._walk.begin(of_hook)

    def _hook_task(
        self, call: Call, hook: Hook, scope: Lookup, group: Dag | Steps
    ) -> tuple[Task, dict[str, NodeArtifact]]:
        """The hook as a task of the group, and its artifacts. Without arguments it gets the run's own."""
        arguments = hook.arguments
        if not arguments.parameters and not arguments.artifacts:
            of_run = self._plan.globals.arguments
            parameters = Arguments(parameters=of_run.parameters)
            return Task(name=call.task, template=hook.template, arguments=parameters), workflow_artifacts(of_run)
        task = Task(name=call.task, template=hook.template, arguments=arguments)
        task = self._tasks.filled(task, group, scope)
        return task, self._tasks.artifacts(group, task)

    def _hook_scope(self, call: Call, ended: Node, group: Dag | Steps) -> Lookup:
        own = partial(self._own_step_value, call, ended)
        return first_of(self._plan.globals, inputs_lookup(group.inputs), own, self._tasks.values(group))

    def _own_step_value(self, call: Call, ended: Node, name: str) -> str | None:
        """`steps.S.…` of the step whose hook asks: of this item, where it expands."""
        prefix = f"steps.{call.task}."
        return node_value(self._graph.effective(ended), name.removeprefix(prefix)) if name.startswith(prefix) else None

    def done(self, hooked: Hooked) -> None:
        self._walk.tell_caller(hooked.call, self._state.nodes[hooked.node_id])
