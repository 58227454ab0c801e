"""What a service publishes about its operations: an OpenAPI 3.1 document, made from the structs of the wire.

A service describes its operations as data, in the module `openapi` beside its routes. Schemas are derived from the same
annotations that `shared.protojson` reads and writes by, so that they cannot say anything else. Operation ids and names
of schemas are those of the published reference: who generated a client from that finds everything here.

The gateway merges the documents of all services. This module knows no resource and is imported when first asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum, StrEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec

from shared.listing import Listing
from shared.protojson import Int64
from shared.references import Relationship, ResourceType, WireReference, WireReferenceKey

HOST: Final = "http://127.0.0.1:8888"
"""Stands for the gateway in examples; the gateway writes its own address in its place."""

STATUS: Final = "apiStatus"

_NAMES: Final[Mapping[type, str]] = {
    ResourceType: "apiResourceType",
    Relationship: "apiRelationship",
    WireReference: "apiResourceReference",
    WireReferenceKey: "apiResourceKey",
}
_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_JSON: Final = "application/json"
_TEXT: Final = "text/plain"
_EVENTS: Final = "text/event-stream"

Schema = dict[str, Any]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    method: str
    path: str
    """As clients write it, with a verb after its colon."""
    tag: str
    summary: str
    notes: str = ""
    """Markdown."""
    body: type[msgspec.Struct] | type[str] | None = None
    body_example: Mapping[str, Any] | None = None
    """Is accepted as it stands, at least where nobody has taken its name yet."""
    takes_file: bool = False
    """The body is a form with a file, `uploadfile`."""
    query: type[msgspec.Struct] | None = None
    query_without: frozenset[str] = frozenset()
    """Fields of `query` that this operation does not read."""
    lists: Listing | None = None
    """What `sort_by` and `filter` may name."""
    beyond: frozenset[str] = frozenset()
    """The keys of `lists` that the original does not have."""
    may_be_repeated: bool = False
    """Takes an Idempotency-Key."""
    answer: type[msgspec.Struct] | None = None
    """None: an empty object."""
    answers_text: bool = False
    """Plain text instead, of any length."""
    answers_events: bool = False
    """Server-sent events instead, without end."""
    answers_parts: bool = False
    """Bytes instead, whole or the part that a Range header asks for."""
    refusal: type[msgspec.Struct] | None = None
    """The body of errors, where it is not the one of all other operations."""
    never_succeeds: bool = False
    example: str = ""
    """What to paste into a shell; says HOST where the gateway is meant and works on any installation."""


def describe(service: str, operations: Iterable[Operation], names: Mapping[type, str]) -> bytes:
    """The service's document. `names`: what schemas are called that are not `api` and the struct's own name."""
    schemas = _Schemas({**_NAMES, **names})
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    document = {
        "openapi": "3.1.0",
        "info": {"title": f"Headrace: {service}", "version": "v1beta1"},
        "paths": paths,
        "components": {"schemas": {**schemas.made, **_ERRORS}},
    }
    return msgspec.json.encode(document)


def captured(variable: str, command: str, path: str = '["id"]') -> str:
    """A line of shell: run the command and keep what its JSON answer holds at `path`."""
    return f"{variable}=$({command} | python3 -c 'import json, sys; print(json.load(sys.stdin){path})')"


_MANIFEST: Final = (
    '{\\"apiVersion\\":\\"argoproj.io/v1alpha1\\",\\"kind\\":\\"Workflow\\",\\"metadata\\":{\\"generateName\\":\\"hello-\\"},'
    '\\"spec\\":{\\"entrypoint\\":\\"hello\\",\\"templates\\":[{\\"name\\":\\"hello\\",'
    '\\"container\\":{\\"image\\":\\"python:3.11\\",\\"command\\":[\\"echo\\",\\"hello\\"]}}]}}'
)
A_RUN: Final = captured(
    "RUN",
    f"""curl -sS {HOST}/apis/v1beta1/runs """
    f"""-d '{{"name":"hello","pipeline_spec":{{"workflow_manifest":"{_MANIFEST}"}}}}'""",
    '["run"]["id"]',
)
"""A line of shell that starts a run, for examples that are about one: `$RUN` is its id."""


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [
            *_path_parameters(operation.path),
            *_query_parameters(operation, schemas),
            *_header_parameters(operation),
        ],
        "responses": _responses(operation, schemas),
    }
    example = f"```sh\n{operation.example.strip()}\n```" if operation.example else ""
    if text := "\n\n".join(filter(None, (operation.notes, example))):
        described["description"] = text
    if operation.takes_file:
        form = {
            "type": "object",
            "properties": {"uploadfile": {"type": "string", "format": "binary"}},
            "required": ["uploadfile"],
        }
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    elif operation.body is not None:
        content: dict[str, Any] = {"schema": schemas.of(operation.body)}
        if operation.body_example is not None:
            content["example"] = operation.body_example
        described["requestBody"] = {"required": True, "content": {_JSON: content}}
    return described


def _responses(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    status: Schema = {"$ref": f"#/components/schemas/{STATUS}"}
    error = {_JSON: {"schema": status}}
    if operation.refusal is not None:
        error = {_TEXT: {"schema": schemas.of(operation.refusal)}}
    responses: dict[str, Any] = {"default": {"description": "Refused, or failed.", "content": error}}
    if operation.may_be_repeated:
        responses["409"] = {"description": "The key came with another request, or a name is taken.", "content": error}
    if operation.never_succeeds:
        return responses
    if operation.answers_parts:
        return {**_whole_or_part(error), **responses}
    answer: Schema = {"type": "object"} if operation.answer is None else schemas.of(operation.answer)
    text = _TEXT if operation.answers_text else _EVENTS if operation.answers_events else None
    success = {_JSON: {"schema": answer}} if text is None else {text: {"schema": {"type": "string"}}}
    return {"200": {"description": "Done.", "content": success}, **responses}


def _whole_or_part(error: dict[str, Any]) -> dict[str, Any]:
    """RFC 9110, section 14."""

    def header(description: str) -> dict[str, Any]:
        return {"description": description, "schema": {"type": "string"}}

    always = {
        "Accept-Ranges": header("`bytes`."),
        "ETag": header("Another one as soon as the bytes are others."),
        "Content-Disposition": header("The name under which it lies in the store."),
    }
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    extent = {"Content-Range": header("Which bytes these are, and of how many: `bytes 0-99/1234`.")}
    return {
        "200": {"description": "All of it.", "headers": always, "content": content},
        "206": {"description": "The part that was asked for.", "headers": {**always, **extent}, "content": content},
        "416": {
            "description": "There is no byte of what was asked for.",
            "headers": {"Content-Range": header("Of how many bytes it is: `bytes */1234`.")},
            "content": error,
        },
    }


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in _VARIABLE.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(operation: Operation, schemas: _Schemas) -> Iterator[dict[str, Any]]:
    if operation.query is None:
        return
    for name, schema in _flat(operation.query, schemas):
        if name.partition(".")[0] not in operation.query_without:
            parameter = {"name": name, "in": "query", "schema": schema}
            if name in _PARAMETERS:
                parameter["description"] = _PARAMETERS[name] + _keys(operation, name)
            yield parameter


def _keys(operation: Operation, parameter: str) -> str:
    """What a list can be sorted and filtered by, as it stands in the code that does it."""
    if operation.lists is None or parameter not in ("sort_by", "filter"):
        return ""
    named = [f"`{key}`" for key in operation.lists.fields if key not in operation.beyond]
    if parameter == "sort_by":
        named.extend(f"`{family}NAME`" for family in operation.lists.families)
    further = ", ".join(f"`{key}`" for key in operation.lists.fields if key in operation.beyond)
    return f" Keys: {', '.join(named)}" + (f"; beyond the original {further}." if further else ".")


def _header_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    def header(name: str, description: str, **schema: Any) -> dict[str, Any]:
        return {"name": name, "in": "header", "description": description, "schema": {"type": "string", **schema}}

    if operation.may_be_repeated:
        # Not with this module, which the gateway imports too: it needs no database.
        from shared import idempotency

        text = (
            "A word of your own for this creation. Repeated under it within "
            f"{idempotency.KEPT_HOURS} hours, by the same caller and with the same request, "
            "it creates nothing and is given the first answer again, byte for byte."
        )
        yield header(idempotency.HEADER, text, pattern=f"^{idempotency.KEY_PATTERN}$")
    if operation.answers_parts:
        yield header("Range", "One part of it: `bytes=0-99`, `bytes=100-`, `bytes=-100`.")
        yield header("If-Range", "The `ETag` of the part that you have: of what has changed since, all is sent.")


def _flat(kind: type[msgspec.Struct], schemas: _Schemas, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """A message as a query writes it: `resource_reference_key.type`."""
    for field in msgspec.structs.fields(kind):
        bare = _bare(field.type)
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            yield from _flat(bare, schemas, f"{prefix}{field.encode_name}.")
        else:
            yield prefix + field.encode_name, schemas.of(field.type)


class _Schemas:
    """Schemas of annotations, collected by name. The cases are those of `shared.protojson`."""

    def __init__(self, names: Mapping[type, str]) -> None:
        self._names = names
        self.made: dict[str, Schema] = {}

    def of(self, annotation: Any) -> Schema:
        bare = _bare(annotation)
        if annotation == Int64 or Int64 in get_args(annotation):
            return {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
        if bare in _PLAIN:
            return dict(_PLAIN[bare])
        origin = get_origin(bare)
        if origin in (tuple, list, Sequence):
            return {"type": "array", "items": self.of(get_args(bare)[0])}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.of(get_args(bare)[1])}
        if isinstance(bare, type) and issubclass(bare, (Enum, msgspec.Struct)):
            return self._named(bare)
        raise TypeError(f"{annotation!r} has no schema")

    def _named(self, kind: type[Enum] | type[msgspec.Struct]) -> Schema:
        name = self._names.get(kind) or "api" + kind.__name__.removeprefix("Wire")
        if name not in self.made:
            self.made[name] = {}  # Its place, while its fields may refer to it.
            self.made[name] = self._of_enum(kind) if issubclass(kind, Enum) else self._of_struct(kind)
        return {"$ref": f"#/components/schemas/{name}"}

    def _of_enum(self, kind: type[Enum]) -> Schema:
        return {"type": "string", "enum": [each.value if issubclass(kind, StrEnum) else each.name for each in kind]}

    def _of_struct(self, kind: type[msgspec.Struct]) -> Schema:
        properties = {field.encode_name: self.of(field.type) for field in msgspec.structs.fields(kind)}
        return {"type": "object", "properties": properties}


def _bare(annotation: Any) -> Any:
    """Without `| None`, which says how absence is written, and without `Annotated`."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


