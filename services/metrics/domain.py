"""What a metric is, and what is refused (API specification, section 9.8)."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Final, NewType

import msgspec

from shared.errors import NotFound

RunId = NewType("RunId", str)
Key = tuple[str, str]
"""Node and name: what tells the metrics of a run apart."""

LONGEST_NODE_ID_BYTES: Final = 128
NAME_PATTERN: Final = "^[a-zA-Z]([-_a-zA-Z0-9]{0,62}[a-zA-Z0-9])?$"

_NAME = re.compile(NAME_PATTERN.removeprefix("^").removesuffix("$"), re.ASCII)


class Format(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    RAW = "RAW"
    PERCENTAGE = "PERCENTAGE"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    node_id: str
    name: str
    number: float
    format: Format

    @property
    def key(self) -> Key:
        return (self.node_id, self.name)


class Status(StrEnum):
    OK = "OK"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DUPLICATE_REPORTING = "DUPLICATE_REPORTING"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one reported metric."""

    metric: Metric
    status: Status
    message: str = ""


def why_invalid(metric: Metric) -> str | None:
    """None where the metric can be recorded."""
    if not _NAME.fullmatch(metric.name):
        return f"metric.name '{metric.name}' doesn't match with the pattern '{NAME_PATTERN}'"
    if not metric.node_id:
        return "metric.node_id must not be empty"
    if len(metric.node_id.encode()) > LONGEST_NODE_ID_BYTES:
        return f"metric.node_id '{metric.node_id}' cannot be longer than {LONGEST_NODE_ID_BYTES} characters"
    if "\x00" in metric.node_id:
        return "metric.node_id must not hold a NUL character"
    if not math.isfinite(metric.number):
        # Neither a database of the original nor a fact in JSON could hold it.
        return f"metric.number_value {metric.number} is not a finite number"
    return None


def duplicate(metric: Metric) -> str:
    return f"same metric has been reported before: {metric.node_id}/{metric.name}"


def unknown_run(run_id: str) -> NotFound:
    return NotFound.of("Run", run_id)
