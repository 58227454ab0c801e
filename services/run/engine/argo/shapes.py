"""Workflow objects as Argo 3.1 to 4 writes them, to and from what the port speaks of (workflow specification, 14-18).

Pure. What the versions do differently ends here: where artifacts lie may be said once for all of them, nodes may be
compressed or kept elsewhere, and pods are named in one of two ways.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from services.run.engine import NodeDocument, Submission
from services.run.engine.shards import shard_of

RUN_ID: Final = "pipeline/runid"
PERSISTED: Final = "pipeline/persistedFinalState"
SHARD: Final = "headrace.dev/shard"
INSTALLATION: Final = "headrace.dev/installation"
"""Whose records know the run: several installations may share a cluster, and a namespace."""
ATTEMPT: Final = "headrace.dev/attempt"
MADE_AS: Final = "headrace.dev/made-as"
"""Namespace and name of the object that was given our labels: one that somebody copies has them under another name."""
RECORDED_AT: Final = "headrace.dev/recorded-at"
"""When the end was recorded, from which the time to live counts."""
_PHASE_LABEL: Final = "workflows.argoproj.io/phase"
_COMPLETED_LABEL: Final = "workflows.argoproj.io/completed"
_POD_NAMES: Final = "workflows.argoproj.io/pod-name-format"
_ARCHIVING_LABEL: Final = "workflows.argoproj.io/workflow-archiving-status"
FINAL: Final = frozenset({"Succeeded", "Failed", "Error"})
_OPEN: Final = frozenset({"Pending", "Running"})
_PHASES: Final = FINAL | _OPEN
_LONGEST_POD_PREFIX: Final = 253 - len("4294967295") - 1
_NOT_SHOWN: Final = ".not-shown"
_MOST_DIGITS: Final = 9
"""Of an attempt; more are nobody's retries."""
_LARGEST_NODES_BYTES: Final = 256 * 1024 * 1024
"""Of what was compressed: a hundred times what fits into an object otherwise."""

Text: TypeAlias = bytes | msgspec.Raw
"""JSON."""


class Unreadable(Exception):
    """The object is none that this module understands; the text says why.

    Whoever may write to a workflow, such as its own steps, can make it one, and must not stop the others by it.
    """


class Metadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whose object it is, and in which state; all that is needed of one that is not driven any more."""

    name: str = ""
    """A bookmark has none."""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None

    @property
    def run_id(self) -> str:
        return (self.labels or {}).get(RUN_ID, "")

    @property
    def attempt(self) -> int:
        """An object that says nothing of attempts has had no retry."""
        written = (self.annotations or {}).get(ATTEMPT, "")
        return int(written) if written.isdecimal() and len(written) <= _MOST_DIGITS else 1

    def has(self, labels: Mapping[str, str]) -> bool:
        return labels.items() <= dict(self.labels or {}).items()

    @property
    def is_original(self) -> bool:
        return (self.annotations or {}).get(MADE_AS) == f"{self.namespace}/{self.name}"

    @property
    def is_persisted(self) -> bool:
        return (self.labels or {}).get(PERSISTED) == "true"

    @property
    def is_reopened(self) -> bool:
        """Whether it was recorded as over and goes on: by its labels, in which Argo repeats its phase."""
        labels = self.labels or {}
        return self.is_persisted and _COMPLETED_LABEL not in labels and labels.get(_PHASE_LABEL) in _OPEN

    @property
    def recorded_at(self) -> datetime | None:
        """Of an object that was recorded by somebody else, its creation."""
        try:
            written = datetime.fromisoformat((self.annotations or {}).get(RECORDED_AT, ""))
        except ValueError:
            return self.creation_timestamp
        return written if written.tzinfo is not None else self.creation_timestamp


class _Spec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    active_deadline_seconds: Any = None


class _Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    phase: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    nodes: msgspec.Raw = msgspec.Raw()
    compressed_nodes: str = ""
    offload_node_status_version: str = ""
    artifact_repository_ref: Any = None


class _Object(msgspec.Struct, frozen=True, kw_only=True):
    metadata: Metadata
    spec: _Spec = _Spec()
    status: _Status | None = None


class _Listed(msgspec.Struct, frozen=True, kw_only=True):
    metadata: Metadata


_Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be right of a node for its record: what it says beside is kept as it came."""

    id: Annotated[_Text, msgspec.Meta(min_length=1, max_length=512)]
    name: _Text = ""
    type: _Text = ""
    phase: _Text = ""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one state of one object says. Its nodes are read only when they are asked for: most states are overtaken."""

    metadata: Metadata
    phase: str
    message: str
    started_at: datetime | None
    finished_at: datetime | None
    is_offloaded: bool
    """Argo keeps the nodes in a database of its own, where nobody else reads them."""
    is_stopping: bool
    size: int
    _nodes: msgspec.Raw | None
    _compressed: str
    _repository: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL

    def nodes(self) -> dict[str, msgspec.Raw]:
        """Node id → its JSON as Argo wrote it. Raises Unreadable."""
        if self.is_offloaded:
            raise Unreadable("Argo keeps them in a database of its own (nodeStatusOffLoad)")
        packed = _unpacked(self._compressed) if self._compressed else self._nodes
        if packed is None:
            return {}
        try:
            return _nodes_of(packed)
        except msgspec.DecodeError as error:
            raise Unreadable(f"status.nodes: {error}") from error

    def document(self, node: msgspec.Raw) -> NodeDocument:
        """The node as it is recorded. Raises Unreadable."""
        try:
            written = _node_of(node)
            msgspec.convert(written, _Node)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unreadable(f"a node: {error}") from error
        # Whoever reads records finds these in every node; a server may drop what is null.
        written.setdefault("finishedAt", None)
        written.setdefault("displayName", written.get("name", ""))
        try:
            for side in ("inputs", "outputs"):
                artifacts = (written.get(side) or {}).get("artifacts")
                if artifacts:
                    written[side]["artifacts"] = [self._located(each) for each in artifacts]
        except (AttributeError, TypeError) as error:
            raise Unreadable(f"the artifacts of node {written['id']}: {error}") from error
        return written

    def _located(self, artifact: dict[str, Any]) -> dict[str, Any]:
        """With the bucket beside the key, as readers of both versions want it (§14)."""
        place = artifact.get("s3")
        if not place or not place.get("key") or place.get("bucket"):
            return artifact
        return artifact | {"s3": {**self._repository, **place}}


_object_of = msgspec.json.Decoder(_Object, strict=False).decode
_listed_of = msgspec.json.Decoder(_Listed).decode
_nodes_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_node_of = msgspec.json.Decoder(dict[str, Any]).decode
_document_of = msgspec.json.Decoder(dict[str, Any]).decode


def read(text: Text) -> Seen:
    """Raises Unreadable."""
    try:
        found = _object_of(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    if not found.metadata.name:
        raise Unreadable("it has no name")
    status = found.status or _Status()
    has_nodes = _size(status.nodes) > len("null")
    phase = status.phase or "Pending"
    if phase not in _PHASES:
        raise Unreadable(f"its phase is {phase!r}")
    is_final = phase in FINAL
    return Seen(
        metadata=found.metadata,
        phase=phase,
        message=status.message,
        started_at=_utc(status.started_at),
        # Argo writes both at once; whatever has written one alone has ended it no later.
        finished_at=(_utc(status.finished_at) or _utc(status.started_at) or found.metadata.creation_timestamp)
        if is_final
        else None,
        is_offloaded=bool(status.offload_node_status_version) and not has_nodes and not status.compressed_nodes,
        is_stopping=str(found.spec.active_deadline_seconds) == "0",
        size=_size(text),
        _nodes=status.nodes if has_nodes else None,
        _compressed="" if has_nodes else status.compressed_nodes,
        _repository=_repository(status.artifact_repository_ref),
    )


def read_metadata(text: Text) -> Metadata:
    """Raises Unreadable."""
    try:
        return _listed_of(text).metadata
    except msgspec.DecodeError as error:
        raise Unreadable(str(error)) from error


def _utc(at: datetime | None) -> datetime | None:
    """Argo says all times in UTC. What somebody else has written may lack that, or lie beyond all times."""
    try:
        return at if at is None else at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
    except OverflowError:
        return None


def instead_of_nodes(seen: Seen, why: str) -> NodeDocument:
    """A node that says in the place of others why they are not shown. It stands apart from all that there may be."""
    name = seen.metadata.name
    return {
        "id": f"{name}{_NOT_SHOWN}",
        "name": f"{name}{_NOT_SHOWN}",
        "displayName": "steps not shown",
        "type": "DAG",
        "phase": seen.phase,
        "message": f"The steps of this run are not shown: {why}",
        "startedAt": None if seen.started_at is None else _time(seen.started_at),
        "finishedAt": None if seen.finished_at is None else _time(seen.finished_at),
    }


def of_argo(nodes: Iterable[NodeDocument]) -> tuple[NodeDocument, ...]:
    """Without what stands on record instead of some."""
    return tuple(node for node in nodes if not str(node["id"]).endswith(_NOT_SHOWN))


def _size(text: Text) -> int:
    return memoryview(text).nbytes


def _unpacked(compressed: str) -> bytes:
    try:
        packed = base64.b64decode(compressed, validate=True)
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        text = unpacker.decompress(packed, _LARGEST_NODES_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise Unreadable(f"status.compressedNodes: {error}") from error
    if unpacker.unconsumed_tail:
        raise Unreadable(f"status.compressedNodes: more than {_LARGEST_NODES_BYTES} bytes")
    return text


def _repository(reference: Any) -> Mapping[str, Any]:
    """Where artifacts lie of which only the key is said: from 3.1 on, this is in the status, once."""
    try:
        place = reference["artifactRepository"]["s3"]
        return {key: value for key, value in place.items() if key not in ("key", "keyFormat", "keyPrefix")}
    except (AttributeError, KeyError, TypeError):
        return {}


# Objects to create and to replace


def new_object(submission: Submission) -> dict[str, Any]:
    """The workflow as it is created at first.

    Of the metadata that the manifest's author wrote, only labels and annotations are sent: whoever may create a run
    must not set owners, finalizers or versions of an object.
    """
    metadata = submission.workflow["metadata"]
    labels = {**(metadata.get("labels") or {}), RUN_ID: submission.run_id, SHARD: str(shard_of(submission.run_id))}
    for label in (PERSISTED, _PHASE_LABEL, _COMPLETED_LABEL, _ARCHIVING_LABEL):
        labels.pop(label, None)
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != RECORDED_AT}
    names = {key: metadata[key] for key in ("name", "generateName", "namespace") if metadata.get(key)}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            **names,
            "labels": labels,
            "annotations": annotations | _said_of_itself(submission),
        },
        "spec": submission.workflow["spec"],
    }


def namespace_of(submission: Submission) -> str:
    return str(submission.workflow["metadata"].get("namespace") or "default")


def _said_of_itself(submission: Submission) -> dict[str, str]:
    return {
        ATTEMPT: str(submission.attempt),
        MADE_AS: f"{namespace_of(submission)}/{submission.workflow_name}",
    }


def reopened_object(submission: Submission) -> dict[str, Any]:
    """The workflow of a retried run whose object is gone: it goes on from the nodes on record."""
    written = new_object(submission)
    written["metadata"]["labels"][_PHASE_LABEL] = "Running"
    written["spec"] = _with_deadline_from_retry(written["spec"], submission)
    written["status"] = {
        "phase": "Running",
        "startedAt": _time(submission.started_at or submission.retried_at or datetime.now(UTC)),
        "finishedAt": None,
        "nodes": {str(node["id"]): dict(node) for node in submission.nodes},
    }
    return written


class Reopened(NamedTuple):
    document: dict[str, Any]
    pods: tuple[str, ...]
    """Those of the nodes that run again; under each name that they may have."""


def reopened(text: bytes, submission: Submission) -> Reopened:
    """The object as it is, made to run again from the nodes on record (§15, Retry). Raises Unreadable."""
    seen = read(text)
    written: dict[str, Any] = _document_of(text)
    metadata, status = written["metadata"], written.get("status") or {}
    before = seen.nodes()
    kept = {str(node["id"]): node for node in submission.nodes}
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key not in _OF_AN_END}
    annotations = metadata.get("annotations") or {}
    metadata["labels"] = labels | {
        RUN_ID: submission.run_id,
        SHARD: str(shard_of(submission.run_id)),
        _PHASE_LABEL: "Running",
    }
    metadata["annotations"] = {
        key: value for key, value in annotations.items() if key != RECORDED_AT
    } | _said_of_itself(submission)
    spec = {key: value for key, value in written.get("spec", {}).items() if key not in _STOPS}
    deadline = submission.workflow["spec"].get("activeDeadlineSeconds")
    if deadline is not None:
        spec["activeDeadlineSeconds"] = deadline
    written["spec"] = _with_deadline_from_retry(spec, submission)
    rest = {key: value for key, value in status.items() if key not in _STATUS_OF_AN_END}
    if stored := rest.get(_STORED_SPEC):
        rest[_STORED_SPEC] = {key: value for key, value in stored.items() if key != "shutdown"}
    if results := rest.get(_RESULTS):
        # Else Argo took the results of an earlier pod for those of the one that runs again.
        rest[_RESULTS] = {node_id: is_there for node_id, is_there in results.items() if node_id in kept}
    written["status"] = rest | {
        "phase": "Running",
        "finishedAt": None,
        "nodes": {node_id: _as_before(node, before.get(node_id)) for node_id, node in kept.items()},
    }
    dropped = [_node_of(node) for node_id, node in before.items() if node_id not in kept]
    format_ = annotations.get(_POD_NAMES, "")
    pods = [
        name for node in dropped if node.get("type") == "Pod" for name in pod_names(metadata["name"], node, format_)
    ]
    return Reopened(written, tuple(pods))


_STOPS: Final = frozenset({"activeDeadlineSeconds", "shutdown"})
"""By which we and Argo's own command end a workflow before its time."""
_STORED_SPEC: Final = "storedWorkflowTemplateSpec"
_RESULTS: Final = "taskResultsCompletionStatus"
_OF_AN_END: Final = frozenset({PERSISTED, _PHASE_LABEL, _COMPLETED_LABEL, _ARCHIVING_LABEL})
_STATUS_OF_AN_END: Final = frozenset({"message", "conditions", "compressedNodes", "offloadNodeStatusVersion", "nodes"})


