"""What is refused before anything is stored: workflows that mean nothing, and features this engine does not have.

`validate` is for the creation of a run, after the manifest got its arguments; `refuse_unsupported`, which comes before,
for the creation of a run on the embedded engine. Both raise ManifestError with a reason that names template and task
(specification §13). Neither looks at anything but the manifest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from services.run.engine.embedded import expr
from services.run.engine.embedded.durations import duration_seconds
from services.run.engine.embedded.expression import ExpressionError, parse_depends
from services.run.engine.embedded.machine import Machine
from services.run.engine.embedded.manifest import (
    Arguments,
    Artifact,
    Backoff,
    Container,
    HttpHeader,
    ManifestError,
    Parameter,
    RetryStrategy,
    Spec,
    Task,
    TaskName,
    Template,
    TemplateName,
    Volume,
    Workflow,
    type_names,
)
from services.run.engine.embedded.orders import Process, compression_level
from services.run.engine.embedded.paths import PathError, read_jq_path, read_json_path
from services.run.engine.embedded.plan import condition_of, limited, patched, read_factor
from services.run.engine.embedded.template import blanked, expressions, tags
from shared import go_yaml


def validate(workflow: Workflow) -> None:
    """Refuse what could not run. The manifest is the one of the run: arguments without value are empty texts by now."""
    spec = workflow.spec
    if not spec.entrypoint:
        raise ManifestError("spec.entrypoint is required")
    for each in spec.arguments.parameters:
        if each.value is None and each.value_from is None:
            raise ManifestError(f"spec.arguments.{each.name}.value is required")
    _check_names("spec.arguments.parameters", spec.arguments.parameters)
    _check_names("spec.arguments.artifacts", spec.arguments.artifacts)
    _check_seconds("spec.activeDeadlineSeconds", spec.active_deadline_seconds)
    _check_retry("spec", spec.retry_strategy)
    _check_patch("spec", spec.pod_spec_patch)
    _check_parallelism("spec", spec.parallelism)
    _check_claims(spec)
    templates = _templates(workflow)
    called = [name for name in (spec.entrypoint, spec.on_exit) if name]
    for name in called:
        if name not in templates:
            raise ManifestError(f"template name '{name}' undefined")
    if spec.on_exit:
        _check_hook_name("spec.onExit", templates[spec.entrypoint])
    known = _Known(workflow, templates)
    for template in templates.values():
        _check_template(template, known)
    for name in called:
        _check_supplied(f"templates.{name}", templates[name], spec.arguments)


def _check_claims(spec: Spec) -> None:
    taken = {each.name for each in spec.volumes}
    for index, claim in enumerate(spec.volume_claim_templates):
        place, name = f"spec.volumeClaimTemplates[{index}].metadata.name", claim.metadata.name
        if not _OBJECT_NAME.fullmatch(name):
            raise ManifestError(f"{place}: '{name}' is invalid: {_OBJECT_NAME_RULE}")
        if name in taken:
            raise ManifestError(f"{place} '{name}' is not unique")
        taken.add(name)


def _templates(workflow: Workflow) -> dict[TemplateName, Template]:
    found: dict[TemplateName, Template] = {}
    for index, template in enumerate(workflow.spec.templates):
        if not template.name:
            raise ManifestError(f"templates[{index}].name is required")
        if not _LONG_NAME.fullmatch(template.name) or len(template.name) > 128:
            raise ManifestError(f"templates[{index}].name: '{template.name}' is invalid: {_LONG_NAME_RULE}")
        if template.name in found:
            raise ManifestError(f"templates[{index}].name '{template.name}' is not unique")
        found[template.name] = template
    return found


# -- names -------------------------------------------------------------------------------------------------------------

_SHORT_NAME = re.compile(r"[-a-zA-Z0-9_]+")
_SHORT_NAME_RULE = "name must consist of alpha-numeric characters, '_' or '-'"
_LONG_NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]*")
_LONG_NAME_RULE = "name must consist of alpha-numeric characters or '-', and must start with an alpha-numeric character"


_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OBJECT_NAME_RULE = "name must consist of lower case alpha-numeric characters or '-'"


def _check_names(place: str, named: Iterable[Parameter | Artifact]) -> None:
    seen = set()
    for index, each in enumerate(named):
        if not each.name:
            raise ManifestError(f"{place}[{index}].name is required")
        if not _SHORT_NAME.fullmatch(each.name):
            raise ManifestError(f"{place}[{index}].name: '{each.name}' is invalid: {_SHORT_NAME_RULE}")
        if each.name in seen:
            raise ManifestError(f"{place}[{index}].name '{each.name}' is not unique")
        seen.add(each.name)


def _check_task_names(place: str, tasks: Iterable[Task]) -> None:
    seen = set()
    for index, task in enumerate(tasks):
        if not task.name:
            raise ManifestError(f"{place}[{index}].name is required")
        if not _LONG_NAME.fullmatch(task.name) or len(task.name) > 128:
            raise ManifestError(f"{place}[{index}].name: '{task.name}' is invalid: {_LONG_NAME_RULE}")
        if task.name in seen:
            raise ManifestError(f"{place}[{index}].name '{task.name}' is not unique")
        seen.add(task.name)


# -- variables ---------------------------------------------------------------------------------------------------------

_CHECKED = ("item.", "steps.", "inputs.", "outputs.", "pod.", "workflow.", "tasks.")
"""Only tags that begin so are ours to know; anything else merely looks like a tag (§4)."""

_PLAIN_GLOBALS = frozenset(
    {
        "workflow.name",
        "workflow.namespace",
        "workflow.uid",
        "workflow.serviceAccountName",
        "workflow.parameters",
        "workflow.creationTimestamp",
        "workflow.duration",
        "workflow.priority",
    }
)
_EXIT_GLOBALS = frozenset({"workflow.status", "workflow.failures"})
_NODE_VALUES = frozenset({"id", "ip", "status", "startedAt", "finishedAt", "exitCode", "outputs.parameters"})


class _Known:
    """What the whole workflow declares."""

    def __init__(self, workflow: Workflow, templates: Mapping[TemplateName, Template]) -> None:
        self.templates = templates
        self.arguments = workflow.spec.arguments
        spec = workflow.spec
        self.volumes = {each.name for each in spec.volumes} | {
            each.metadata.name for each in spec.volume_claim_templates
        }
        self._parameters = {each.name for each in self.arguments.parameters}
        self._exported = {
            f"workflow.outputs.{kind}.{each.global_name}"
            for template in templates.values()
            for kind, outputs in (
                ("parameters", template.outputs.parameters),
                ("artifacts", template.outputs.artifacts),
            )
            for each in outputs
            if each.global_name
        }
        self._at_exit = set(_reachable(workflow.spec.on_exit, templates))

    def has_global(self, name: str, template: Template) -> bool:
        if name in _EXIT_GLOBALS:
            return template.name in self._at_exit
        if name in _PLAIN_GLOBALS or name in self._exported:
            return True
        if name.startswith("workflow.parameters."):
            return name.removeprefix("workflow.parameters.") in self._parameters
        return name.startswith(("workflow.labels.", "workflow.annotations.", "workflow.creationTimestamp."))


def _reachable(start: TemplateName, templates: Mapping[TemplateName, Template]) -> Iterator[TemplateName]:
    open_, seen = [start], set()
    while open_:
        name = open_.pop()
        if name in templates and name not in seen:
            seen.add(name)
            yield name
            tasks = templates[name].tasks
            open_.extend(task.template for task in tasks)
            open_.extend(task.exit_hook.template for task in tasks if task.exit_hook is not None)


def _check_tags(place: str, value: object, is_known: Callable[[str], bool]) -> None:
    for name in tags(value):
        if name.startswith(_CHECKED) and not is_known(name):
            raise ManifestError(f"{place} failed to resolve {{{{{name}}}}}")


def _input_names(template: Template) -> set[str]:
    names = {"inputs.parameters"}
    names.update(f"inputs.parameters.{each.name}" for each in template.inputs.parameters)
    for each in template.inputs.artifacts:
        names.update((f"inputs.artifacts.{each.name}", f"inputs.artifacts.{each.name}.path"))
    return names


def _leaf_names(template: Template) -> set[str]:
    names = {*_input_names(template), "pod.name"}
    names.update(f"outputs.artifacts.{each.name}.path" for each in template.outputs.artifacts)
    names.update(f"outputs.parameters.{each.name}.path" for each in template.outputs.parameters)
    return names


def _produces(template: Template, what: str) -> bool:
    """Whether `tasks.T.<what>` can have a value, T being a task that calls this template."""
    if what in _NODE_VALUES:
        return True
    if what == "outputs.result":
        return not template.is_group
    if what.startswith("outputs.parameters."):
        return _declares(template.outputs.parameters, what.removeprefix("outputs.parameters."))
    if what.startswith("outputs.artifacts."):
        return _declares(template.outputs.artifacts, what.removeprefix("outputs.artifacts."))
    return False


def _declares(outputs: Iterable[Parameter | Artifact], name: str) -> bool:
    return any(each.name == name for each in outputs)


# -- templates ---------------------------------------------------------------------------------------------------------


def _check_template(template: Template, known: _Known) -> None:
    place = f"templates.{template.name}"
    _check_kind(place, template)
    for what, arguments in (("inputs", template.inputs), ("outputs", template.outputs)):
        _check_names(f"{place}.{what}.parameters", arguments.parameters)
        _check_names(f"{place}.{what}.artifacts", arguments.artifacts)
    _check_retry(place, template.retry_strategy)
    _check_seconds(f"{place}.activeDeadlineSeconds", template.active_deadline_seconds)
    _check_parallelism(place, template.parallelism)
    if template.dag is not None:
        _check_dag(place, template, known)
    elif template.steps is not None:
        _check_steps(place, template, known)
    else:
        _check_leaf(place, template, known)


_OTHER_KINDS = ("container_set", "data", "http", "plugin")
"""Template kinds of other engines."""


def _kinds(template: Template) -> list[str]:
    return [kind for kind in (*type_names, *_OTHER_KINDS) if getattr(template, kind) is not None]


def _check_kind(place: str, template: Template) -> None:
    kinds = _kinds(template)
    if not kinds and template.template_ref is None:
        raise ManifestError(f"{place} template type unspecified. choose one of: {', '.join(type_names)}")
    if len(kinds) > 1:
        raise ManifestError(f"{place} multiple template types specified. choose one of: {', '.join(kinds)}")


def _check_retry(place: str, strategy: RetryStrategy | None) -> None:
    if strategy is None:
        return
    policies = ("", "Always", "OnFailure", "OnError", "OnTransientError")
    if strategy.retry_policy not in policies:
        raise ManifestError(f"{place}.retryStrategy.retryPolicy '{strategy.retry_policy}' is not a valid RetryPolicy")
    if strategy.limit is not None and "{{" not in strategy.limit and not re.fullmatch(r"\d+", strategy.limit):
        raise ManifestError(f"{place}.retryStrategy.limit '{strategy.limit}' must be an integer >= 0")
    if strategy.expression:
        _check_expression(f"{place}.retryStrategy.expression", strategy.expression, _is_known_of_attempt)
    if strategy.backoff is not None:
        _check_backoff(f"{place}.retryStrategy.backoff", strategy.backoff)


def _check_backoff(place: str, backoff: Backoff) -> None:
    _check_number(f"{place}.duration", backoff.duration, duration_seconds)
    _check_number(f"{place}.factor", backoff.factor or "1", read_factor)
    _check_number(f"{place}.maxDuration", backoff.max_duration or "0", duration_seconds)


_OF_ATTEMPT = frozenset({"retries", *(f"lastRetry.{each}" for each in ("status", "exitCode", "message", "duration"))})


def _is_known_of_attempt(name: str) -> bool:
    return name in _OF_ATTEMPT or name.startswith(("inputs.", "workflow."))


def _check_expression(place: str, text: str, is_known: Callable[[str], bool]) -> None:
    """One with placeholders can be read only after their replacement."""
    if "{{" in text:
        return
    try:
        names = expr.read(text).names
    except ExpressionError as error:
        raise ManifestError(f"{place} '{text}' is invalid: {error}") from error
    for name in names:
        if not is_known(name):
            raise ManifestError(f"{place} failed to resolve {name}")


def _check_number(place: str, text: str, read: Callable[[str], float]) -> None:
    if "{{" not in text:
        try:
            read(text)
        except ManifestError as error:
            raise ManifestError(f"{place} {error}") from error


def _check_seconds(place: str, text: str | None) -> None:
    if text is not None and "{{" not in text and not re.fullmatch(r"\d+", text):
        raise ManifestError(f"{place} must be a positive integer >= 0 or an argument placeholder")


def _check_parallelism(place: str, limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise ManifestError(f"{place}.parallelism must be an integer >= 0")


def _check_leaf(place: str, template: Template, known: _Known) -> None:
    for where, container in _containers(template):
        if not container.image:
            raise ManifestError(f"{place}.{where}.image may not be empty")
        _check_limits(f"{place}.{where}", container.resources.limits)
    if template.resource is not None:
        _check_resource(place, template)
    if template.suspend is not None and template.suspend.duration is not None:
        _check_number(f"{place}.suspend.duration", template.suspend.duration, duration_seconds)
    _check_patch(place, template.pod_spec_patch)
    _check_paths(place, template)
    _check_volumes(place, template, known)
    _check_leaf_outputs(place, template)
    names = _leaf_names(template)
    _check_tags(place, template, lambda name: name in names or known.has_global(name, template))


def _check_resource(place: str, template: Template) -> None:
    resource = template.resource
    assert resource is not None
    actions = ("get", "create", "apply", "delete", "replace", "patch")
    if resource.action not in actions and "{{" not in resource.action:
        raise ManifestError(f"{place}.resource.action must be one of {', '.join(actions)}")
    if not resource.manifest and resource.action not in {"get", "delete"}:
        raise ManifestError(f"{place}.resource.manifest must be specified")
    try:
        described = _resource_object(resource.manifest)
    except go_yaml.NotYaml as error:
        raise ManifestError(f"{place}.resource.manifest must be a valid yaml: {error}") from error
    if described is None:
        return
    if not isinstance(described, dict):
        raise ManifestError(f"{place}.resource.manifest must be a valid yaml mapping")
    metadata = described.get("metadata")
    if not isinstance(metadata, dict) or not (metadata.get("name") or metadata.get("generateName")):
        raise ManifestError(f"{place}.resource.manifest must name its object: metadata.name or generateName is missing")


def _resource_object(manifest: str) -> Any:
    """The object of a resource template, placeholders filled with something that is a value anywhere in YAML."""
    return go_yaml.load(blanked(manifest, "x"), only=True)


def _check_patch(place: str, patch: str) -> None:
    """One with placeholders is JSON only after their replacement."""
    if "{{" not in patch:
        try:
            patched(Process(name="main"), patch)
        except ManifestError as error:
            raise ManifestError(f"{place}.{error}") from error


def _check_limits(place: str, limits: Mapping[str, str]) -> None:
    """Those with placeholders are amounts only after their replacement."""
    try:
        limited(Process(name="main"), {name: text for name, text in limits.items() if "{{" not in text})
    except ManifestError as error:
        raise ManifestError(f"{place}.{error}") from error


def _containers(template: Template) -> Iterator[tuple[str, Container]]:
    """Every container of a leaf with its place in the template, the main one first."""
    if template.container is not None:
        yield "container", template.container
    if template.script is not None:
        yield "script", template.script
    yield from ((f"initContainers.{each.name}", each) for each in template.init_containers)
    yield from ((f"sidecars.{each.name}", each) for each in template.sidecars)


def _check_paths(place: str, template: Template) -> None:
    """Input artifacts and main's mounts share their paths; each other container has its own."""
    inputs = [(each.path, f"inputs.artifacts.{each.name}.path") for each in template.inputs.artifacts]
    _check_free(place, inputs)
    for where, container in _containers(template):
        mounts = [(each.mount_path, f"{where}.volumeMounts.{each.name}") for each in container.volume_mounts]
        _check_free(place, [*inputs, *mounts] if where in ("container", "script") else mounts)


