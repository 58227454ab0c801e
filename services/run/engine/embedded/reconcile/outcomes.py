"""What the end of a step makes of its node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from services.run.engine.embedded.manifest import Arguments, ContinueOn, Parameter, Template
from services.run.engine.embedded.nodes import Node, NodeArtifact, NodeOutputs, NodeParameter, Phase
from services.run.engine.embedded.reconcile.turn import Collected, StepFinished, exit_message


def finished_node(event: StepFinished, template: Template, node: Node) -> Node:
    """Who is to blame, in the order of §9: a stop from outside, the main process, then what went wrong beside it."""
    phase, message = Phase.SUCCEEDED, ""
    if event.killed is not None:
        phase, message = Phase.FAILED, event.killed.value
    elif event.exit_code is None:
        phase, message = event.error_phase, event.error or "the step did not start"
    elif event.exit_code != 0:
        phase, message = Phase.FAILED, exit_message(event.exit_code, out_of_memory=event.out_of_memory)
    elif event.error is not None:
        phase, message = event.error_phase, event.error
    outputs = _collected_outputs(template.outputs, event)
    return msgspec.structs.replace(node, phase=phase, message=message, outputs=outputs)


def _collected_outputs(declared: Arguments, event: StepFinished) -> NodeOutputs:
    """The declared outputs in the template's order; the log comes last (§9)."""
    found = event.outputs
    artifacts = [
        NodeArtifact(
            name=each.name,
            path=each.path,
            s3=found.artifacts.get(each.name),
            optional=each.optional,
            archive=each.archive,
            global_name=each.global_name,
        )
        for each in declared.artifacts
        if each.name in found.artifacts or each.optional
    ]
    if found.log is not None:
        artifacts.append(NodeArtifact(name="main-logs", s3=found.log, archive_logs=True))
    return NodeOutputs(
        parameters=tuple(_collected_parameters(declared.parameters, found)),
        artifacts=tuple(artifacts),
        result=found.result,
        exit_code=None if event.exit_code is None else str(event.exit_code),
    )


def _collected_parameters(declared: Iterable[Parameter], found: Collected) -> Iterator[NodeParameter]:
    for each in declared:
        value = found.parameters.get(each.name, each.value)
        if value is not None:
            value_from = msgspec.to_builtins(each.value_from) if each.value_from else None
            yield NodeParameter(name=each.name, value=value, value_from=value_from)


def lost_node(_template: Template, node: Node) -> Node:
    return msgspec.structs.replace(node, phase=Phase.ERROR, message="pod deleted")


def continues_on(rule: ContinueOn | None, phase: Phase) -> bool:
    return rule is not None and ((phase is Phase.FAILED and rule.failed) or (phase is Phase.ERROR and rule.error))