_PLAIN: Final[Mapping[Any, Schema]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int32"},
    float: {"type": "number", "format": "double"},
    bytes: {"type": "string", "format": "byte"},
    datetime: {"type": "string", "format": "date-time"},
}

_ERRORS: Final[Mapping[str, Schema]] = {
    STATUS: {
        "type": "object",
        "description": "Why a request was refused.",
        "properties": {
            "error": {"type": "string", "description": "The technical text, outermost layer first."},
            "message": {"type": "string", "description": "The same as `error`."},
            "code": {"type": "integer", "format": "int32", "description": "The gRPC status number."},
            "details": {"type": "array", "items": {"$ref": "#/components/schemas/apiError"}},
        },
        "required": ["error", "code"],
    },
    "apiError": {
        "type": "object",
        "properties": {
            "@type": {"type": "string"},
            "error_message": {"type": "string", "description": "The text for people."},
            "error_details": {"type": "string"},
        },
    },
}

_PARAMETERS: Final[Mapping[str, str]] = {
    "page_token": "The `next_page_token` of the page before; absent for the first page.",
    "page_size": "Rows on a page: 20 unless given, at most 200.",
    "sort_by": "A key, then `asc` or `desc`: `created_at desc`.",
    "filter": (
        'A filter as JSON: `{"predicates":[{"key":"name","op":"IS_SUBSTRING","string_value":"train"}]}`. Operators: '
        "EQUALS, NOT_EQUALS, GREATER_THAN, GREATER_THAN_EQUALS, LESS_THAN, LESS_THAN_EQUALS, IN, IS_SUBSTRING."
    ),
    "resource_reference_key.type": "With the id beside it: only what refers to this resource.",
    "resource_key.type": "PIPELINE: versions belong to nothing else.",
    "resource_key.id": "The pipeline whose versions are listed.",
    "follow": "Keep on until the step ends.",
}