def _check_free(place: str, paths: Iterable[tuple[str | None, str]]) -> None:
    taken: dict[str, str] = {}
    for path, what in paths:
        if not path:
            raise ManifestError(f"{place}.{what} is required")
        other = taken.setdefault(path.rstrip("/"), what)
        if other is not what:
            raise ManifestError(f"{place}.{what} '{path}' already mounted in {other}")


def _check_volumes(place: str, template: Template, known: _Known) -> None:
    declared = {each.name for each in template.volumes} | known.volumes
    if any("{{" in name for name in declared):
        return
    for where, container in _containers(template):
        for mount in container.volume_mounts:
            if mount.name not in declared and "{{" not in mount.name:
                raise ManifestError(f"{place}.{where}.volumeMounts.{mount.name} volume '{mount.name}' not found")


def _check_leaf_outputs(place: str, template: Template) -> None:
    kind = next(iter(_kinds(template)), "referenced")
    for artifact in template.outputs.artifacts:
        if not artifact.path:
            raise ManifestError(
                f"{place}.outputs.artifacts.{artifact.name}.path must be specified for {kind} templates"
            )
        try:
            compression_level(artifact.archive)
        except ValueError as error:
            raise ManifestError(f"{place}.outputs.artifacts.{artifact.name}.{error}") from error
    for parameter in template.outputs.parameters:
        where = f"{place}.outputs.parameters.{parameter.name}"
        source = parameter.value_from
        if source is None:
            if parameter.value is None:
                raise ManifestError(f"{where}.valueFrom type unspecified")
            continue
        others = (source.expression, source.supplied, source.event, source.config_map_key_ref)
        if any(each is not None for each in others):
            continue
        if template.resource is not None:
            if source.json_path is None and source.jq_filter is None:
                raise ManifestError(f"{where}.valueFrom.jsonPath or jqFilter must be specified for resource templates")
        elif source.path is None:
            raise ManifestError(f"{where}.valueFrom.path must be specified for {kind} templates")


