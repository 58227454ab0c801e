"""The Workflow document, typed: what this engine reads of it, and what it knows well enough to refuse.

Parsing checks shapes only. What the parts mean together is the business of `validation`. Fields of the document that
are absent here have no meaning on one machine (tolerations, pull secrets, image policies); fields typed `Any` are
features that `validation.refuse_unsupported` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any, NewType

import msgspec

from shared import scalars

TemplateName = NewType("TemplateName", str)
"""A template within its workflow."""
TaskName = NewType("TaskName", str)
"""A task within its DAG, or a step within its Steps template."""

type_names = ("container", "script", "resource", "suspend", "dag", "steps")
"""The template kinds that this engine runs; a template is of exactly one kind."""


class ManifestError(Exception):
    """The manifest is refused. `reason` is for its author: it names the template, the task and the rule."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Metadata(_Part, frozen=True, kw_only=True):
    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class ValueFrom(_Part, frozen=True, kw_only=True):
    path: str | None = None
    default: str | None = None
    parameter: str | None = None
    json_path: str | None = None
    jq_filter: str | None = None
    expression: str | None = None
    supplied: Any = None
    event: Any = None
    config_map_key_ref: Any = None


class Parameter(_Part, frozen=True, kw_only=True):
    name: str = ""
    value: str | None = None
    default: str | None = None
    value_from: ValueFrom | None = None
    global_name: str | None = None


class Raw(_Part, frozen=True, kw_only=True):
    data: str = ""


class HttpHeader(_Part, frozen=True, kw_only=True):
    name: str = ""
    value: str | None = None
    value_from: Any = None


class Http(_Part, frozen=True, kw_only=True):
    """An artifact that a URL names."""

    url: str = ""
    headers: tuple[HttpHeader, ...] = ()
    auth: Any = None


class Artifact(_Part, frozen=True, kw_only=True):
    name: str = ""
    path: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    from_expression: Any = None
    raw: Raw | None = None
    s3: dict[str, Any] | None = None
    optional: bool = False
    mode: int | None = None
    archive: dict[str, Any] | None = None
    global_name: str | None = None
    sub_path: Any = None
    artifactory: Any = None
    azure: Any = None
    gcs: Any = None
    git: Any = None
    hdfs: Any = None
    http: Http | None = None
    oss: Any = None
    plugin: Any = None


class Arguments(_Part, frozen=True, kw_only=True):
    """Arguments of a call, and likewise inputs and outputs of a template."""

    parameters: tuple[Parameter, ...] = ()
    artifacts: tuple[Artifact, ...] = ()


class Selector(_Part, frozen=True, kw_only=True):
    """A key of a Secret or ConfigMap."""

    name: str = ""
    key: str = ""
    optional: bool = False


class FieldRef(_Part, frozen=True, kw_only=True):
    field_path: str


class EnvSource(_Part, frozen=True, kw_only=True):
    field_ref: FieldRef | None = None
    secret_key_ref: Selector | None = None
    config_map_key_ref: Selector | None = None
    resource_field_ref: Any = None


class EnvVar(_Part, frozen=True, kw_only=True):
    name: str
    value: str | None = None
    value_from: EnvSource | None = None


class EnvFrom(_Part, frozen=True, kw_only=True):
    prefix: str = ""
    config_map_ref: Selector | None = None
    secret_ref: Selector | None = None


class VolumeMount(_Part, frozen=True, kw_only=True):
    name: str
    mount_path: str
    sub_path: str = ""
    read_only: bool = False


class Resources(_Part, frozen=True, kw_only=True):
    """What a container may use. What it asks to be there (`requests`) means nothing on one machine."""

    limits: dict[str, str] = msgspec.field(default_factory=dict)


class Container(_Part, frozen=True, kw_only=True):
    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    working_dir: str = ""
    volume_mounts: tuple[VolumeMount, ...] = ()
    mirror_volume_mounts: bool = False
    resources: Resources = msgspec.field(default_factory=Resources)
    source: str = ""
    """Only of a script template: the program text."""


class Resource(_Part, frozen=True, kw_only=True):
    action: str = ""
    manifest: str = ""
    success_condition: str = ""
    failure_condition: str = ""
    merge_strategy: str = ""
    set_owner_reference: bool = False
    flags: tuple[str, ...] = ()
    manifest_from: Any = None


class Suspend(_Part, frozen=True, kw_only=True):
    duration: str | None = None


class Claim(_Part, frozen=True, kw_only=True):
    claim_name: str
    read_only: bool = False


class KeyToPath(_Part, frozen=True, kw_only=True):
    key: str
    path: str
    mode: int | None = None


class SecretVolume(_Part, frozen=True, kw_only=True):
    secret_name: str
    items: tuple[KeyToPath, ...] = ()
    default_mode: int | None = None
    optional: bool = False


