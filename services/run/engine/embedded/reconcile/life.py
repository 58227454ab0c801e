"""The beginning and the end of a run, with its exit handler between."""

from __future__ import annotations

from services.run.engine.embedded.manifest import ManifestError, TemplateName
from services.run.engine.embedded.nodes import Node, Phase, exit_name, whole_seconds
from services.run.engine.embedded.plan import workflow_artifacts
from services.run.engine.embedded.reconcile.frames import Call
from services.run.engine.embedded.reconcile.part import Part
from services.run.engine.embedded.reconcile.turn import KillReason
from services.run.engine.embedded.variables import Exiting


class Life(Part):
    """A run from its entry point to its end."""

    def begin(self) -> None:
        state = self._state
        state.awake = True
        if state.nodes:
            self._walk.newcomers = []
        state.phase = Phase.RUNNING
        state.started_at = state.started_at or whole_seconds(self._now)
        spec = state.workflow.spec
        try:
            deadline = state.run_deadline()
        except ManifestError as error:
            self._finish(Phase.ERROR, error.reason)
            return
        if state.terminated:
            state.stopping = KillReason.TERMINATED
        elif deadline is not None and self._now >= deadline:
            state.stopping = KillReason.RUN_DEADLINE
        self._walk.soon(self._enter, spec.entrypoint, state.identity.name, exempt=False)

    def let_in(self) -> None:
        """By now it is known what takes room."""
        for call in self._walk.newcomers or ():
            self._walk.soon(self._walk.begin, call)
        self._walk.newcomers = None

    def _enter(self, name: TemplateName, node_name: str, *, exempt: bool) -> None:
        arguments = self._plan.globals.arguments
        try:
            call = Call(
                caller=None,
                name=node_name,
                template=self._plan.template(name),
                boundary=None,
                parameters={each.name: each.value or "" for each in arguments.parameters},
                artifacts=workflow_artifacts(arguments),
                exempt=exempt,
            )
            self._plan.bind(call.template, call.parameters, call.artifacts)
        except ManifestError as error:
            place = "exit" if exempt else "entry"
            self._finish(Phase.ERROR, f"error in {place} template execution: {error.reason}")
            return
        self._walk.begin(call)

    def top_ended(self, node: Node) -> None:
        """The entry or the exit handler is over."""
        state = self._state
        if state.exit_begun:
            self._finish_after_exit(node)
            return
        if not state.workflow.spec.on_exit:
            self._finish(*self._main_result(node))
            return
        state.exit_begun = True
        phase, _ = self._main_result(node)
        failed = [each for each in state.nodes.values() if each.phase.is_failure and not self._belongs_to_exit(each)]
        ended = node.finished_at or self._now
        self._plan.globals.exiting = Exiting(
            status=phase,
            failures=tuple(sorted(failed, key=lambda each: (each.finished_at or ended, each.id))),
            duration_seconds=(ended - (state.started_at or ended)).total_seconds(),
        )
        self._walk.soon(self._enter, state.workflow.spec.on_exit, exit_name(state.identity.name), exempt=True)

    def _belongs_to_exit(self, node: Node) -> bool:
        return node.name.startswith(exit_name(self._state.identity.name))

    def _finish_after_exit(self, handler: Node) -> None:
        entry = self._state.nodes[self._state.identity.name]
        phase, message = self._main_result(entry)
        if phase is Phase.SUCCEEDED and handler.phase.is_failure:
            phase, message = handler.phase, handler.message
        self._finish(phase, message)

    def _main_result(self, entry: Node) -> tuple[Phase, str]:
        """What the entry node makes of the run (§11), and a termination of it (§15)."""
        if self._state.terminated and (entry.phase.is_failure or self._anything_was_stopped()):
            return Phase.FAILED, KillReason.TERMINATED.value
        if entry.phase.is_failure:
            return entry.phase, entry.message
        return Phase.SUCCEEDED, ""

    def _anything_was_stopped(self) -> bool:
        stopped = KillReason.TERMINATED.value
        return any(node.phase is Phase.FAILED and node.message == stopped for node in self._state.nodes.values())

    def _finish(self, phase: Phase, message: str) -> None:
        self._state.phase = phase
        self._state.message = message
        self._state.finished_at = whole_seconds(self._now)