# -- groups ------------------------------------------------------------------------------------------------------------


def _check_dag(place: str, template: Template, known: _Known) -> None:
    assert template.dag is not None
    tasks = template.dag.tasks
    if not tasks:
        raise ManifestError(f"{place} must have at least one task")
    _check_task_names(f"{place}.tasks", tasks)
    by_name = {task.name: task for task in tasks}
    needs = _dependencies(place, tasks, by_name)
    _check_acyclic(place, needs)
    for name in template.dag.target.split():
        if name not in by_name:
            raise ManifestError(f"{place}.targets target '{name}' is not defined")
    callees = {task.name: _callee(f"{place}.tasks.{task.name}", task, known) for task in tasks}
    names = _input_names(template)
    for task in tasks:
        where = f"{place}.tasks.{task.name}"
        ancestors = _Ancestors(task.name, needs)
        _check_task(where, task, callees[task.name])
        _check_argument_dependencies(where, task, callees, ancestors)

        def is_known(name: str, task: Task = task, ancestors: _Ancestors = ancestors) -> bool:
            if name.startswith("item."):
                return task.expands
            if name.startswith("tasks."):
                other, _, what = name.removeprefix("tasks.").partition(".")
                return TaskName(other) in ancestors and _produces(callees[TaskName(other)], what)
            return name in names or known.has_global(name, template)

        _check_tags(where, _without_hooks(task), is_known)
        _check_hook(where, task, known, _or_own_output("tasks.", task, callees[task.name], is_known))
    _check_group_outputs(place, template, "tasks.", callees, names, known)


