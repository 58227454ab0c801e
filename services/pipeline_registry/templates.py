"""From the text of a pipeline to a workflow: shape, parameters and canonical form (API specification, section 8.3).

Pure, and meant to run where time and memory are bounded: YAML can say very much in very few bytes.

It checks what can be said without knowing an engine: that this is a workflow, and that it holds together. Whether it
could run is decided when a run is created.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, cast

import msgspec
import yaml

from shared.errors import InvalidInput

from .domain import Parameter, unparsable
from .lint import lint
from .shapes import Document, mapping, mappings

LARGEST_PARAMETERS_BYTES: Final = 10_000
LARGEST_EXPANDED_BYTES: Final = 64 * 1024 * 1024
"""Of the document once each alias is replaced by what it stands for."""

_API_VERSION: Final = "argoproj.io/v1alpha1"
_KIND: Final = "Workflow"
_V2_COMPATIBLE: Final = "pipelines.kubeflow.org/v2_pipeline"
_PIPELINE_NAME: Final = "pipeline-name"
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Plain scalars as Go reads them: dates and numbers to the base of sixty are texts."""


_NOT_IN_JSON: Final = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _NOT_IN_JSON]
    for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
}


def _integer(loader: Any, node: Any) -> Any:
    return node.value if ":" in node.value else _SafeLoader.construct_yaml_int(loader, node)


def _float(loader: Any, node: Any) -> Any:
    return node.value if ":" in node.value else _SafeLoader.construct_yaml_float(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def _load(text: str) -> Any:
    """The first document."""
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        # JSON is nearly YAML: it may hold tabs and escaped surrogates.
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            pass
    try:
        loader = _Loader(text)
        try:
            document = loader.get_data() if loader.check_data() else None
        finally:
            loader.dispose()
        _weigh(document, {})
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise unparsable(" ".join(str(error).split())[:500]) from error
    return document


def _weigh(value: Any, known: dict[int, int | None]) -> int:
    """The size of a value with its aliases expanded. Raises ValueError beyond the bound, and where it holds itself."""
    if isinstance(value, str):
        return len(value) + 3
    if not isinstance(value, (dict, list)):
        return 8
    if id(value) in known:
        weight = known[id(value)]
        if weight is None:
            raise ValueError("an alias stands inside of what it stands for")
        return weight
    known[id(value)] = None
    parts = (part for item in value.items() for part in item) if isinstance(value, dict) else iter(value)
    weight = 2 + sum(_weigh(part, known) for part in parts)
    if weight > LARGEST_EXPANDED_BYTES:
        raise ValueError("the document is too large once its aliases are expanded")
    known[id(value)] = weight
    return weight


# One plain form: JSON types, text for keys and for parameters' values.


def _plain(value: Any) -> Any:
    try:
        return _plain_value(value)
    except RecursionError:
        raise unparsable("the document is nested too deeply") from None


def _plain_value(value: Any, role: str = "") -> Any:
    match value:
        case dict():
            # Keys are spelled before they are compared: `1` and `"1"` are one key of a JSON object.
            entries = {_key(key): inner for key, inner in value.items()}
            return {key: _plain_entry(key, inner, role) for key, inner in entries.items()}
        case list():
            return [_plain_value(inner, role) for inner in value]
        case str():
            if "\x00" in value:
                raise unparsable("text must not hold a NUL character")
            return value
        case float() if not math.isfinite(value):
            raise unparsable(f"{value} is no number of JSON")
        case None | bool() | int() | float():
            return value
        case _:
            raise unparsable(f"{type(value).__name__} is no type of JSON")


def _plain_entry(key: str, value: Any, role: str) -> Any:
    """`role` tells where a `value` belongs to a parameter: below `parameters` of arguments, inputs or outputs."""
    if role == "parameter" and key in ("value", "default") and value is not None:
        return scalar_text(_plain_value(value))
    if role == "holder" and key == "parameters":
        return _plain_value(value, "parameter")
    if key in ("arguments", "inputs", "outputs"):
        return _plain_value(value, "holder")
    return _plain_value(value)


def _key(key: Any) -> str:
    match key:
        case str() if "\x00" not in key:
            return key
        case None:
            return "null"
        case bool() | int() | float():
            return scalar_text(key)
        case _:
            raise unparsable("a key of a mapping must be text")


def scalar_text(value: Any) -> str:
    """The text of a value that YAML may have read as a number or a boolean: the shortest decimal, no exponent."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case float() if math.isfinite(value):
            return format(Decimal(repr(value)), "f")
        case dict() | list():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)


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
