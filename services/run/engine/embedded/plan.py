"""What follows from the manifest alone, computed once a run: who waits for whom, and what a call or an order holds.

The plan knows no node's phase. `reconcile` asks it what a task depends on, which inputs a call has, and what a step
must be told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from services.run.engine.embedded.durations import LONGEST_SECONDS, duration_seconds, whole_seconds_of
from services.run.engine.embedded.expression import MET, Depends, ExpressionError, Outcome, all_of, parse_depends
from services.run.engine.embedded.manifest import (
    Arguments,
    Artifact,
    Claim,
    ClaimTemplate,
    Container,
    Dag,
    ManifestError,
    RetryStrategy,
    Task,
    TaskName,
    Template,
    TemplateName,
    Volume,
    VolumeMount,
    Workflow,
    parse_container,
)
from services.run.engine.embedded.nodes import NodeArtifact, NodeInputs, NodeParameter
from services.run.engine.embedded.orders import (
    PlacedArtifact,
    Process,
    StepKind,
    StepOrder,
    WantedArtifact,
    WantedParameter,
)
from services.run.engine.embedded.quantity import QuantityError, cpu_millis, memory_bytes
from services.run.engine.embedded.template import Lookup, fill, first_of, tags
from services.run.engine.embedded.variables import Globals, Identity, inputs_lookup, paths_lookup

T = TypeVar("T")


class TaskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A task among its neighbours."""

    task: Task
    condition: Depends | None
    """What must have become of the tasks it names before it runs; None when it names none."""
    dependencies: tuple[TaskName, ...]
    dependents: tuple[TaskName, ...]


class DagPlan(msgspec.Struct, frozen=True, kw_only=True):
    tasks: Mapping[TaskName, TaskPlan]
    """The tasks that some target needs, in name order."""
    targets: tuple[TaskName, ...]
    """Whose phases make the DAG's phase, in name order."""


class RetryRule(msgspec.Struct, frozen=True, kw_only=True):
    """A retryStrategy whose placeholders are replaced and whose numbers are read (§10)."""

    policy: str = ""
    expression: str = ""
    """Asked after each failed attempt, if there is one; without a policy it is the policy."""
    limit: int | None = None
    """Attempts after the first."""
    wait_seconds: float | None = None
    """Before the second attempt; None without backoff."""
    factor: float = 1.0
    longest_seconds: float | None = None
    """From the first attempt's start to the last one's end."""

    def wait_seconds_after(self, attempts: int) -> float:
        """How long the next one waits after that many were repeated."""
        try:
            return min((self.wait_seconds or 0.0) * self.factor**attempts, LONGEST_SECONDS)
        except OverflowError:
            return LONGEST_SECONDS