def _dependencies(
    place: str, tasks: Iterable[Task], by_name: Mapping[TaskName, Task]
) -> dict[TaskName, tuple[TaskName, ...]]:
    uses_depends = any(task.depends for task in tasks)
    needs = {}
    for task in tasks:
        where = f"{place}.tasks.{task.name}"
        if uses_depends and task.dependencies:
            raise ManifestError(f"{place} cannot use both 'depends' and 'dependencies' in the same DAG template")
        if uses_depends and task.continue_on is not None:
            raise ManifestError(f"{place} cannot use 'continueOn' when using 'depends'. Instead use 'dep-task.Failed'")
        try:
            condition = condition_of(task, by_name)
            asked = parse_depends(task.depends).asks_for_items if task.depends else ()
        except (ManifestError, ExpressionError) as error:
            raise ManifestError(f"{where} {error}") from error
        for name in asked:
            if not by_name[TaskName(name)].expands:
                raise ManifestError(f"{where} depends on '{name}', which does not expand: AnySucceeded and AllFailed")
        needs[task.name] = tuple(map(TaskName, condition.names)) if condition else ()
    for name in needs:
        if name[0].isdigit() and any(needs.values()):
            raise ManifestError(f"{place}.tasks.{name} name cannot begin with a digit when using dependencies")
    return needs


