"""The tasks of a DAG and the steps of a Steps template: what they refer to, and the calls they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from services.run.engine.embedded.expr import read, text_of
from services.run.engine.embedded.expression import ExpressionError, evaluate_when
from services.run.engine.embedded.manifest import (
    Arguments,
    ManifestError,
    Parameter,
    Task,
    TaskName,
    TemplateName,
    ValueFrom,
)
from services.run.engine.embedded.nodes import Node, NodeArtifact, NodeInputs, NodeOutputs, NodeParameter, NodeType
from services.run.engine.embedded.plan import Plan, located
from services.run.engine.embedded.reconcile.frames import Call, Caller, Dag, Group, Steps
from services.run.engine.embedded.reconcile.graph import Graph
from services.run.engine.embedded.reconcile.state import State
from services.run.engine.embedded.template import Lookup, expressions, fill, first_of, only_tag
from services.run.engine.embedded.variables import aggregate, inputs_lookup, node_value


class Tasks:
    """What is known of a group's tasks in this turn."""

    def __init__(self, state: State, graph: Graph) -> None:
        self._state = state
        self._plan: Plan = state.plan
        self._graph = graph

    def filled(self, task: Task, group: Group, lookup: Lookup) -> Task:
        """The task after its replacements: globals, inputs, then both again with the outputs of others (§4)."""
        of_call = first_of(inputs_lookup(group.inputs), self._plan.globals)
        return fill(self._plan.filled(task, group.inputs), lookup, of_call)

    def call(
        self,
        group: Dag | Steps,
        task: Task,
        node_name: str,
        caller: Caller,
        links: tuple[str, ...],
        artifacts: Mapping[str, NodeArtifact] | None = None,
    ) -> Call:
        return Call(
            caller=caller,
            name=node_name,
            template=self._plan.template(task.template),
            boundary=group,
            task=task.name,
            parameters=_parameter_arguments(task.arguments, group.inputs),
            artifacts=self.artifacts(group, task) if artifacts is None else artifacts,
            links=links,
            needs_result=self._plan.asks_result(group.call.template, task.name),
            depth=group.call.depth + 1,
            exempt=group.call.exempt,
            # The items of a DAG's loop have none: it is called once, for all of them.
            hook=task.exit_hook if caller is group else None,
        )

    def artifacts(self, group: Group, task: Task) -> dict[str, NodeArtifact]:
        """Where the artifacts lie that a task hands on. Raises ManifestError for one that must be there and is not."""
        found = {}
        for each in task.arguments.artifacts:
            artifact = located(each)
            if each.from_ is not None:
                artifact = self._artifact(group, only_tag(each.from_) or each.from_)
            if artifact is not None and artifact.has_location:
                found[each.name] = artifact
            elif not each.optional:
                raise ManifestError(f'Unable to resolve: "{only_tag(each.from_ or "") or each.from_}"')
        return found

    def _artifact(self, group: Group, name: str) -> NodeArtifact | None:
        kind, _, rest = name.partition(".")
        if kind == "inputs":
            wanted = rest.removeprefix("artifacts.")
            return next((each for each in group.inputs.artifacts if each.name == wanted), None)
        if kind == "workflow":
            return self._plan.globals.exported_artifacts.get(rest.removeprefix("outputs.artifacts."))
        task, _, what = rest.partition(".")
        nodes = self.produced(group, TaskName(task))
        if not nodes or not what.startswith("outputs.artifacts."):
            return None
        outputs = self._graph.effective(nodes[0]).outputs
        return outputs.artifact(what.removeprefix("outputs.artifacts.")) if outputs else None

    def produced(self, group: Group, task: TaskName) -> list[Node]:
        match group:
            case Dag():
                return [self._state.nodes[group.done[task]]] if task in group.done else []
            case Steps():
                ids = group.steps.get(task, [])
                return [self._state.nodes[each] for each in ids if each in self._state.nodes]
            case _:
                return []

    def values(self, group: Dag | Steps) -> Lookup:
        """What the group's tasks gave, by `tasks.T.…` or `steps.S.…`."""
        return partial(self._task_value, group) if isinstance(group, Dag) else partial(self._step_value, group)

    def _task_value(self, dag: Dag, name: str) -> str | None:
        """`tasks.T.…` of a fulfilled task of the DAG."""
        kind, _, rest = name.partition(".")
        task, _, what = rest.partition(".")
        if kind != "tasks" or TaskName(task) not in dag.done:
            return None
        node = self._state.nodes[dag.done[TaskName(task)]]
        if node.type is NodeType.TASK_GROUP and what.startswith("outputs."):
            return self._aggregate(list(self._graph.items(node)), node.template_name, what)
        return node_value(self._graph.effective(node), what)

    def _step_value(self, frame: Steps, name: str) -> str | None:
        """`steps.S.…` of the steps in earlier groups."""
        kind, _, rest = name.partition(".")
        step, _, what = rest.partition(".")
        declared = next((each for each in frame.call.template.tasks if each.name == step), None)
        nodes = self.produced(frame, TaskName(step))
        if kind != "steps" or declared is None or not nodes:
            return None
        if declared.expands and what.startswith("outputs."):
            return self._aggregate(nodes, declared.template, what)
        return node_value(self._graph.effective(nodes[0]), what)

    def _aggregate(self, items: Sequence[Node], template: str, what: str) -> str | None:
        return aggregate(items, self._plan.template(TemplateName(template)).outputs, what)

    def outputs(self, group: Group, scope: Lookup) -> NodeOutputs | None:
        declared = group.call.template.outputs
        lookup = first_of(self._plan.globals, inputs_lookup(group.inputs), scope)
        parameters = tuple(
            NodeParameter(
                name=each.name,
                value=_group_output(each, lookup),
                value_from=msgspec.to_builtins(each.value_from) if each.value_from else None,
            )
            for each in declared.parameters
        )
        artifacts = []
        for each in declared.artifacts:
            name = only_tag(each.from_ or "") or each.from_ or ""
            artifact = self._artifact(group, name)
            if artifact is not None and artifact.has_location:
                artifacts.append(msgspec.structs.replace(artifact, name=each.name))
            elif not each.optional:
                raise ManifestError(f'Unable to resolve: "{name}"')
        if not parameters and not artifacts:
            return None
        return NodeOutputs(parameters=parameters, artifacts=tuple(artifacts))