class Plan:
    """The static side of one run."""

    def __init__(self, workflow: Workflow, identity: Identity) -> None:
        self.workflow = workflow
        self.identity = identity
        self.globals = Globals(identity, workflow.spec)
        self._templates = {each.name: each for each in workflow.spec.templates}
        self._dags: dict[TemplateName, DagPlan] = {}
        self._results: dict[TemplateName, frozenset[str]] = {}

    def template(self, name: TemplateName) -> Template:
        try:
            return self._templates[name]
        except KeyError:
            raise ManifestError(f"template name '{name}' undefined") from None

    def dag(self, template: Template) -> DagPlan:
        if template.name not in self._dags:
            assert template.dag is not None
            self._dags[template.name] = plan_dag(template.dag)
        return self._dags[template.name]

    def asks_result(self, template: Template, task: TaskName) -> bool:
        """Whether the group template mentions `outputs.result` of this task: only then is stdout kept (§9)."""
        if template.name not in self._results:
            self._results[template.name] = frozenset(_result_mentions(template))
        return task in self._results[template.name]

    def retry_strategy(self, template: Template) -> RetryStrategy | None:
        return template.retry_strategy or self.workflow.spec.retry_strategy

    def retry_rule(self, strategy: RetryStrategy, inputs: NodeInputs) -> RetryRule:
        """Raises ManifestError where a number is none."""
        return _retry_rule(self.filled(strategy, inputs))

    @cached_property
    def run_deadline_seconds(self) -> int | None:
        return whole_seconds_of(fill(self.workflow.spec.active_deadline_seconds, self.globals))

    @cached_property
    def claims(self) -> tuple[dict[str, Any], ...]:
        """The run's own claims, as objects."""
        return tuple(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {
                    **msgspec.to_builtins(fill(each.metadata, self.globals)),
                    "name": self._claim_name(each),
                },
                "spec": fill(each.spec, self.globals),
            }
            for each in self.workflow.spec.volume_claim_templates
        )

    @property
    def removes_claims_of_failures(self) -> bool:
        rule = self.workflow.spec.volume_claim_gc
        return rule is not None and rule.strategy == "OnWorkflowCompletion"

    def _claim_name(self, template: ClaimTemplate) -> str:
        return f"{self.identity.name}-{template.metadata.name}"

    @cached_property
    def _workflow_volumes(self) -> tuple[Volume, ...]:
        own = (
            Volume(name=each.metadata.name, persistent_volume_claim=Claim(claim_name=self._claim_name(each)))
            for each in self.workflow.spec.volume_claim_templates
        )
        return (*self.workflow.spec.volumes, *own)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def bind(
        self, template: Template, parameters: Mapping[str, str], artifacts: Mapping[str, NodeArtifact]
    ) -> NodeInputs:
        """The inputs of a template that is called with these arguments (§4, stages 4 to 6).

        Raises ManifestError for an input that nobody supplies.
        """
        bound = NodeInputs(parameters=tuple(self._bound_parameters(template, parameters)))
        declared = self.filled(template.inputs.artifacts, bound)
        return msgspec.structs.replace(bound, artifacts=tuple(_bound_artifacts(declared, artifacts)))

    def _bound_parameters(self, template: Template, arguments: Mapping[str, str]) -> Iterable[NodeParameter]:
        for each in fill(template.inputs.parameters, self.globals):
            candidates = (arguments.get(each.name), each.value, each.default)
            value = next((candidate for candidate in candidates if candidate is not None), None)
            if value is None:
                raise ManifestError(f"inputs.parameters.{each.name} was not supplied")
            yield NodeParameter(name=each.name, value=value)

    def filled(self, value: T, inputs: NodeInputs) -> T:
        """Globals first and then the inputs: the value of a global may name an input."""
        return fill(fill(value, self.globals), inputs_lookup(inputs), self.globals)

    # -- orders --------------------------------------------------------------------------------------------------------

    def order(
        self,
        template: Template,
        inputs: NodeInputs,
        *,
        node_id: str,
        node_name: str,
        attempt: int | None = None,
        needs_result: bool = False,
    ) -> StepOrder:
        """What the step of this node is told; `attempt` is None for a leaf without retryStrategy.

        Raises ManifestError when the replaced text makes no sense.
        """
        filled = self._filled_leaf(template, inputs, node_id, attempt)
        volumes, claimed = self._volumes(filled, inputs, node_id)
        main = filled.container or filled.script or Container()
        process = _process(main, "main", claimed)
        for patch in (fill(self.workflow.spec.pod_spec_patch, self.globals), filled.pod_spec_patch):
            process = patched(process, patch)
        return StepOrder(
            node_id=node_id,
            node_name=node_name,
            attempt=attempt or 0,
            template_name=template.name,
            kind=_kind(template),
            main=process,
            init=tuple(_process(each, each.name, _mirrored(each, main)) for each in filled.init_containers),
            sidecars=tuple(_process(each, each.name, _mirrored(each, main)) for each in filled.sidecars),
            source=filled.script.source if filled.script else None,
            resource=filled.resource,
            input_parameters={each.name: each.value or "" for each in inputs.parameters},
            input_artifacts=tuple(_placed(inputs)),
            output_parameters=tuple(
                WantedParameter(name=each.name, value=each.value, value_from=each.value_from)
                for each in filled.outputs.parameters
            ),
            output_artifacts=tuple(
                WantedArtifact(
                    name=each.name,
                    path=each.path or "",
                    optional=each.optional,
                    archive=each.archive,
                    s3=each.s3 or _archive_location(filled, each.name),
                    mode=each.mode,
                )
                for each in filled.outputs.artifacts
            ),
            needs_result=needs_result,
            volumes=volumes,
            deadline_seconds=whole_seconds_of(filled.active_deadline_seconds),
            labels=self._labels(filled),
            annotations={**self.workflow.spec.pod_metadata.annotations, **filled.metadata.annotations},
            service_account=filled.service_account_name or self.identity.service_account,
        )

    def _filled_leaf(self, template: Template, inputs: NodeInputs, pod_name: str, attempt: int | None) -> Template:
        """The template after §4's stages 5, 6 and 7. Each is a pass of its own: a value is scanned in later passes."""
        of_call = first_of(inputs_lookup(inputs), paths_lookup(template))
        if attempt is None:
            of_pod = first_of(self.globals, {"pod.name": pod_name}.get)
            return fill(fill(template, of_pod), of_call, of_pod)
        of_attempt: Lookup = {"pod.name": pod_name, "retries": str(attempt)}.get
        filled = fill(fill(template, self.globals), of_call, self.globals)
        return fill(filled, of_attempt, first_of(of_call, self.globals))

    def _volumes(
        self, filled: Template, inputs: NodeInputs, pod_name: str
    ) -> tuple[tuple[Volume, ...], tuple[VolumeMount, ...]]:
        """The volumes that a container of the step mounts, the template's before the workflow's, and main's mounts."""
        main = filled.container or filled.script or Container()
        everyone = (main, *filled.init_containers, *filled.sidecars)
        mounted = {mount.name for container in everyone for mount in container.volume_mounts}
        known = {each.name: each for each in (*self._workflow_volumes, *filled.volumes) if each.name in mounted}
        lookup = first_of(self.globals, inputs_lookup(inputs), {"pod.name": pod_name}.get)
        for missing in sorted(mounted - known.keys()):
            raise ManifestError(f"volume '{missing}' not found in workflow spec")
        return tuple(fill(each, lookup) for each in known.values()), main.volume_mounts

    def _labels(self, filled: Template) -> dict[str, str]:
        return {
            **fill(self.workflow.spec.pod_metadata.labels, self.globals),
            **filled.metadata.labels,
            "workflows.argoproj.io/workflow": self.identity.name,
            "workflows.argoproj.io/completed": "false",
        }