def _check_acyclic(place: str, needs: Mapping[TaskName, tuple[TaskName, ...]]) -> None:
    done: set[TaskName] = set()
    for start in needs:
        path: dict[TaskName, Iterator[TaskName]] = {}
        if start not in done:
            path[start] = iter(needs[start])
        while path:
            name = next(reversed(path))
            following = next((each for each in path[name] if each not in done), None)
            if following is None:
                path.popitem()
                done.add(name)
            elif following in path:
                cycle = [*list(path)[list(path).index(following) :], following]
                raise ManifestError(f"{place} dependency cycle detected: {'->'.join(cycle)}")
            else:
                path[following] = iter(needs[following])


class _Ancestors:
    """The transitive dependencies of a task, found out when first asked for: most tasks name direct ones only."""

    def __init__(self, task: TaskName, needs: Mapping[TaskName, tuple[TaskName, ...]]) -> None:
        self._direct = needs[task]
        self._needs = needs
        self._all: set[TaskName] | None = None

    def __contains__(self, name: TaskName) -> bool:
        if name in self._direct:
            return True
        if self._all is None:
            self._all = set()
            open_ = list(self._direct)
            while open_:
                each = open_.pop()
                if each not in self._all:
                    self._all.add(each)
                    open_.extend(self._needs[each])
        return name in self._all


def _check_argument_dependencies(
    where: str, task: Task, callees: Mapping[TaskName, Template], ancestors: _Ancestors
) -> None:
    arguments: tuple[Parameter | Artifact, ...] = (*task.arguments.parameters, *task.arguments.artifacts)
    for each in arguments:
        kind = "parameter" if isinstance(each, Parameter) else "artifact"
        for name in tags(each):
            other = TaskName(name.removeprefix("tasks.").partition(".")[0])
            if name.startswith("tasks.") and other in callees and other not in ancestors:
                raise ManifestError(f"{where} missing dependency '{other}' for {kind} '{each.name}'")


def _check_steps(place: str, template: Template, known: _Known) -> None:
    assert template.steps is not None
    if not any(template.steps):
        raise ManifestError(f"{place} must have at least one step")
    _check_task_names(f"{place}.steps", template.tasks)
    names = _input_names(template)
    earlier: dict[TaskName, Template] = {}
    for index, group in enumerate(template.steps):
        if not group:
            raise ManifestError(f"{place}.steps[{index}] must have at least one step")
        for step in group:
            where = f"{place}.steps[{index}].{step.name}"
            _check_task(where, step, _callee(where, step, known))

            def is_known(name: str, step: Task = step) -> bool:
                if name.startswith("item."):
                    return step.expands
                if name.startswith("steps."):
                    return _is_output_of(earlier, name.removeprefix("steps."))
                return name in names or known.has_global(name, template)

            _check_tags(where, _without_hooks(step), is_known)
            _check_hook(where, step, known, _or_own_output("steps.", step, known.templates[step.template], is_known))
        earlier.update((step.name, known.templates[step.template]) for step in group)
    _check_group_outputs(place, template, "steps.", earlier, names, known)