def reason_to_skip(task: Task) -> str | None:
    """The message of a task whose `when` is false. Raises ExpressionError for one that cannot be read."""
    if not task.when or evaluate_when(task.when):
        return None
    return f"when '{task.when}' evaluated false"


def without_loop(task: Task) -> Task:
    return msgspec.structs.replace(task, with_items=None, with_param=None, with_sequence=None)


def _parameter_arguments(arguments: Arguments, inputs: NodeInputs) -> dict[str, str]:
    return {each.name: each.value for each in arguments.parameters if each.value is not None}


def _group_output(parameter: Parameter, lookup: Lookup) -> str:
    """The value of a DAG's or Steps' output parameter; a text without braces is the value itself."""
    if parameter.value is not None:
        return fill(parameter.value, lookup)
    source = parameter.value_from
    value = None if source is None else _source_value(source, lookup)
    if value is not None:
        return value
    if source is not None and source.default is not None:
        return fill(source.default, lookup)
    raise ManifestError(f"Unable to resolve: {source and (source.expression or source.parameter)}")


def _source_value(source: ValueFrom, lookup: Lookup) -> str | None:
    if source.expression is not None:
        try:
            return text_of(read(source.expression), lookup)
        except ExpressionError as error:
            raise ManifestError(f"failed to evaluate {source.expression}: {error}") from error
    text = source.parameter
    if text is None:
        return None
    tag = only_tag(text)
    if tag is not None:
        return lookup(tag)
    value = fill(text, lookup)
    return None if value == text and any(expressions(text)) else value