def _as_before(node: NodeDocument, before: msgspec.Raw | None) -> dict[str, Any]:
    """A node that is done keeps every word of Argo's; of its children, those that are still there."""
    if before is None:
        return dict(node)
    written = _node_of(before)
    if written.get("phase") != node.get("phase") or node.get("phase") in _OPEN:
        return dict(node)
    children = {"children": node["children"]} if node.get("children") else {}
    return {key: value for key, value in written.items() if key != "children"} | children


def _with_deadline_from_retry(spec: Mapping[str, Any], submission: Submission) -> dict[str, Any]:
    """Argo counts the deadline of the whole from its start, which stays what it was; ours counts from the retry."""
    deadline, started_at, retried_at = spec.get("activeDeadlineSeconds"), submission.started_at, submission.retried_at
    if not isinstance(deadline, int) or deadline <= 0 or started_at is None or retried_at is None:
        return dict(spec)
    passed_seconds = max(0, int((retried_at - started_at).total_seconds()))
    return {**spec, "activeDeadlineSeconds": deadline + passed_seconds}


def compressed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same object with its nodes as Argo itself packs them where they are too large otherwise."""
    status = dict(document["status"])
    packed = gzip.compress(msgspec.json.encode(status.pop("nodes")), mtime=0)
    return {**document, "status": status | {"compressedNodes": base64.b64encode(packed).decode()}}


# Names of pods


def pod_names(workflow_name: str, node: Mapping[str, Any], format_: str = "") -> tuple[str, ...]:
    """What the pod of a node may be called: one name where the object says which way it is, else both (§3)."""
    node_id = str(node["id"])
    first = (node_id,)
    if node_id == workflow_name or format_ == "v1":
        return first
    template = str(node.get("templateName") or (node.get("templateRef") or {}).get("template") or "")
    prefix = f"{workflow_name}-{template}"[:_LONGEST_POD_PREFIX]
    second = (f"{prefix}-{node_id.rpartition('-')[2]}",)
    return second if format_ == "v2" else first + second


def pod_of(node_id: str, workflow_name: str, pods: Iterable[str]) -> str | None:
    """Which of a workflow's pods is the node's, whichever way they are named: the hash at the end is the same."""
    names = list(pods)
    if node_id in names:
        return node_id
    if node_id == workflow_name:
        return None
    ending = f"-{node_id.rpartition('-')[2]}"
    return next((name for name in names if name.endswith(ending)), None)


def open_steps(nodes: Iterable[NodeDocument]) -> bool:
    """Whether a step is on record that has begun and not ended."""
    return any(node.get("type") == "Pod" and node.get("phase") in _OPEN for node in nodes)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
