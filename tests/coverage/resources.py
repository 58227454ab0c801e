"""Which tests are about which resource: by the operations that they had answered, else by the folder they lie in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from tests.coverage.evidence import Ended, Witness, Witnesses

KINDS: Final = ("unit", "integration", "contract", "component", "system", "chaos")
"""The folders of tests."""

_OF_OPERATIONS: Final[Mapping[str, str]] = {
    "experiments": r"E\d",
    "pipelines": r"P[1-58]",
    "uploads": r"P[67]",
    "pipeline versions": r"V\d",
    "runs": r"R[1-8]",
    "metrics": r"R9",
    "artifacts": r"R10|artifact",
    "logs": r"X7.*",
    "recurring runs (jobs)": r"J\d",
    "reports of agents": r"X[23]",
    "visualizations": r"X4.*",
    "health, access, figures": r"X[158]|engine|livez|readyz|startupz",
    "events": r"events|run-events|dead|webhooks?|deliveries",
    "documentation": r"docs|openapi|asyncapi",
}
_OF_FOLDERS: Final[Mapping[str, str]] = {
    "experiments": "component/experiment",
    "pipelines": "unit/pipeline_registry|component/pipeline_registry",
    "runs": "unit/run|component/run",
    "metrics": "component/metrics",
    "recurring runs (jobs)": "unit/job_scheduler|component/job_scheduler",
    "events": "unit/notifier|component/notifier",
    "engine and its steps": "unit/engine|contract/engine|integration/runtime",
    "gateway": "unit/gateway|integration/gateway",
    "facts, questions, lists, wire format": "unit/(shared|contracts|test_)|integration/(shared|nervous_system)",
    "installation and command": "unit/cli|integration/embedded|system|chaos|bench|containers",
}
RESOURCES: Final = tuple(dict.fromkeys((*_OF_OPERATIONS, *_OF_FOLDERS, "others")))


class Count(msgspec.Struct, kw_only=True):
    passed: Counter[str] = msgspec.field(default_factory=Counter)
    """By kind."""
    gaps: int = 0
    """Skipped, failed, or expected to fail."""


def counts(witnesses: Witnesses) -> dict[str, Count]:
    """A test counts for each resource that it is about."""
    found = {resource: Count() for resource in RESOURCES}
    for witness in witnesses.tests:
        for resource in set(_resources_of(witness)):
            if witness.ended is Ended.PASSED:
                found[resource].passed[_kind_of(witness)] += 1
            else:
                found[resource].gaps += 1
    return found


def _resources_of(witness: Witness) -> Iterator[str]:
    by_wire = [
        resource
        for operation in witness.heard
        for resource, pattern in _OF_OPERATIONS.items()
        if re.fullmatch(pattern, operation)
    ]
    yield from by_wire
    if not by_wire:
        place = witness.test.removeprefix("tests/")
        by_place = [resource for resource, pattern in _OF_FOLDERS.items() if re.match(pattern, place)]
        yield from by_place or ["others"]


def _kind_of(witness: Witness) -> str:
    return witness.test.removeprefix("tests/").partition("/")[0]
