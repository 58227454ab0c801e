"""The workflow that a run's manifest becomes, and the document that shows it (API specification, sections 9.4 and 14).

Everything here is pure: the same manifest and the same run give the same bytes, so neither is stored per run. What
does not depend on the run is done once per manifest (`prepare`); the large parts are kept as JSON text and pass
through unparsed. Knows no database, no engine and no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from shared import scalars
from shared.lengths import LONGEST_NAME_BYTES, is_too_long
from shared.macros import Occasion, expand

from .domain import DEFAULT_SERVICE_ACCOUNT, EngineName, Parameter, Run, Status

API_VERSION = "argoproj.io/v1alpha1"
KIND = "Workflow"
RUN_ID_LABEL = "pipeline/runid"
KEY_FORMAT = "/".join(
    (
        "artifacts/{{workflow.name}}",
        "{{workflow.creationTimestamp.Y}}/{{workflow.creationTimestamp.m}}/{{workflow.creationTimestamp.d}}",
        "{{pod.name}}",
    )
)
"""Below which key an engine stores what a step leaves (engine specification, section 9)."""

_ISTIO_ANNOTATION = "sidecar.istio.io/inject"
_CACHE_LABEL = "pipelines.kubeflow.org/cache_enabled"
_RUN_NAME_ANNOTATION = "pipelines.kubeflow.org/run_name"
_ALWAYS_OPTIONAL = ("mlpipeline-ui-metadata", "mlpipeline-metrics")
_LONGEST_GENERATE_NAME = 200
_SCHEDULE = "scheduledworkflows.kubeflow.org/"
"""What the labels of a fired workflow start with (section 11.7)."""
_PER_RUN = frozenset({"arguments", "serviceAccountName", "podMetadata", "templates"})
_TIMES_TO_LIVE = frozenset({"ttlStrategy", "ttlSecondsAfterFinished"})


class Malformed(Exception):
    """The text is not the JSON of a workflow."""


class OfAnotherKind(Exception):
    """It is an object, and says itself that it is no workflow of ours."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the installation decides about every workflow."""

    default_service_account: str = DEFAULT_SERVICE_ACCOUNT
    cache_enabled: bool = True


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """Where artifacts are, as the UI wants to read it."""

    endpoint: str
    bucket: str
    is_insecure: bool


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest with every change that is the same for all its runs."""

    digest: str
    text: str
    name: str
    generate_name: str
    metadata: Mapping[str, Any]
    """Without the names; labels and annotations are mappings."""
    declared: Mapping[str, str | None]
    """Parameter name to the manifest's own value, in the manifest's order."""
    arguments: Mapping[str, Any]
    """What `spec.arguments` holds beside the parameters."""
    service_account: str
    """Never empty: the manifest's own or the installation's."""
    pod_metadata: Mapping[str, Any]
    exports: Mapping[str, Mapping[str, str]]
    """Template to its outputs that have a globalName: `parameters.NAME` or `artifacts.NAME` to the global one."""
    spec: Mapping[str, msgspec.Raw]
    """Everything else of the spec, in JSON."""
    fired_templates: msgspec.Raw
    """Its templates where a job made the run: nothing says of them that they may be cached (section 10.2)."""
    holds_yaml: bool
    """Whether a template brings an object: those are written in YAML."""


def prepare(text: str, digest: str, rules: Rules) -> Prepared:
    """Raises Malformed, or OfAnotherKind where kind or apiVersion name something else."""
    document = _read(text)
    _check_kind(document)
    try:
        return _prepare(document, text, digest, rules)
    except RecursionError as error:  # What could just be read may be too deep to be written.
        raise Malformed("it is nested too deeply") from error


def _prepare(document: Mapping[str, Any], text: str, digest: str, rules: Rules) -> Prepared:
    metadata = _mapping(document, "metadata")
    spec = _mapping(document, "spec")
    arguments = _mapping(spec, "arguments")
    fired_templates = [_template(template) for template in _objects(spec, "templates")]
    templates = [_cacheable(template, rules) for template in fired_templates]
    rest = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in spec.items() if key not in _PER_RUN}
    return Prepared(
        digest=digest,
        text=text,
        name=_word(metadata, "name"),
        generate_name=_word(metadata, "generateName"),
        metadata={
            **{key: value for key, value in metadata.items() if key not in ("name", "generateName")},
            "labels": _mapping(metadata, "labels"),
            "annotations": _mapping(metadata, "annotations"),
        },
        declared={
            _word(parameter, "name"): _text(parameter, "value") for parameter in _objects(arguments, "parameters")
        },
        arguments={key: value for key, value in arguments.items() if key != "parameters"},
        service_account=_service_account(_word(spec, "serviceAccountName"), rules),
        pod_metadata=_pod_metadata(spec),
        exports={str(each.get("name")): outputs for each in templates if (outputs := _exports(each))},
        spec=rest | {"templates": msgspec.Raw(msgspec.json.encode(templates))},
        fired_templates=msgspec.Raw(msgspec.json.encode(fired_templates)),
        holds_yaml=any(template.get("resource") is not None for template in templates),
    )


def unrecognized(prepared: Prepared, parameters: Sequence[Parameter]) -> str | None:
    """The first parameter that the manifest does not declare."""
    return next((parameter.name for parameter in parameters if parameter.name not in prepared.declared), None)


def workflow(prepared: Prepared, run: Run) -> bytes:
    """The manifest as run, in JSON: what an engine is given."""
    return _with_run_id(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": _metadata(prepared, run),
            "spec": _spec(prepared, run),
        },
        run,
    )


def spec_only(prepared: Prepared, run: Run) -> bytes:
    """What the run of a job shows as its template: the workflow without status and names (section 12.2)."""
    return _with_run_id(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"generateName": run.workflow_name[:_LONGEST_GENERATE_NAME]},
            "spec": _spec(prepared, run),
        },
        run,
    )


def workflow_document(prepared: Prepared, run: Run, nodes: Sequence[tuple[str, str]], repository: Repository) -> bytes:
    """The workflow with its status: what `pipeline_runtime.workflow_manifest` shows. Nodes are id and JSON text."""
    metadata = _metadata(prepared, run)
    metadata["resourceVersion"] = str(run.version)
    metadata["labels"] = metadata["labels"] | _progress_labels(run)
    spec = _spec(prepared, run)
    if run.terminate_requested_at is not None:
        spec["activeDeadlineSeconds"] = 0
    shown = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    status = msgspec.json.encode(_status(prepared, run, nodes, repository))
    # The status is appended after the run id has been put in: what a step wrote is shown as it was.
    return _with_run_id(shown, run)[:-1] + b',"status":' + status + b"}"


# Reading a manifest.


def _read(text: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if not isinstance(document, dict):
        raise Malformed("it is not an object")
    return document


def _check_kind(document: Mapping[str, Any]) -> None:
    version, kind = document.get("apiVersion"), document.get("kind")
    if version not in (None, "", API_VERSION):
        raise OfAnotherKind(f"Unsupported argo version. Expected: {API_VERSION}. Received: {version}")
    if kind not in (None, "", KIND):
        raise OfAnotherKind(f"Unexpected resource type. Expected: {KIND}. Received: {kind}")


def _mapping(parent: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{key} is not an object")
    return value


def _objects(parent: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed(f"{key} is not a list of objects")
    return value


def _word(parent: Mapping[str, Any], key: str) -> str:
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{key} is not a string")
    return value


def _text(parent: Mapping[str, Any], key: str) -> str | None:
    """JSON numbers and booleans are read as what they say."""
    value = parent.get(key)
    return None if value is None else scalars.as_text(value)


# What is the same for all runs of a manifest.


def _template(template: dict[str, Any]) -> dict[str, Any]:
    metadata = _mapping(template, "metadata")
    annotations = {_ISTIO_ANNOTATION: "false"} | _mapping(metadata, "annotations")
    changed = template | {"metadata": metadata | {"annotations": annotations}}
    outputs = _mapping(template, "outputs")
    artifacts = [
        artifact | {"optional": True} if artifact.get("name") in _ALWAYS_OPTIONAL else artifact
        for artifact in _objects(outputs, "artifacts")
    ]
    return changed | {"outputs": outputs | {"artifacts": artifacts}} if artifacts else changed


def _cacheable(template: dict[str, Any], rules: Rules) -> dict[str, Any]:
    metadata = template["metadata"]
    labels = {_CACHE_LABEL: "true" if rules.cache_enabled else "false"} | _mapping(metadata, "labels")
    return template | {"metadata": metadata | {"labels": labels}}


def _exports(template: Mapping[str, Any]) -> dict[str, str]:
    """Shapes are the validation's business."""
    outputs = _mapping(template, "outputs")
    return {
        f"{kind}.{each.get('name')}": str(each["globalName"])
        for kind in ("parameters", "artifacts")
        if isinstance(outputs.get(kind), list)
        for each in outputs[kind]
        if isinstance(each, dict) and each.get("globalName")
    }