# -- dependencies ------------------------------------------------------------------------------------------------------


def plan_dag(dag: Dag) -> DagPlan:
    """Raises ManifestError for a `depends` that cannot be read or a target that does not exist."""
    by_name = {task.name: task for task in dag.tasks}
    conditions = {name: condition_of(task, by_name) for name, task in by_name.items()}
    needs = {name: _names(condition) for name, condition in conditions.items()}
    targets = _targets(dag, needs)
    wanted = sorted(_reachable(targets, needs))
    dependents: dict[TaskName, list[TaskName]] = {name: [] for name in wanted}
    for name in wanted:
        for dependency in needs[name]:
            dependents[dependency].append(name)
    return DagPlan(
        tasks={
            name: TaskPlan(
                task=by_name[name],
                condition=conditions[name],
                dependencies=needs[name],
                dependents=tuple(dependents[name]),
            )
            for name in wanted
        },
        targets=targets,
    )


def condition_of(task: Task, tasks: Mapping[TaskName, Task]) -> Depends | None:
    """What the task waits for, from `depends` or `dependencies`; tasks that do not exist raise ManifestError."""
    try:
        condition = parse_depends(task.depends) if task.depends else None
    except ExpressionError as error:
        raise ManifestError(str(error)) from error
    if condition is None and task.dependencies:
        condition = all_of({name: _met(tasks.get(name)) for name in dict.fromkeys(task.dependencies)})
    for name in _names(condition):
        if name not in tasks:
            raise ManifestError(f"dependency '{name}' not defined")
    return condition