def _is_output_of(callees: Mapping[TaskName, Template], name: str) -> bool:
    task, _, what = name.partition(".")
    return TaskName(task) in callees and _produces(callees[TaskName(task)], what)


def _callee(where: str, task: Task, known: _Known) -> Template:
    if task.template_ref is not None or task.inline is not None:
        return Template()  # Refused by name, by the engine that does not know it.
    if not task.template:
        raise ManifestError(f"{where}.template is required")
    if task.template not in known.templates:
        raise ManifestError(f"{where} template name '{task.template}' undefined")
    return known.templates[task.template]


def _check_task(where: str, task: Task, callee: Template) -> None:
    _check_names(f"{where}.arguments.parameters", task.arguments.parameters)
    _check_names(f"{where}.arguments.artifacts", task.arguments.artifacts)
    loops = [each for each in (task.with_items, task.with_param, task.with_sequence) if each is not None]
    if len(loops) > 1:
        raise ManifestError(f"{where} only one of withItems, withParam, withSequence can be specified")
    _check_sequence(where, task)
    _check_supplied(where, callee, task.arguments)


def _without_hooks(task: Task) -> Task:
    return msgspec.structs.replace(task, hooks={})


def _or_own_output(prefix: str, task: Task, callee: Template, is_known: Callable[[str], bool]) -> Callable[[str], bool]:
    """A hook is called when its task is over, so it may ask for what that gave."""
    own = f"{prefix}{task.name}."

    def is_known_to_hook(name: str) -> bool:
        return _produces(callee, name.removeprefix(own)) if name.startswith(own) else is_known(name)

    return is_known_to_hook


def _check_hook(where: str, task: Task, known: _Known, is_known: Callable[[str], bool]) -> None:
    hook = task.exit_hook
    if hook is None or hook.template_ref is not None or task.template_ref is not None or task.inline is not None:
        return
    place = f"{where}.onExit" if task.on_exit else f"{where}.hooks.exit"
    if hook.template not in known.templates:
        raise ManifestError(f"{place} template name '{hook.template}' undefined")
    _check_hook_name(place, known.templates[task.template])
    _check_names(f"{place}.arguments.parameters", hook.arguments.parameters)
    _check_names(f"{place}.arguments.artifacts", hook.arguments.artifacts)
    has_own = hook.arguments.parameters or hook.arguments.artifacts
    _check_supplied(place, known.templates[hook.template], hook.arguments if has_own else known.arguments)
    _check_tags(place, hook, is_known)
    if hook.expression:
        _check_expression(f"{place}.expression", hook.expression, is_known)


def _check_hook_name(place: str, callee: Template) -> None:
    """A node has one name: the hook of a DAG cannot share it with a task in there."""
    if callee.dag is not None and any(task.name == "onExit" for task in callee.dag.tasks):
        raise ManifestError(f"{place} has the name of task 'onExit' of template '{callee.name}'")


def _check_sequence(where: str, task: Task) -> None:
    sequence = task.with_sequence
    if sequence is None:
        return
    if sequence.count is not None and sequence.end is not None:
        raise ManifestError(f"{where} only one of count or end can be defined in withSequence")
    if sequence.count is None and sequence.end is None:
        raise ManifestError(f"{where} must define count or end in withSequence")


def _check_supplied(where: str, callee: Template, arguments: Arguments) -> None:
    """The arguments cover what the callee needs; whether a value is there is another question."""
    given = {each.name for each in arguments.parameters}
    for parameter in callee.inputs.parameters:
        if parameter.name not in given and parameter.value is None and parameter.default is None:
            raise ManifestError(f"{where} inputs.parameters.{parameter.name} was not supplied")
    given = {each.name for each in arguments.artifacts}
    for artifact in callee.inputs.artifacts:
        if not (artifact.name in given or artifact.optional or _has_fixed_location(artifact)):
            raise ManifestError(f"{where} inputs.artifacts.{artifact.name} was not supplied")


def _has_fixed_location(artifact: Artifact) -> bool:
    return any(getattr(artifact, kind) is not None for kind in ("raw", "s3", *_FOREIGN_STORES))


def _check_group_outputs(
    place: str,
    template: Template,
    prefix: str,
    callees: Mapping[TaskName, Template],
    names: set[str],
    known: _Known,
) -> None:
    for parameter in template.outputs.parameters:
        source = parameter.value_from
        if parameter.value is None and (source is None or (source.parameter is None and source.expression is None)):
            where = f"{place}.outputs.parameters.{parameter.name}"
            raise ManifestError(f"{where}.valueFrom.parameter or expression must be specified for group templates")
    for artifact in template.outputs.artifacts:
        if artifact.from_ is None and artifact.from_expression is None:
            raise ManifestError(f"{place}.outputs.artifacts.{artifact.name}.from must be specified for group templates")

    def is_known(name: str) -> bool:
        if name.startswith(prefix):
            return _is_output_of(callees, name.removeprefix(prefix))
        return name in names or known.has_global(name, template)

    _check_tags(f"{place}.outputs", template.outputs, is_known)
    for parameter in template.outputs.parameters:
        if parameter.value_from is not None and parameter.value_from.expression is not None:
            where = f"{place}.outputs.parameters.{parameter.name}.valueFrom.expression"
            _check_expression(where, parameter.value_from.expression, is_known)