def _service_account(own: str, rules: Rules) -> str:
    if is_too_long(own):
        raise Malformed(f"serviceAccountName is longer than {LONGEST_NAME_BYTES} bytes")
    return own if own not in ("", DEFAULT_SERVICE_ACCOUNT) else rules.default_service_account


def _pod_metadata(spec: Mapping[str, Any]) -> dict[str, Any]:
    pod_metadata = _mapping(spec, "podMetadata")
    return pod_metadata | {"labels": _mapping(pod_metadata, "labels")}


# What is the run's own.


def _metadata(prepared: Prepared, run: Run) -> dict[str, Any]:
    if run.is_fired:
        return _metadata_of_fired(run)
    names = {"name": run.workflow_name, "generateName": prepared.generate_name}
    # What an object that was exported carries beside, such as its resourceVersion, its owners and its finalizers, a
    # cluster refuses, or takes for the new one's.
    own = {} if run.engine is EngineName.ARGO else prepared.metadata
    return {
        **{key: value for key, value in names.items() if value},
        **own,
        "namespace": run.namespace,
        "uid": run.id,
        "creationTimestamp": _time(run.created_at),
        "labels": prepared.metadata["labels"] | {RUN_ID_LABEL: run.id},
        "annotations": prepared.metadata["annotations"] | {_RUN_NAME_ANNOTATION: run.name},
    }


