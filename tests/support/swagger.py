"""Holds answers of v1beta1 against the published reference of both versions (`tests/swagger`).

Stricter than the reference reads: an answer may not hold a field that version 1.8.22 does not know, and formats are
checked, because clients generated from the reference rely on both. What differs on purpose is listed in this module,
with its reason, and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from jsonschema import Draft4Validator, FormatChecker

FOLDER: Final = Path(__file__).parents[1] / "swagger"
_PREFIX: Final = "/apis/v1beta1/"
_VARIABLE = re.compile(r"\{[a-z_]+\}")

NEWEST: Final = "1.8.22"
FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "0.1.38": ("0.1.38.json", "0.1.38-report.json", "0.1.38-visualization.json"),
    NEWEST: ("1.8.22.json", "1.8.22-auth.json", "1.8.22-report.json", "1.8.22-visualization.json"),
}

FIELDS_BEYOND: Final[Mapping[tuple[str, str], str]] = {
    ("apiStatus", "message"): "the original's gateway writes it too; the reference forgot it",
    ("protobufAny", "@type"): "a message in an Any is written with its type and its own fields, not as bytes",
    ("protobufAny", "error_message"): "the field of api.Error",
    ("protobufAny", "error_details"): "the field of api.Error",
    ("apiGetHealthzResponse", "commit_sha"): "the original's own handler writes it, and the interface reads it",
    ("apiGetHealthzResponse", "tag_name"): "the original's own handler writes it, and the interface reads it",
}
"""(Definition, field) that answers may have although version 1.8.22 does not know it."""

OTHER_ERRORS: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    operation: (
        {
            "type": "object",
            "properties": {"error_message": {"type": "string"}, "error_details": {"type": "string"}},
            "required": ["error_message", "error_details"],
            "additionalProperties": False,
        },
        "uploads do not pass the original's gateway and have an error body of their own",
    )
    for operation in ("UploadPipeline", "UploadPipelineVersion")
}
"""Schemas of errors by operation, where they are not apiStatus."""

TEXT_STATUSES: Final[Mapping[int, str]] = {
    301: "the original's router cleans paths by a redirect",
    404: "an unknown path never reaches an operation: the original's router answers in plain text",
    405: "the same for a wrong method",
}
"""Statuses that may come without JSON."""

PLAIN_JSON: Final[Mapping[str, str]] = {
    "GetHealthz": "the original lets its type be guessed from the text",
    "UploadPipeline": "the original writes the status of an error before the type",
    "UploadPipelineVersion": "the original writes the status of an error before the type",
}
"""Operations whose JSON may be announced as plain text."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    version: str
    success: Draft4Validator
    error: Draft4Validator


class NotAsPublished(AssertionError):
    """An answer that a client of the published reference could not read."""


def check(method: str, target: str, status: int, content_type: str, body: bytes) -> None:
    """Raises NotAsPublished. What no version describes is not judged."""
    path = target.partition("?")[0]
    found = list(operations(method, path))
    problems = [
        f"{operation.id} of {operation.version}: {problem}"
        for operation in found
        for problem in _problems(operation, status, content_type, body)
    ]
    if problems:
        shown = body[:1000].decode(errors="replace")
        raise NotAsPublished(f"{method} {target} is answered with {status}:\n{shown}\n" + "\n".join(problems))


def operations(method: str, path: str) -> Iterator[Operation]:
    """The operation that a request asks for, in each version that has it."""
    if not path.startswith(_PREFIX):
        return
    for version in FILES:
        for pattern, asked, operation in published(version):
            if asked == method and pattern.fullmatch(path):
                yield operation
                break


def _problems(operation: Operation, status: int, content_type: str, body: bytes) -> Iterator[str]:
    kind = content_type.partition(";")[0]
    if status in TEXT_STATUSES and kind == "text/plain" and not body.startswith(b"{"):
        return
    if kind != "application/json" and not (kind == "text/plain" and operation.id in PLAIN_JSON):
        yield f"the type is {content_type!r}"
    try:
        document = json.loads(body)
    except ValueError as reason:
        yield f"not JSON: {reason}"
        return
    validator = operation.success if status == 200 else operation.error
    for error in validator.iter_errors(document):
        yield f"{error.json_path}: {error.message[:300]}"


@cache
def published(version: str) -> tuple[tuple[re.Pattern[str], str, Operation], ...]:
    """What a version describes: path, method, operation.

    Patterns in which a variable stands come last: `/pipelines/upload` is not the pipeline of that id.
    """
    found = []
    errors: dict[str, Any] = {}
    for file in FILES[version]:
        document = json.loads((FOLDER / file).read_text())
        # Reports are published without errors; they are refused as everything is.
        errors = errors or {name: document["definitions"][name] for name in ("apiStatus", "protobufAny")}
        definitions = _definitions(version, errors | document["definitions"])
        for path, methods in document["paths"].items():
            # A slash at the end is an empty id, and the user interface's namespace.
            pattern = re.compile(_VARIABLE.sub("[^/:]*", path))
            for method, described in methods.items():
                found.append((path.count("{"), pattern, method.upper(), _operation(version, described, definitions)))
    found.sort(key=lambda each: each[0])
    return tuple((pattern, method, operation) for _, pattern, method, operation in found)


def _operation(version: str, described: dict[str, Any], definitions: dict[str, Any]) -> Operation:
    def validator(schema: dict[str, Any]) -> Draft4Validator:
        return Draft4Validator({"allOf": [schema], "definitions": definitions}, format_checker=_formats)

    name = described["operationId"]
    refusal = described["responses"].get("default", {"schema": {"$ref": "#/definitions/apiStatus"}})["schema"]
    error, _ = OTHER_ERRORS.get(name, (refusal, ""))
    success = described["responses"]["200"]["schema"]
    if not success.get("properties", True):
        success = {"type": "object", "additionalProperties": False}
    return Operation(id=name, version=version, success=validator(success), error=validator(error))


def _definitions(version: str, given: dict[str, Any]) -> dict[str, Any]:
    """Closed in the newest version. An older one is a subset, whose clients skip what they do not know."""
    if version != NEWEST:
        return given
    closed = {}
    for name, schema in given.items():
        if schema.get("type") == "object":
            beyond: dict[str, Any] = {field: {} for definition, field in FIELDS_BEYOND if definition == name}
            closed[name] = {
                **schema,
                "properties": {**schema.get("properties", {}), **beyond},
                "additionalProperties": False,
            }
        else:
            closed[name] = schema
    return closed


_formats = FormatChecker(formats=())


@_formats.checks("date-time", raises=ValueError)
def _is_time(value: object) -> bool:
    """In UTC, without a fraction: what every client's parser reads."""
    return not isinstance(value, str) or bool(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))  # noqa: DTZ007


@_formats.checks("int64")
def _is_int64(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return re.fullmatch(r"-?[0-9]+", value) is not None and -(2**63) <= int(value) < 2**63


@_formats.checks("int32")
def _is_int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@_formats.checks("byte", raises=binascii.Error)
def _is_base64(value: object) -> bool:
    return not isinstance(value, str) or base64.b64decode(value, validate=True) is not None
