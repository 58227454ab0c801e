"""The reading of a manifest: what all its runs have in common, and whether the engine would take them.

Pure. A small one is read where it is needed; a large one, and one that holds YAML of its own, in a process of its own,
by `read`. Knows no run record and no cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, cast

import msgspec

from . import compose
from .domain import EngineName, Run, RunId, WorkflowName
from .engine.embedded.machine import Machine

WORK: Final = f"{__name__}:read"
"""For `shared.readers`."""


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run it, as far as that decides what is refused."""

    engine: EngineName = EngineName.EMBEDDED
    machine: Machine = Machine()
    """That the embedded engine's steps run on."""


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

    workflow = cast("Mapping[str, object]", msgspec.json.decode(compose.workflow(prepared, _NOBODYS)))
    try:
        validate(workflow, runner)
    except ManifestError as error:
        return error.reason
    return ""


def validate(workflow: Mapping[str, object], runner: Runner) -> None:
    """Raises the engine's ManifestError."""
    # Imported with the first creation: most of the engine is not the service's business.
    from .engine.embedded import manifest, validation

    parsed = manifest.parse(workflow)
    if runner.engine is not EngineName.EXTERNAL:
        # First what it is called: whoever uses another engine's feature is told so, not what is missing without it.
        validation.refuse_unsupported(parsed, runner.machine)
    # What no engine could run is refused for every one.
    validation.validate(parsed)


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
