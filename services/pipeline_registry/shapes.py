"""The parts of a document whose shape nobody has promised: what should be a mapping, a list or a text, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .domain import unparsable

Document = Mapping[str, Any]


def mapping(parent: Document, key: str, path: str) -> Document:
    """What stands under the key, and an empty mapping where nothing does."""
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise unparsable(f"{path} must be a mapping")
    return value


def sequence(parent: Document, key: str, path: str) -> list[Any]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise unparsable(f"{path} must be a list")
    return value


def mappings(parent: Document, key: str, path: str) -> Iterator[tuple[str, Document]]:
    """The mappings of a list, each with the path it stands at."""
    for index, value in enumerate(sequence(parent, key, path)):
        if not isinstance(value, dict):
            raise unparsable(f"{path}[{index}] must be a mapping")
        yield f"{path}[{index}]", value


def text(parent: Document, key: str, path: str) -> str:
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise unparsable(f"{path} must be text")
    return value