def _metadata_of_fired(run: Run) -> dict[str, Any]:
    """Nothing of the manifest's own is carried into it."""
    assert run.scheduled_at is not None
    # Its name is the scheduler object's, the index and a checksum of both.
    object_name, index, _ = run.workflow_name.rsplit("-", 2)
    return {
        "name": run.workflow_name,
        "namespace": run.namespace,
        "uid": run.id,
        "creationTimestamp": _time(run.created_at),
        "labels": {
            RUN_ID_LABEL: run.id,
            f"{_SCHEDULE}isOwnedByScheduledWorkflow": "true",
            f"{_SCHEDULE}scheduledWorkflowName": object_name,
            f"{_SCHEDULE}workflowEpoch": str(int(run.scheduled_at.timestamp())),
            f"{_SCHEDULE}workflowIndex": index,
        },
    }


def _spec(prepared: Prepared, run: Run) -> dict[str, Any]:
    given = {parameter.name: parameter.value for parameter in run.parameters}
    occasion = Occasion(run_id=run.id, now=run.created_at)

    def value(name: str, own: str | None) -> str:
        text = given.get(name, own or "")
        # Those of a fired run were expanded when its slot came, and the manifest's own are not (section 11.6).
        return text if run.is_fired else expand(text, occasion)

    parameters = [{"name": name, "value": value(name, own)} for name, own in prepared.declared.items()]
    labels = prepared.pod_metadata["labels"] | {RUN_ID_LABEL: run.id}
    # A workflow that removed itself before its end is on record would be a lost run: the controller removes it.
    unwanted = _TIMES_TO_LIVE if run.engine is EngineName.ARGO else frozenset()
    return {
        **{key: value for key, value in prepared.spec.items() if key not in unwanted},
        **({"templates": prepared.fired_templates} if run.is_fired else {}),
        "arguments": {**prepared.arguments, **({"parameters": parameters} if parameters else {})},
        # A run that was reported names none itself.
        "serviceAccountName": run.service_account or prepared.service_account,
        "podMetadata": {**prepared.pod_metadata, "labels": labels},
    }