def _names(condition: Depends | None) -> tuple[TaskName, ...]:
    return tuple(map(TaskName, condition.names)) if condition else ()


def _met(dependency: Task | None) -> frozenset[Outcome]:
    wanted = set(MET)
    if dependency is not None and dependency.continue_on is not None:
        if dependency.continue_on.failed:
            wanted.add(Outcome.FAILED)
        if dependency.continue_on.error:
            wanted.add(Outcome.ERRORED)
    return frozenset(wanted)


def _targets(dag: Dag, needs: Mapping[TaskName, tuple[TaskName, ...]]) -> tuple[TaskName, ...]:
    named = tuple(map(TaskName, dag.target.split()))
    for name in named:
        if name not in needs:
            raise ManifestError(f"target '{name}' is not defined")
    if named:
        return tuple(sorted(set(named)))
    needed = {dependency for dependencies in needs.values() for dependency in dependencies}
    return tuple(sorted(needs.keys() - needed))


def _reachable(targets: Iterable[TaskName], needs: Mapping[TaskName, tuple[TaskName, ...]]) -> set[TaskName]:
    found: set[TaskName] = set()
    open_ = list(targets)
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            open_.extend(needs[name])
    return found


def _result_mentions(template: Template) -> Iterable[str]:
    for name in tags((template.dag, template.steps, template.outputs)):
        kind, _, rest = name.partition(".")
        task, _, what = rest.partition(".")
        if kind in {"tasks", "steps"} and what == "outputs.result":
            yield task


# -- retries -----------------------------------------------------------------------------------------------------------


def _retry_rule(strategy: RetryStrategy) -> RetryRule:
    limit, backoff = strategy.limit, strategy.backoff
    if limit is not None and not re.fullmatch(r"[0-9]{1,18}", limit):
        raise ManifestError(f"retryStrategy.limit '{limit}' is not an integer")
    rule = RetryRule(
        policy=strategy.retry_policy or ("Always" if strategy.expression else "OnFailure"),
        expression=strategy.expression,
        limit=None if limit is None else int(limit),
    )
    if backoff is None:
        return rule
    return msgspec.structs.replace(
        rule,
        wait_seconds=duration_seconds(backoff.duration),
        factor=read_factor(backoff.factor or "1"),
        longest_seconds=duration_seconds(backoff.max_duration) if backoff.max_duration else None,
    )


def read_factor(text: str) -> float:
    """By how much each wait is longer than the one before. Raises ManifestError."""
    try:
        factor = float(text)
    except ValueError:
        factor = -1
    if not 0 <= factor < math.inf:
        raise ManifestError(f"'{text}' is not a number")
    return factor


# -- inputs ------------------------------------------------------------------------------------------------------------


def _bound_artifacts(declared: Iterable[Artifact], arguments: Mapping[str, NodeArtifact]) -> Iterable[NodeArtifact]:
    """A location fixed in the template wins over the argument's."""
    for each in declared:
        given = located(each) or arguments.get(each.name)
        if given is None and not each.optional:
            raise ManifestError(f"inputs.artifacts.{each.name} was not supplied")
        yield NodeArtifact(
            name=each.name,
            path=each.path,
            s3=given.s3 if given else None,
            raw=given.raw if given else None,
            http=given.http if given else None,
            archive=each.archive or (given.archive if given else None),
            optional=each.optional,
            mode=each.mode,
        )


def located(artifact: Artifact) -> NodeArtifact | None:
    """The artifact, if the manifest itself says where it lies."""
    if artifact.raw is not None:
        return NodeArtifact(name=artifact.name, raw={"data": artifact.raw.data})
    if artifact.s3 is not None and artifact.s3.get("key"):
        return NodeArtifact(name=artifact.name, s3=artifact.s3, archive=artifact.archive)
    if artifact.http is not None and artifact.http.url:
        http = msgspec.to_builtins(artifact.http)
        return NodeArtifact(name=artifact.name, http=http, archive=artifact.archive)
    return None


