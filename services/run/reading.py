"""The reading of a manifest: what all its runs have in common, and whether the engine would take them.

Pure. A small one is read where it is needed; a large one, and one that holds YAML of its own, in a process of its own,
by `read`. Knows no run record and no cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec

from shared.pipeline_spec import LARGEST_PARAMETERS_BYTES

from . import compose
from .domain import EngineName, Run, RunId, WorkflowName
from .engine.embedded.machine import Machine

WORK: Final = f"{__name__}:read"
"""For `shared.readers`."""
MOST_WORKFLOW_BYTES: Final = 1024 * 1024

_LARGEST_ANNOTATIONS_BYTES = 256 * 1024
_LARGEST_OF_A_RUN_BYTES = LARGEST_PARAMETERS_BYTES + 6 * 1024
"""Its parameters, its names, and what an engine writes beside."""
_WORD = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run it, as far as that decides what is refused."""

    engine: EngineName = EngineName.EMBEDDED
    machine: Machine = Machine()
    """That the embedded engine's steps run on."""
    most_workflow_bytes: int = MOST_WORKFLOW_BYTES
    """That Argo's cluster takes."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    prepared: compose.Prepared
    refusal: str = ""
    """Why the engine would refuse to run it."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    digest: str
    rules: compose.Rules
    runner: Runner | None
    """None: nobody wants to know what it would refuse."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A reading, or why there is none."""

    reading: Reading | None = None
    malformation: str = ""
    another_kind: str = ""

    def get(self) -> Reading:
        """Raises compose.Malformed or compose.OfAnotherKind."""
        if self.another_kind:
            raise compose.OfAnotherKind(self.another_kind)
        if self.reading is None:
            raise compose.Malformed(self.malformation)
        return self.reading


def read(request: bytes) -> bytes:
    """An answer to a request. The answer is JSON, as large parts of it are already."""
    asked = msgspec.msgpack.decode(request, type=Request)
    return msgspec.json.encode(_read(asked))


def _read(asked: Request) -> Answer:
    try:
        prepared = compose.prepare(asked.text, asked.digest, asked.rules)
    except compose.Malformed as error:
        return Answer(malformation=str(error))
    except compose.OfAnotherKind as error:
        return Answer(another_kind=str(error))
    refusal = judge(prepared, asked.runner) if asked.runner else ""
    # Who asked has the text.
    return Answer(reading=Reading(prepared=msgspec.structs.replace(prepared, text=""), refusal=refusal))


def judge(prepared: compose.Prepared, runner: Runner) -> str:
    """Why it would not be run; empty where it would. Arguments decide nothing here."""
    from .engine.embedded.manifest import ManifestError

    text = compose.workflow(prepared, msgspec.structs.replace(_NOBODYS, engine=runner.engine))
    workflow = cast("Mapping[str, Any]", msgspec.json.decode(text))
    try:
        validate(workflow, runner)
    except ManifestError as error:
        return error.reason
    return _unfit_for_cluster(workflow, len(text), runner) if runner.engine is EngineName.ARGO else ""


def validate(workflow: Mapping[str, object], runner: Runner) -> None:
    """Raises the engine's ManifestError."""
    # Imported with the first creation: most of the engine is not the service's business.
    from .engine.embedded import manifest, validation

    parsed = manifest.parse(workflow)
    if runner.engine is EngineName.EMBEDDED:
        # First what it is called: whoever uses another engine's feature is told so, not what is missing without it.
        validation.refuse_unsupported(parsed, runner.machine)
    # What no engine could run is refused for every one.
    validation.validate(parsed)


def _unfit_for_cluster(workflow: Mapping[str, Any], size: int, runner: Runner) -> str:
    """What an API server refuses of any object, which would come out only after the creation; empty where nothing."""
    metadata = workflow["metadata"]
    room = runner.most_workflow_bytes - _LARGEST_OF_A_RUN_BYTES
    if size > room:
        return (
            f"the workflow has {size} bytes, and {room} are allowed (HEADRACE_MOST_WORKFLOW_BYTES, less the room for "
            "the parameters of a run): split the pipeline, or let its steps read large texts from artifacts instead of "
            "carrying them in their templates"
        )
    annotations = metadata["annotations"]
    annotated = sum(len(text.encode()) for item in annotations.items() for text in item if isinstance(text, str))
    if annotated > _LARGEST_ANNOTATIONS_BYTES:
        return (
            f"metadata.annotations have {annotated} bytes, and a cluster allows {_LARGEST_ANNOTATIONS_BYTES}: leave "
            "out those that only describe, such as pipelines.kubeflow.org/pipeline_spec"
        )
    for kind in ("labels", "annotations"):
        for key, value in metadata[kind].items():
            domain, slash, word = key.rpartition("/")
            if not _WORD.fullmatch(word) or (slash and not _DOMAIN.fullmatch(domain)):
                return f"metadata.{kind}: '{key}' is no name that a cluster allows"
            if not isinstance(value, str) or (kind == "labels" and value and not _WORD.fullmatch(value)):
                return f"metadata.{kind}.{key}: {msgspec.json.encode(value).decode()} is no value that a cluster allows"
    return ""


_NOBODYS: Final = Run(
    id=RunId("00000000-0000-4000-8000-000000000000"),
    name="",
    experiment_id="",
    namespace="",
    references=(),
    service_account="",
    manifest_digest="",
    workflow_name=WorkflowName("nobodys"),
    created_at=datetime.fromtimestamp(0, UTC),
)
"""A run of no arguments."""
