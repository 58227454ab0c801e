"""The values behind the tags: who the run is, what a template was called with, what nodes gave (specification §4).

Each kind of variable is a `template.Lookup`. The lookups compute what is asked for and no more: a task in a long chain
may refer to all its ancestors, and mostly refers to one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from services.run.engine.embedded.loops import compact_json
from services.run.engine.embedded.manifest import Arguments, Spec, Template
from services.run.engine.embedded.nodes import Node, NodeArtifact, NodeInputs, NodeOutputs, Phase, timestamp
from services.run.engine.embedded.template import Lookup, fill


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which run this is. The engine's uid is the run id: pipelines print `{{workflow.uid}}` as such."""

    name: str
    namespace: str
    uid: str
    created_at: datetime
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    service_account: str = ""


class Exiting(msgspec.Struct, frozen=True, kw_only=True):
    """How the main part ended: what the exit handler may ask for."""

    status: Phase
    failures: tuple[Node, ...]
    duration_seconds: float


class Globals:
    """`workflow.…`. Grows by what nodes export under a `globalName`, and by the end of the main part."""

    def __init__(self, identity: Identity, spec: Spec) -> None:
        self._identity = identity
        self._priority = spec.priority
        self.exported_parameters: dict[str, str] = {}
        self.exported_artifacts: dict[str, NodeArtifact] = {}
        self.exiting: Exiting | None = None
        self._parameters = {each.name: each.value or "" for each in spec.arguments.parameters}
        self.arguments = fill(spec.arguments, self)
        """The workflow's own arguments, with the variables in them replaced."""
        self._parameters = {each.name: each.value or "" for each in self.arguments.parameters}

    def __call__(self, name: str) -> str | None:
        if not name.startswith("workflow."):
            return None
        kind, _, rest = name.removeprefix("workflow.").partition(".")
        if kind == "parameters":
            return self._parameters.get(rest) if rest else named_values(self._parameters.items())
        if kind == "outputs":
            return self.exported_parameters.get(rest.removeprefix("parameters."))
        if kind == "labels":
            return self._identity.labels.get(rest)
        if kind == "annotations":
            return self._identity.annotations.get(rest)
        if kind == "creationTimestamp":
            return self._created(rest)
        return self._own(kind) if not rest else None

    def _own(self, name: str) -> str | None:
        match name:
            case "name":
                return self._identity.name
            case "namespace":
                return self._identity.namespace
            case "uid":
                return self._identity.uid
            case "serviceAccountName":
                return self._identity.service_account
            case "priority":
                return None if self._priority is None else str(self._priority)
            case "status":
                return self.exiting.status.value if self.exiting else None
            case "failures":
                return _failures_text(self.exiting.failures) if self.exiting else None
            case "duration":
                return f"{self.exiting.duration_seconds if self.exiting else 0.0:f}"
            case _:
                return None

    def _created(self, part: str) -> str | None:
        moment = self._identity.created_at
        if not part:
            return timestamp(moment)
        if part == "s":
            return str(int(moment.timestamp()))
        return moment.strftime(f"%{part}") if part in _STRFTIME else None


_STRFTIME = frozenset("aAbBcdHIjmMpSUwWxXyYZ")


def _failures_text(failed: Iterable[Node]) -> str:
    """A JSON list inside a JSON string: upstream quotes it once more, and pipelines parse it so."""
    failures = [
        {
            "displayName": node.display_name,
            "message": node.message,
            "templateName": node.template_name,
            "phase": node.phase.value,
            "podName": node.id,
            "finishedAt": timestamp(node.finished_at) if node.finished_at else None,
        }
        for node in failed
    ]
    return json.dumps(json.dumps(failures, separators=(",", ":"), ensure_ascii=False), ensure_ascii=False)


def named_values(pairs: Iterable[tuple[str, str]]) -> str:
    """All parameters as one text: a compact JSON list."""
    return compact_json([{"name": name, "value": value} for name, value in pairs])


def inputs_lookup(inputs: NodeInputs | None) -> Lookup:
    """`inputs.…` of a template that was called with these values."""
    parameters = {each.name: each.value or "" for each in inputs.parameters} if inputs else {}
    artifacts = {each.name: each for each in inputs.artifacts} if inputs else {}

    def look_up(name: str) -> str | None:
        if name == "inputs.parameters":
            return named_values(parameters.items())
        if name.startswith("inputs.parameters."):
            return parameters.get(name.removeprefix("inputs.parameters."))
        if name.startswith("inputs.artifacts.") and name.endswith(".path"):
            artifact = artifacts.get(name.removeprefix("inputs.artifacts.").removesuffix(".path"))
            return artifact.path if artifact else None
        return None

    return look_up


def paths_lookup(template: Template) -> Lookup:
    """`inputs.artifacts.X.path` and the paths of `outputs.…` that a leaf declares."""
    paths = {
        **{f"inputs.artifacts.{each.name}.path": each.path for each in template.inputs.artifacts},
        **{f"outputs.artifacts.{each.name}.path": each.path for each in template.outputs.artifacts},
        **{
            f"outputs.parameters.{each.name}.path": each.value_from.path
            for each in template.outputs.parameters
            if each.value_from is not None
        },
    }
    return paths.get


def node_value(node: Node, rest: str) -> str | None:
    """`tasks.T.<rest>` of one node; a Retry node is given as its last attempt."""
    match rest:
        case "id":
            return node.id
        case "status":
            return node.phase.value
        case "startedAt":
            return timestamp(node.started_at)
        case "finishedAt":
            return timestamp(node.finished_at) if node.finished_at else None
        case _:
            return _output_value(node.outputs, rest) if node.outputs else None


def _output_value(outputs: NodeOutputs, rest: str) -> str | None:
    if rest == "exitCode":
        return outputs.exit_code
    if rest == "outputs.result":
        return outputs.result
    if rest.startswith("outputs.parameters."):
        return outputs.parameter(rest.removeprefix("outputs.parameters."))
    return None


def aggregate(items: Sequence[Node], declared: Arguments, rest: str) -> str | None:
    """`tasks.T.<rest>` of an expanded task: lists over its items, in index order (§8, fan-in)."""
    if rest == "outputs.parameters":
        return compact_json([values for values in map(_output_parameters, items) if values])
    if rest == "outputs.result":
        return compact_json([_parsed(each.outputs.result) for each in items if each.outputs and each.outputs.result])
    if not rest.startswith("outputs.parameters."):
        return None
    name = rest.removeprefix("outputs.parameters.")
    if all(each.name != name for each in declared.parameters):
        return None
    return compact_json([values[name] for values in map(_output_parameters, items) if name in values])


def _output_parameters(node: Node) -> dict[str, str]:
    if node.outputs is None:
        return {}
    return {each.name: each.value for each in node.outputs.parameters if each.value is not None}


def _parsed(result: str) -> Any:
    try:
        return json.loads(result)
    except (ValueError, RecursionError):
        return result