# -- features of other engines -----------------------------------------------------------------------------------------

_REFUSED = "is not supported by the local engine"
_BARE = Machine()
_RESOURCE_KINDS = frozenset({"PersistentVolumeClaim", "VolumeSnapshot", "Secret", "ConfigMap"})


def refuse_unsupported(workflow: Workflow, machine: Machine = _BARE) -> None:
    """Refuse by name what the embedded engine does not run, instead of ignoring it."""
    for feature in _unsupported_in_spec(workflow):
        raise ManifestError(f"{feature} {_REFUSED}")
    for volume in workflow.spec.volumes:
        _refuse_host_path("", volume, machine)
    for template in workflow.spec.templates:
        for feature in _unsupported_in_template(template):
            raise ManifestError(f"templates.{template.name} {feature} {_REFUSED}")
        for volume in template.volumes:
            _refuse_host_path(f"templates.{template.name} ", volume, machine)
        for where, container in _containers(template):
            place = f"templates.{template.name}.{where}"
            if not (container.command or machine.runs_images or machine.entrypoint(container.image)):
                raise ManifestError(f"{place} image entrypoint unknown: {container.image}")


def _refuse_host_path(place: str, volume: Volume, machine: Machine) -> None:
    if volume.host_path is None:
        return
    if not machine.host_paths:
        raise ManifestError(f"{place}volume '{volume.name}' of type hostPath {_REFUSED}")
    path = volume.host_path.path
    if "{{" not in path and machine.host_directory(path) is None:  # The others are looked at when they are known.
        raise ManifestError(f"{place}volume '{volume.name}': {path} is no host path that HEADRACE_HOST_PATHS allows")


def _unsupported_in_spec(workflow: Workflow) -> Iterator[str]:
    spec = workflow.spec
    fields = {
        "workflowTemplateRef": spec.workflow_template_ref,
        "synchronization": spec.synchronization,
        "hooks": spec.hooks,
        "shutdown": spec.shutdown,
        "suspend": spec.suspend,
    }
    yield from (f"spec.{name}" for name, value in fields.items() if value)
    for volume in spec.volumes:
        yield from _unsupported_in_volume(volume)
    for artifact in spec.arguments.artifacts:
        yield from _unsupported_in_artifact(artifact)
    yield from _unsupported_expressions(msgspec.structs.replace(spec, templates=()))
    yield from _unsupported_functions(spec.retry_strategy.expression if spec.retry_strategy else "")


def _unsupported_in_template(template: Template) -> Iterator[str]:
    fields = {
        "templateRef": template.template_ref,
        "containerSet": template.container_set,
        "data": template.data,
        "http": template.http,
        "plugin": template.plugin,
        "daemon": template.daemon,
        "memoize": template.memoize,
        "synchronization": template.synchronization,
        "timeout": template.timeout,
        "failFast": template.fail_fast,
    }
    yield from (name for name, value in fields.items() if value)
    if template.suspend is not None and template.suspend.duration is None:
        yield "suspend without duration"
    for task in template.tasks:
        yield from (f"tasks.{task.name} {feature}" for feature in _unsupported_in_task(task))
    for volume in template.volumes:
        yield from _unsupported_in_volume(volume)
    for where, container in _containers(template):
        yield from (f"{where} {feature}" for feature in _unsupported_in_env(container))
    yield from (f"archiveLocation.{kind}" for kind in template.archive_location or () if kind in _FOREIGN_STORES)
    for artifact in template.inputs.artifacts:
        yield from _unsupported_in_artifact(artifact)
    for artifact in template.outputs.artifacts:
        yield from _unsupported_in_artifact(artifact)
        if artifact.http is not None:
            yield f"artifact '{artifact.name}' http"
    for parameter in template.inputs.parameters:
        yield from _unsupported_in_parameter(parameter)
    for parameter in template.outputs.parameters:
        yield from _unsupported_in_parameter(parameter, may_compute=template.is_group)
    yield from _unsupported_resource(template)
    yield from _unsupported_paths(template)
    yield from _unsupported_expressions(template)
    yield from _unsupported_functions(template.retry_strategy.expression if template.retry_strategy else "")
    for parameter in template.outputs.parameters:
        yield from _unsupported_functions((parameter.value_from.expression if parameter.value_from else None) or "")


