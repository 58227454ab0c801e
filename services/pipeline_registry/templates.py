"""From the text of a pipeline to a workflow: shape, parameters and canonical form (API specification, section 8.3).

Pure, and meant to run where time and memory are bounded: YAML can say very much in very few bytes.

It checks what can be said without knowing an engine: that this is a workflow, and that it holds together. Whether it
could run is decided when a run is created.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from shared import go_yaml, scalars
from shared.errors import InvalidInput

from .domain import Parameter, unparsable
from .lint import lint
from .shapes import Document, mapping, mappings

LARGEST_PARAMETERS_BYTES: Final = 10_000

_API_VERSION: Final = "argoproj.io/v1alpha1"
_KIND: Final = "Workflow"
_V2_COMPATIBLE: Final = "pipelines.kubeflow.org/v2_pipeline"
_PIPELINE_NAME: Final = "pipeline-name"


class Template(msgspec.Struct, frozen=True, kw_only=True):
    manifest: str
    parameters: tuple[Parameter, ...]


def read_template(text: str, pipeline_name: str) -> Template:
    """Raises InvalidInput. A v2-compatible workflow learns the name of its pipeline."""
    document = _plain(_load(text))
    _check_kind(document)
    _check_shape(document)
    lint(document)
    if _annotations(document).get(_V2_COMPATIBLE) == "true":
        _set_pipeline_name(document, pipeline_name)
    parameters = _parameters(document)
    _check_size(parameters)
    return Template(manifest=msgspec.json.encode(_completed(document)).decode(), parameters=parameters)


# Reading.


def _load(text: str) -> Any:
    """The first document, in the types of JSON."""
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        # JSON is nearly YAML: it may hold tabs and escaped surrogates.
        try:
            return msgspec.json.decode(text.removeprefix("\ufeff"))
        except (msgspec.DecodeError, RecursionError):
            pass
    try:
        return go_yaml.load(text)
    except go_yaml.NotYaml as error:
        raise unparsable(str(error)) from error


# One plain form: text wherever Go has a string, numbers as Go writes them, and nothing that no database could hold.


_ROLES: Final[dict[str, dict[str, str]]] = {
    "workflow": {
        "arguments": "values",
        "inputs": "values",
        "outputs": "values",
        "container": "container",
        "script": "container",
        "initContainers": "container",
        "sidecars": "container",
        "metadata": "metadata",
        "when": "text",
        "withItems": "item",
    },
    "values": {"parameters": "parameter"},
    "parameter": {"value": "value", "default": "value"},
    "container": {"command": "text", "args": "text", "env": "variable"},
    "variable": {"value": "text"},
    "metadata": {"labels": "text", "annotations": "text"},
    "text": {},
    "item": {},
}
"""What a part of the document is for, by where it stands: the role of the whole, a key in it, the role of the part."""


def _plain(document: Any) -> Any:
    try:
        return _plain_value(document, "workflow")
    except RecursionError:
        raise unparsable("the document is nested too deeply") from None


def _plain_value(value: Any, role: str) -> Any:
    match value:
        case str():
            return _plain_text(value)
        case None:
            return None
        case _ if role == "value":
            return scalars.as_text(_plain_value(value, "item"))
        case dict():
            return {_plain_text(key): _plain_value(inner, _role_of(key, role)) for key, inner in value.items()}
        case list():
            return [_plain_value(inner, role) for inner in value]
        case _ if role == "text":
            return scalars.as_text(value)
        case float():
            return scalars.json_number(value)
        case _:
            return value


def _role_of(key: str, role: str) -> str:
    # Whatever stands in a loop's item is the item's, and a mapping of texts holds texts.
    otherwise = role if role in ("item", "text") else "workflow"
    return _ROLES[role].get(key, otherwise)


def _plain_text(text: str) -> str:
    if "\x00" in text:
        raise unparsable("text must not hold a NUL character")
    return text


# Checks.


def _check_kind(document: Any) -> None:
    given = document if isinstance(document, dict) else {}
    api_version, kind = given.get("apiVersion"), given.get("kind")
    if not (str(api_version).startswith("argoproj.io/") or kind == _KIND):
        raise InvalidInput("unknown template format", cause="pipeline spec is invalid")
    if api_version != _API_VERSION:
        raise InvalidInput(f"Unsupported argo version. Expected: {_API_VERSION}. Received: {api_version or ''}")
    if kind != _KIND:
        raise InvalidInput(f"Unexpected resource type. Expected: {_KIND}. Received: {kind or ''}")


def _check_shape(document: Document) -> None:
    for name, value in _annotations(document).items():
        if not isinstance(value, (str, type(None))):
            raise unparsable(f"metadata.annotations.{name} must be text")


def _check_size(parameters: tuple[Parameter, ...]) -> None:
    """Measured as Go writes the list: `<`, `>` and `&` are escaped to six bytes."""
    written = msgspec.json.encode(parameters)
    size_bytes = len(written) + 5 * sum(written.count(byte) for byte in (b"<", b">", b"&"))
    if size_bytes > LARGEST_PARAMETERS_BYTES:
        raise InvalidInput(f"The input parameter length exceed maximum size of {LARGEST_PARAMETERS_BYTES}.")


# Parts.


def _annotations(document: Document) -> Document:
    return mapping(mapping(document, "metadata", "metadata"), "annotations", "metadata.annotations")


def _declared(document: Document) -> Iterator[dict[str, Any]]:
    arguments = mapping(mapping(document, "spec", "spec"), "arguments", "spec.arguments")
    return (cast("dict[str, Any]", each) for _, each in mappings(arguments, "parameters", "spec.arguments.parameters"))


def _parameters(document: Document) -> tuple[Parameter, ...]:
    return tuple(Parameter(name=given["name"], value=given.get("value")) for given in _declared(document))


def _set_pipeline_name(document: Document, pipeline_name: str) -> None:
    for parameter in _declared(document):
        if parameter["name"] == _PIPELINE_NAME:
            parameter["value"] = f"pipeline/{pipeline_name}"


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """The workflow with what the original adds when it writes one (API specification, section 14.1)."""
    spec = dict(document.get("spec") or {})
    spec["arguments"] = spec.get("arguments") or {}
    if spec.get("templates"):
        spec["templates"] = [_completed_template(template) for template in spec["templates"]]
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": {**(document.get("metadata") or {}), "creationTimestamp": None},
        "spec": spec,
        "status": {"startedAt": None, "finishedAt": None},
    }


def _completed_template(template: dict[str, Any]) -> dict[str, Any]:
    completed = {**template, **{part: template.get(part) or {} for part in ("inputs", "outputs", "metadata")}}
    for part in ("container", "script"):
        if isinstance(completed.get(part), dict):
            completed[part] = {**completed[part], "resources": completed[part].get("resources") or {}}
    return completed