class ConfigMapVolume(_Part, frozen=True, kw_only=True):
    name: str
    items: tuple[KeyToPath, ...] = ()
    default_mode: int | None = None
    optional: bool = False


class HostPath(_Part, frozen=True, kw_only=True):
    path: str
    type: str = ""


class Volume(_Part, frozen=True, kw_only=True):
    """A volume; with a name alone it is an empty directory."""

    name: str
    empty_dir: dict[str, Any] | None = None
    persistent_volume_claim: Claim | None = None
    secret: SecretVolume | None = None
    config_map: ConfigMapVolume | None = None
    host_path: HostPath | None = None
    projected: Any = None
    downward_api: Any = msgspec.field(default=None, name="downwardAPI")
    nfs: Any = None
    csi: Any = None
    ephemeral: Any = None
    gce_persistent_disk: Any = None
    aws_elastic_block_store: Any = None
    azure_disk: Any = None
    azure_file: Any = None


class ClaimTemplate(_Part, frozen=True, kw_only=True):
    """A claim that each run has for itself; templates mount it by the template's name."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: dict[str, Any] = msgspec.field(default_factory=dict)


class ClaimCollection(_Part, frozen=True, kw_only=True):
    strategy: str = ""
    """OnWorkflowCompletion, or by default OnWorkflowSuccess: when the run's own claims are removed."""


class Backoff(_Part, frozen=True, kw_only=True):
    duration: str = ""
    factor: str | None = None
    max_duration: str = ""


class RetryStrategy(_Part, frozen=True, kw_only=True):
    limit: str | None = None
    retry_policy: str = ""
    backoff: Backoff | None = None
    expression: str = ""


class ContinueOn(_Part, frozen=True, kw_only=True):
    failed: bool = False
    error: bool = False


class Sequence(_Part, frozen=True, kw_only=True):
    count: str | None = None
    start: str | None = None
    end: str | None = None
    format: str | None = None


class Hook(_Part, frozen=True, kw_only=True):
    """A template that is called when something has become of a task."""

    template: TemplateName = TemplateName("")
    arguments: Arguments = msgspec.field(default_factory=Arguments)
    expression: str = ""
    """Where there is one, the hook is called only if it is true."""
    template_ref: Any = None


class Task(_Part, frozen=True, kw_only=True):
    """A task of a DAG, or a step: which template is called, when, how often and with what."""

    name: TaskName = TaskName("")
    template: TemplateName = TemplateName("")
    arguments: Arguments = msgspec.field(default_factory=Arguments)
    dependencies: tuple[TaskName, ...] = ()
    depends: str = ""
    when: str = ""
    with_items: list[Any] | None = None
    with_param: str | None = None
    with_sequence: Sequence | None = None
    continue_on: ContinueOn | None = None
    template_ref: Any = None
    inline: Any = None
    on_exit: TemplateName = TemplateName("")
    hooks: dict[str, Hook] = msgspec.field(default_factory=dict)

    @property
    def exit_hook(self) -> Hook | None:
        """What is called when the task has ended, however it did; `onExit` is the older way to write it."""
        return Hook(template=self.on_exit) if self.on_exit else self.hooks.get("exit")

    @property
    def expands(self) -> bool:
        return self.with_items is not None or self.with_param is not None or self.with_sequence is not None


class Dag(_Part, frozen=True, kw_only=True):
    tasks: tuple[Task, ...] = ()
    target: str = ""
    fail_fast: bool = True


