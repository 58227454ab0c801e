"""Templates with a retry strategy: attempt after attempt."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

import msgspec

from services.run.engine.embedded.durations import spoken_duration
from services.run.engine.embedded.expr import holds
from services.run.engine.embedded.expression import ExpressionError
from services.run.engine.embedded.manifest import RetryStrategy, scalar_text
from services.run.engine.embedded.nodes import Node, NodeInputs, NodeType, Phase, attempt_name, timestamp
from services.run.engine.embedded.reconcile.frames import Call, Retry
from services.run.engine.embedded.reconcile.part import Part
from services.run.engine.embedded.reconcile.turn import KillReason
from services.run.engine.embedded.template import Lookup, first_of
from services.run.engine.embedded.variables import inputs_lookup


class Retries(Part):
    """The Retry nodes of one turn."""

    def open(self, call: Call, inputs: NodeInputs, strategy: RetryStrategy) -> None:
        rule = self._plan.retry_rule(strategy, inputs)
        node = self._graph.find_or_create(call, NodeType.RETRY, inputs)
        frame = Retry(call=call, node_id=node.id, rule=rule, inputs=inputs)
        self._state.frames[node.id] = frame
        while self._graph.id_of(attempt_name(call.name, frame.attempts + 1)) in self._state.nodes:
            frame.attempts += 1  # After a restart: the last attempt goes on at once, not after another wait.
        self._begin_attempt(frame)

    def next_attempt(self, frame: Retry) -> None:
        frame.wait_until = None
        frame.attempts += 1
        self._graph.put(msgspec.structs.replace(self._state.nodes[frame.node_id], message=""))
        self._begin_attempt(frame)

    def _begin_attempt(self, frame: Retry) -> None:
        """Attempt number `attempts`, counted from 0; earlier ones are over."""
        call = frame.call
        self._walk.begin(
            Call(
                caller=frame,
                name=attempt_name(call.name, frame.attempts),
                template=call.template,
                boundary=call.boundary,
                parameters={each.name: each.value or "" for each in frame.inputs.parameters},
                artifacts={each.name: each for each in frame.inputs.artifacts if each.has_location},
                links=(frame.node_id,),
                needs_result=call.needs_result,
                depth=call.depth,
                exempt=call.exempt,
                attempt=frame.attempts,
            )
        )

    def attempt_done(self, frame: Retry, attempt_id: str) -> None:
        attempt = self._state.nodes[attempt_id]
        if not attempt.phase.is_failure:
            node = self._state.nodes[frame.node_id]
            self._walk.fulfil(
                frame, msgspec.structs.replace(node, phase=attempt.phase, message="", outputs=attempt.outputs)
            )
            return
        if self._walk.stopping(frame.call) is not None:
            self.give_up(frame)
            return
        try:
            verdict = self._retry_verdict(frame, attempt)
        except ExpressionError as error:
            self._walk.end(frame, Phase.ERROR, f"retryStrategy.expression: {error}", outputs=attempt.outputs)
            return
        if isinstance(verdict, str):
            self._walk.end(frame, attempt.phase, verdict, outputs=attempt.outputs)
            return
        if verdict <= self._now:
            self.next_attempt(frame)
            return
        frame.wait_until = verdict
        self._state.set_timer(verdict, frame.node_id)
        node = self._state.nodes[frame.node_id]
        wait = math.ceil((verdict - self._now).total_seconds())
        self._graph.put(msgspec.structs.replace(node, message=f"Backoff for {spoken_duration(wait)}"))

    def _retry_verdict(self, frame: Retry, attempt: Node) -> str | datetime:
        """When the next attempt begins, or why there is none (§10)."""
        rule = frame.rule
        # An attempt of type Skipped was never executed: the next one would be refused for the same reason.
        if attempt.type is NodeType.SKIPPED or not _policy_matches(rule.policy, attempt):
            return attempt.message
        if rule.expression and not holds(rule.expression, self._attempt_values(frame, attempt)):
            return "retryStrategy.expression evaluated to false"
        if rule.limit is not None and frame.attempts >= rule.limit:
            return "No more retries left"
        if rule.wait_seconds is None:
            return self._now
        ended = self._now
        if attempt.finished_at is not None and self._now - attempt.finished_at > timedelta(seconds=1):
            ended = attempt.finished_at + timedelta(seconds=1)  # Found after a restart; rounded up, as it was cut off.
        last = self.max_duration_end(frame)
        if last is not None and self._now >= last:
            return "Max duration limit exceeded"
        begins = ended + timedelta(seconds=rule.wait_seconds_after(frame.attempts))
        if last is not None and begins > last:
            return "Backoff would exceed max duration limit"
        return begins

    def _attempt_values(self, frame: Retry, attempt: Node) -> Lookup:
        """What the strategy's expression may ask for."""
        exit_code = attempt.outputs.exit_code if attempt.outputs else None
        seconds = ((attempt.finished_at or self._now) - attempt.started_at).total_seconds()
        own = {
            "retries": str(frame.attempts),
            "lastRetry.status": attempt.phase.value,
            "lastRetry.exitCode": exit_code or "-1",
            "lastRetry.message": attempt.message,
            "lastRetry.duration": scalar_text(seconds),
        }
        return first_of(own.get, inputs_lookup(frame.inputs), self._plan.globals)

    def max_duration_end(self, frame: Retry) -> datetime | None:
        if frame.rule.longest_seconds is None:
            return None
        first = self._state.nodes.get(self._graph.id_of(attempt_name(frame.call.name, 0)))
        begun = first.started_at if first else self._now
        return begun + timedelta(seconds=frame.rule.longest_seconds)

    def give_up(self, frame: Retry) -> None:
        """The run ends: phase of the last attempt, and no new one."""
        last = self._state.nodes[self._graph.id_of(attempt_name(frame.call.name, frame.attempts))]
        message = last.message
        deadline = self._state.run_deadline()
        if self._state.stopping is KillReason.RUN_DEADLINE and deadline is not None:
            message = f"retry exceeded workflow deadline {timestamp(deadline)}"
        self._walk.end(frame, last.phase, message, outputs=last.outputs)


_TRANSIENT = re.compile(r"timed? ?out|connection (reset|refused)|temporarily unavailable|too many requests", re.I)


def _policy_matches(policy: str, attempt: Node) -> bool:
    match policy:
        case "Always":
            return True
        case "OnError":
            return attempt.phase is Phase.ERROR
        case "OnTransientError":
            return _TRANSIENT.search(attempt.message) is not None
        case _:
            return attempt.phase is Phase.FAILED
