"""Paths into a JSON document: kubectl's JSONPath and jq's, as far as they lead to one place (specification §9).

Wildcards, filters and pipes are languages of their own; who writes them is told that they are not known here.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

Part: TypeAlias = str | int
"""A key of a mapping, or an index into a list; a negative one counts from the end."""


class PathError(ValueError):
    """The path cannot be read, or leads nowhere."""


_JSON_PATH_PART = re.compile(r"""\.((?:\\.|[^.\[\]\\*'"()@?])+)|\['([^']+)'\]|\["([^"]+)"\]|\[(-?\d+)\]""")
_JQ_PART = re.compile(r"""\.([A-Za-z_]\w*)|\.?\["([^"\\]+)"\]|\."([^"\\]+)"|\.?\[(-?\d+)\]""")


def read_json_path(text: str) -> tuple[Part, ...]:
    """`{.a.b[0]['c']}`; `{}` and `.` are the whole. Dots that belong to a key are escaped. Raises PathError."""
    path = text.strip().removeprefix("{").removesuffix("}").strip().removeprefix("$")
    return tuple(
        int(index) if index else (dotted.replace("\\.", ".") or single or double)
        for dotted, single, double, index in _parts(_JSON_PATH_PART, path, text)
    )


def read_jq_path(text: str) -> tuple[Part, ...]:
    """`.a.b[0]["c"]`; `.` is the whole. Raises PathError."""
    path = text.strip()
    if not path.startswith("."):
        raise PathError(f"the filter {text} is not supported by the local engine")
    return tuple(
        int(index) if index else (plain or bracketed or quoted)
        for plain, bracketed, quoted, index in _parts(_JQ_PART, path, text)
    )


def _parts(part: re.Pattern[str], path: str, text: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    position = 0 if path != "." else 1
    while position < len(path):
        match = part.match(path, position)
        if match is None:
            raise PathError(f"the path {text} is not supported by the local engine")
        found.append(tuple(group or "" for group in match.groups()))
        position = match.end()
    return found


def follow(document: Any, path: tuple[Part, ...]) -> Any:
    """What lies there. Raises PathError, naming the first part that does not exist."""
    found = document
    for part in path:
        if not isinstance(found, dict | list):
            raise PathError(f"{part} is not found")
        try:
            found = found[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            raise PathError(f"{part} is not found") from None
    return found