class Template(_Part, frozen=True, kw_only=True):
    name: TemplateName = TemplateName("")
    inputs: Arguments = msgspec.field(default_factory=Arguments)
    outputs: Arguments = msgspec.field(default_factory=Arguments)
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    container: Container | None = None
    script: Container | None = None
    resource: Resource | None = None
    suspend: Suspend | None = None
    dag: Dag | None = None
    steps: tuple[tuple[Task, ...], ...] | None = None
    init_containers: tuple[Container, ...] = ()
    sidecars: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    retry_strategy: RetryStrategy | None = None
    active_deadline_seconds: str | None = None
    parallelism: int | None = None
    service_account_name: str = ""
    pod_spec_patch: str = ""
    archive_location: dict[str, Any] | None = None
    container_set: Any = None
    data: Any = None
    http: Any = None
    plugin: Any = None
    daemon: Any = None
    memoize: Any = None
    synchronization: Any = None
    timeout: Any = None
    template_ref: Any = None
    fail_fast: Any = None

    @property
    def is_group(self) -> bool:
        return self.dag is not None or self.steps is not None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of a DAG or all steps of all groups; a leaf has none."""
        if self.dag is not None:
            return self.dag.tasks
        return tuple(step for group in self.steps or () for step in group)


class Spec(_Part, frozen=True, kw_only=True):
    entrypoint: TemplateName = TemplateName("")
    arguments: Arguments = msgspec.field(default_factory=Arguments)
    templates: tuple[Template, ...] = ()
    on_exit: TemplateName = TemplateName("")
    parallelism: int | None = None
    active_deadline_seconds: str | None = None
    service_account_name: str = ""
    priority: int | None = None
    volumes: tuple[Volume, ...] = ()
    pod_metadata: Metadata = msgspec.field(default_factory=Metadata)
    pod_spec_patch: str = ""
    retry_strategy: RetryStrategy | None = None
    workflow_template_ref: Any = None
    volume_claim_templates: tuple[ClaimTemplate, ...] = ()
    volume_claim_gc: ClaimCollection | None = msgspec.field(default=None, name="volumeClaimGC")
    template_defaults: dict[str, Any] | None = None
    """Only as written: `parse` has merged it into each template."""
    synchronization: Any = None
    hooks: Any = None
    shutdown: Any = None
    suspend: Any = None


class Workflow(_Part, frozen=True, kw_only=True):
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: Spec = msgspec.field(default_factory=Spec)


# What msgspec has to know of a type it finds out with the first use, and two threads that are first at the same moment
# crash it. Modules are imported by one thread.
msgspec.convert({}, Workflow)


def parse(document: Mapping[str, Any]) -> Workflow:
    """The typed form of a Workflow document, as YAML or JSON decodes it.

    Raises ManifestError with the path of the first part that has the wrong shape.
    """
    try:
        return msgspec.convert(_with_defaults(_cleaned(dict(document))), Workflow)
    except msgspec.ValidationError as error:
        raise ManifestError(str(error)) from error


_MERGE_KEYS = {
    "artifacts": "name",
    "env": "name",
    "initContainers": "name",
    "parameters": "name",
    "sidecars": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists whose items are the same thing when this key of theirs is the same; any other list is one value."""


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """`spec.templateDefaults` under each template: what the template says itself wins, its kind above all."""
    spec = document.get("spec")
    if not isinstance(spec, dict) or not isinstance(defaults := spec.get("templateDefaults"), dict):
        return document
    templates = [
        _merged({key: value for key, value in defaults.items() if key not in _KINDS or key in template}, template)
        if isinstance(template, dict)
        else template
        for template in spec.get("templates") or ()
    ]
    return {**document, "spec": {**spec, "templates": templates}}


_KINDS = frozenset({"name", "containerSet", "data", "http", "plugin", *type_names})
"""What a template has of its own or not at all."""


def _merged(default: Any, own: Any, key: str = "") -> Any:
    """As a strategic merge patch of the default does it."""
    if isinstance(default, dict) and isinstance(own, dict):
        return {**default, **{key: _merged(default.get(key), value, key) for key, value in own.items()}}
    by = _MERGE_KEYS.get(key)
    if by is None or not _is_list_of_things(default) or not _is_list_of_things(own):
        return own
    found = {str(each.get(by)): each for each in default}
    for each in own:
        name = str(each.get(by))
        found[name] = _merged(found.get(name), each)
    return list(found.values())


def _is_list_of_things(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def parse_container(document: Mapping[str, Any]) -> Container:
    """A container by itself. Raises msgspec.ValidationError, and ManifestError where it is nested too deep."""
    return msgspec.convert(_cleaned(dict(document)), Container)


def scalar_text(value: Any) -> str:
    """The text of a value that YAML may have read as something else; of mappings always the same one."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False, default=str)
    return scalars.as_text(value)


_SCALARS = frozenset(
    {"value", "default", "limit", "activeDeadlineSeconds", "count", "start", "end", "duration", "factor", "maxDuration"}
)
"""Keys whose value is text here, however the YAML author spelled it."""


_DEEPEST = 100
"""Levels of nesting: everything that walks a manifest does so by recursion."""


def _cleaned(value: Any, depth: int = 0) -> Any:
    """The document without nulls, which mean "absent", with scalars as text; loop items keep their types and nulls."""
    if depth > _DEEPEST:
        raise ManifestError(f"the manifest is nested deeper than {_DEEPEST} levels")
    if isinstance(value, dict):
        return {key: _cleaned_entry(key, inner, depth) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_cleaned(inner, depth + 1) for inner in value]
    # YAML reads an unquoted date as one; nothing in a manifest is.
    return value.isoformat() if isinstance(value, date) else value


def _cleaned_entry(key: Any, value: Any, depth: int) -> Any:
    if key == "withItems":
        return _items(value, depth + 1)
    if key in _SCALARS:
        return scalar_text(value)
    if key in {"labels", "annotations", "limits"} and isinstance(value, dict):
        return {name: scalar_text(inner) for name, inner in value.items() if inner is not None}
    return _cleaned(value, depth + 1)


def _items(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ManifestError(f"the manifest is nested deeper than {_DEEPEST} levels")
    if isinstance(value, dict):
        return {str(key): _items(inner, depth + 1) for key, inner in value.items()}
    return [_items(inner, depth + 1) for inner in value] if isinstance(value, list) else value