def _unsupported_in_task(task: Task) -> Iterator[str]:
    fields = {"templateRef": task.template_ref, "inline": task.inline}
    yield from (name for name, value in fields.items() if value)
    yield from _unsupported_in_arguments(task.arguments)
    for name, hook in task.hooks.items():
        if name != "exit":
            yield f"hooks.{name}"
        if hook.template_ref is not None:
            yield f"hooks.{name}.templateRef"
        yield from _unsupported_functions(hook.expression)
        yield from (f"hooks.{name} {feature}" for feature in _unsupported_in_arguments(hook.arguments))


def _unsupported_in_arguments(arguments: Arguments) -> Iterator[str]:
    for artifact in arguments.artifacts:
        yield from _unsupported_in_artifact(artifact)
    for parameter in arguments.parameters:
        yield from _unsupported_in_parameter(parameter)


_FOREIGN_STORES = ("artifactory", "azure", "gcs", "git", "hdfs", "http", "oss", "plugin")


def _unsupported_in_env(container: Container) -> Iterator[str]:
    for each in container.env:
        if each.value_from is not None and each.value_from.resource_field_ref is not None:
            yield f"env '{each.name}' valueFrom.resourceFieldRef"


def _unsupported_in_volume(volume: Volume) -> Iterator[str]:
    fields = {
        "projected": volume.projected,
        "downwardAPI": volume.downward_api,
        "nfs": volume.nfs,
        "csi": volume.csi,
        "ephemeral": volume.ephemeral,
        "gcePersistentDisk": volume.gce_persistent_disk,
        "awsElasticBlockStore": volume.aws_elastic_block_store,
        "azureDisk": volume.azure_disk,
        "azureFile": volume.azure_file,
    }
    yield from (f"volume '{volume.name}' of type {name}" for name, value in fields.items() if value is not None)


def _unsupported_in_artifact(artifact: Artifact) -> Iterator[str]:
    fields = {
        "fromExpression": artifact.from_expression,
        "subPath": artifact.sub_path,
        **{kind: getattr(artifact, kind) for kind in _FOREIGN_STORES if kind != "http"},
        "http.auth": artifact.http.auth if artifact.http else None,
        "http.headers.valueFrom": next((each for each in _headers(artifact) if each.value_from is not None), None),
    }
    yield from (f"artifact '{artifact.name}' {name}" for name, value in fields.items() if value is not None)
    yield from (f"artifact '{artifact.name}' archive.{kind}" for kind in artifact.archive or () if kind == "zip")


def _headers(artifact: Artifact) -> tuple[HttpHeader, ...]:
    return artifact.http.headers if artifact.http else ()


def _unsupported_in_parameter(parameter: Parameter, *, may_compute: bool = False) -> Iterator[str]:
    source = parameter.value_from
    if source is None:
        return
    fields = {
        "expression": None if may_compute else source.expression,
        "supplied": source.supplied,
        "event": source.event,
        "configMapKeyRef": source.config_map_key_ref,
    }
    yield from (f"parameter '{parameter.name}' valueFrom.{name}" for name, value in fields.items() if value is not None)


def _unsupported_resource(template: Template) -> Iterator[str]:
    """A kind that is known only after replacement is refused by the step itself."""
    resource = template.resource
    if resource is None:
        return
    if resource.manifest_from is not None:
        yield "resource manifestFrom"
    match = re.search(r"^\s*[\"']?kind[\"']?\s*:\s*(.*)$", resource.manifest, re.MULTILINE)
    if match and "{{" in match[1]:
        return
    try:
        described = _resource_object(resource.manifest)
    except go_yaml.NotYaml:
        return  # which is invalid on every engine
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind not in _RESOURCE_KINDS:
        yield f"resource kind {kind}"


def _unsupported_paths(template: Template) -> Iterator[str]:
    """Found out after the object was made, it would be too late for a step that must not be repeated."""
    for parameter in template.outputs.parameters:
        source = parameter.value_from
        for name, read, path in (
            ("jsonPath", read_json_path, source and source.json_path),
            ("jqFilter", read_jq_path, source and source.jq_filter),
        ):
            try:
                read(blanked(path or ".", "x"))
            except PathError:
                yield f"parameter '{parameter.name}' valueFrom.{name} {path}"


_ARGO_NAMES = re.compile(r"\b(inputs|item|lastRetry|outputs|pod|retries|sprig|steps|tasks|workflow)\b")
"""What tells an expression of Argo's from other text between braces."""


def _unsupported_expressions(value: object) -> Iterator[str]:
    for text in expressions(value):
        try:
            unknown = expr.read(text).unknown_functions
        except ExpressionError as error:
            if _ARGO_NAMES.search(text):
                yield f"expression {{{{={text}}}}} ({error})"
            continue
        yield from (f"expression function {name}" for name in unknown)


def _unsupported_functions(expression: str) -> Iterator[str]:
    """One that cannot be read is invalid on every engine."""
    with contextlib.suppress(ExpressionError):
        yield from (f"expression function {name}" for name in expr.read(expression).unknown_functions)