def workflow_artifacts(arguments: Arguments) -> dict[str, NodeArtifact]:
    """The workflow's artifact arguments, by name."""
    found = ((each.name, located(each)) for each in arguments.artifacts)
    return {name: artifact for name, artifact in found if artifact is not None}


# -- parts of an order -------------------------------------------------------------------------------------------------


def _kind(template: Template) -> StepKind:
    if template.script is not None:
        return StepKind.SCRIPT
    return StepKind.RESOURCE if template.resource is not None else StepKind.CONTAINER


def _process(container: Container, name: str, mounts: tuple[VolumeMount, ...]) -> Process:
    process = Process(
        name=name,
        image=container.image,
        command=container.command,
        args=container.args,
        env=container.env,
        env_from=container.env_from,
        working_dir=container.working_dir,
        mounts=mounts,
    )
    return limited(process, container.resources.limits)


def limited(process: Process, limits: Mapping[str, str]) -> Process:
    """With the limits that can be kept here; zero is none. Raises ManifestError for what is no quantity."""
    memory, cpu = limits.get("memory"), limits.get("cpu")
    if memory is None and cpu is None:
        return process
    try:
        return msgspec.structs.replace(
            process,
            memory_bytes=process.memory_bytes if memory is None else memory_bytes(memory) or None,
            cpu_millis=process.cpu_millis if cpu is None else cpu_millis(cpu) or None,
        )
    except QuantityError as error:
        raise ManifestError(f"resources.limits: {error}") from error


def _mirrored(container: Container, main: Container) -> tuple[VolumeMount, ...]:
    if not container.mirror_volume_mounts:
        return container.volume_mounts
    own = {mount.mount_path for mount in container.volume_mounts}
    return (*container.volume_mounts, *(mount for mount in main.volume_mounts if mount.mount_path not in own))


def _placed(inputs: NodeInputs) -> Iterable[PlacedArtifact]:
    for each in inputs.artifacts:
        if each.path is not None and each.has_location:
            yield PlacedArtifact(
                name=each.name,
                path=each.path,
                raw=each.raw.get("data") if each.raw is not None else None,
                s3=each.s3,
                http=each.http,
                mode=each.mode,
                archive=each.archive,
            )


def _archive_location(template: Template, artifact: str) -> dict[str, Any] | None:
    """SDK 0.1 gave a template one `archiveLocation`: a key prefix for all its artifacts."""
    s3 = (template.archive_location or {}).get("s3")
    if not isinstance(s3, dict) or not s3.get("key"):
        return None
    return {**s3, "key": f"{str(s3['key']).rstrip('/')}/{artifact}.tgz"}


def patched(main: Process, patch: str) -> Process:
    """Command, args, env and limits of a podSpecPatch; the last two merge by name, as a strategic merge patch does.

    What it says of other parts of the pod has no meaning on one machine. Raises ManifestError.
    """
    said = _said_of_main(patch)
    changes = {key: said[key] for key in ("image", "command", "args", "env", "resources") if said.get(key)}
    if not changes:
        return main
    try:
        new = parse_container(changes)
    except msgspec.ValidationError as error:
        raise ManifestError(f"podSpecPatch does not fit a container: {error}") from error
    replaced = {each.name for each in new.env}
    changed = msgspec.structs.replace(
        main,
        image=new.image or main.image,
        command=new.command or main.command,
        args=new.args or main.args,
        env=(*(each for each in main.env if each.name not in replaced), *new.env),
    )
    try:
        return limited(changed, new.resources.limits)
    except ManifestError as error:
        raise ManifestError(f"podSpecPatch: {error}") from error


def _said_of_main(patch: str) -> Mapping[str, Any]:
    if not patch:
        return {}
    try:
        document = json.loads(patch)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"podSpecPatch is not valid JSON: {error}") from error
    containers = document.get("containers") if isinstance(document, dict) else None
    for each in containers if isinstance(containers, list) else ():
        if isinstance(each, dict) and each.get("name") == "main":
            return each
    return {}