def _with_run_id(document: Mapping[str, Any], run: Run) -> bytes:
    return msgspec.json.encode(document).replace(b"{{workflow.uid}}", run.id.encode())


# Status.


def _status(prepared: Prepared, run: Run, nodes: Sequence[tuple[str, str]], repository: Repository) -> dict[str, Any]:
    status: dict[str, Any] = {"startedAt": _time(run.started_at), "finishedAt": _time(run.finished_at)}
    if run.status is not Status.NONE:
        status["phase"] = _phase(run)
    if run.error:
        status["message"] = run.error
    if nodes:
        status["nodes"] = _nodes(nodes)
    if outputs := _outputs(prepared, nodes):
        status["outputs"] = outputs
    if run.status.is_final:
        status["conditions"] = [{"type": "Completed", "status": "True"}]
    status["artifactRepositoryRef"] = {
        "default": True,
        "artifactRepository": {
            "s3": {
                "endpoint": repository.endpoint,
                "bucket": repository.bucket,
                "insecure": repository.is_insecure,
                "keyFormat": KEY_FORMAT,
                "accessKeySecret": {"name": "mlpipeline-minio-artifact", "key": "accesskey"},
                "secretKeySecret": {"name": "mlpipeline-minio-artifact", "key": "secretkey"},
            }
        },
    }
    return status


class _Links(msgspec.Struct, frozen=True):
    children: tuple[str, ...] = ()


_links_of = msgspec.json.Decoder(_Links).decode


def _nodes(nodes: Sequence[tuple[str, str]]) -> dict[str, msgspec.Raw]:
    """Node id → its document as on record, but for children that wait for room: graphs are drawn of what there is."""
    known = {node_id for node_id, _ in nodes}
    return {
        node_id: msgspec.Raw(
            body.encode() if known.issuperset(_links_of(body).children) else _with_children_among(known, body)
        )
        for node_id, body in nodes
    }


def _with_children_among(known: set[str], body: str) -> bytes:
    document = msgspec.json.decode(body)
    return msgspec.json.encode(document | {"children": [each for each in document["children"] if each in known]})


def _outputs(prepared: Prepared, nodes: Sequence[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """What succeeded nodes have under a globalName; the last one that did counts."""
    if not prepared.exports:
        return {}
    exported: dict[str, dict[str, dict[str, Any]]] = {"parameters": {}, "artifacts": {}}
    documents = (msgspec.json.decode(body) for _, body in nodes)
    succeeded = [each for each in documents if each.get("phase") == "Succeeded" and each.get("type") != "TaskGroup"]
    for node in sorted(succeeded, key=lambda each: (each.get("finishedAt") or "", each["id"])):
        names = prepared.exports.get(node.get("templateName", ""), {})
        for kind, found in exported.items():
            for output in (node.get("outputs") or {}).get(kind) or ():
                name = names.get(f"{kind}.{output['name']}")
                if name is not None and not output.keys().isdisjoint(("value", "s3", "raw")):
                    shown = {key: value for key, value in output.items() if key in ("value", "s3", "raw", "path")}
                    found[name] = {"name": name, **shown}
    return {kind: list(found.values()) for kind, found in exported.items() if found}


def output_parameters(nodes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
    """The values of each output parameter, by the node's name as it is shown or by its id, and the parameter's name.

    Several nodes may be called the same, such as those of a loop.
    """
    values: dict[tuple[str, str], set[str]] = {}
    for _, body in nodes:
        node = msgspec.json.decode(body)
        for output in (node.get("outputs") or {}).get("parameters") or ():
            if "value" in output:
                for called in {node["id"], node.get("displayName") or node["id"]}:
                    values.setdefault((called, output["name"]), set()).add(output["value"])
    return values


def _progress_labels(run: Run) -> dict[str, str]:
    if run.status is Status.NONE:
        return {}
    labels = {"workflows.argoproj.io/phase": _phase(run)}
    if run.status.is_final:
        labels |= {"workflows.argoproj.io/completed": "true", "pipeline/persistedFinalState": "true"}
    return labels


def _phase(run: Run) -> str:
    """Terminating is a word of the API; workflows have none for it."""
    if run.status is not Status.TERMINATING:
        return run.status.value
    return "Pending" if run.started_at is None else "Running"


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
