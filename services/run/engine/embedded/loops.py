"""Loops: what withItems, withParam and withSequence expand to, and how an item reads as text (specification §8).

The number of an item is its place in the list; nothing here knows what is called with it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

from services.run.engine.embedded.manifest import ManifestError, Sequence, Task, scalar_text

if TYPE_CHECKING:
    from services.run.engine.embedded.template import Lookup


class Number(str):
    """A number of a JSON text, as it was written there."""

    __slots__ = ()


def expand(task: Task) -> list[Any]:
    """The items of an expanding task whose placeholders are already replaced.

    Raises ManifestError, in words for the node's message, when there is no list to be had.
    """
    if task.with_items is not None:
        return task.with_items
    if task.with_param is not None:
        return _parse_param(task.with_param)
    if task.with_sequence is not None:
        return list(_sequence(task.with_sequence))
    raise ManifestError(f"task '{task.name}' does not expand")


def _parse_param(text: str) -> list[Any]:
    reason = "not a list"
    try:
        items = json.loads(text.strip(), parse_int=Number, parse_float=Number)
    except (ValueError, RecursionError) as error:
        reason, items = str(error), None
    if not isinstance(items, list):
        raise ManifestError(f"withParam value could not be parsed as a JSON list: {text}: {reason}")
    return items


_FORMAT = re.compile(r"%[-+ 0#]*\d{0,2}[dxXo]")
_LONGEST_SEQUENCE = 100_000
"""A bound on what a dozen characters of a manifest can make of memory."""


def _sequence(sequence: Sequence) -> tuple[str, ...]:
    """Counts up, or down when start lies above end; both ends belong to it."""
    start = _whole(sequence.start or "0", "start")
    if sequence.count is not None:
        count = _whole(sequence.count, "count")
        numbers = range(start, start + max(count, 0))
    elif sequence.end is not None:
        end = _whole(sequence.end, "end")
        numbers = range(start, end + 1) if start <= end else range(start, end - 1, -1)
    else:
        raise ManifestError("must provide count or end in withSequence")
    if abs(numbers.stop - numbers.start) > _LONGEST_SEQUENCE:
        raise ManifestError(f"withSequence has more than {_LONGEST_SEQUENCE} items")
    if sequence.format is None:
        return tuple(map(str, numbers))
    if len(_FORMAT.findall(sequence.format)) != 1 or sequence.format.replace("%%", "").count("%") != 1:
        raise ManifestError(f"withSequence format '{sequence.format}' must hold one integer verb")
    return tuple(sequence.format % number for number in numbers)


def _whole(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ManifestError(f"withSequence {what} '{text}' is not an integer") from None


def item_value(item: Any) -> str:
    """What `{{item}}` stands for. Strings go in decoded, as one level of JSON was all there was."""
    if isinstance(item, dict | list):
        return compact_json(item)
    return "null" if item is None else scalar_text(item)


def item_text(item: Any) -> str:
    """The item as part of a node's name."""
    if isinstance(item, dict):
        return ",".join(f"{key}:{item_text(item[key])}" for key in sorted(item))
    if isinstance(item, list):
        return f"[{' '.join(map(item_text, item))}]"
    return item_value(item)


def item_lookup(item: Any) -> Lookup:
    """Answers `item` and, for a mapping, `item.K`. An unknown `item.K` is an error of the task."""

    def look_up(name: str) -> str | None:
        if name == "item":
            return item_value(item)
        if not name.startswith("item."):
            return None
        key = name.removeprefix("item.")
        if not isinstance(item, dict) or key not in item:
            raise ManifestError(f"failed to resolve {{{{{name}}}}}")
        return item_value(item[key])

    return look_up


def compact_json(value: Any) -> str:
    """JSON without blanks, keys sorted, numbers as they were written; non-ASCII stays readable."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(str(key))}:{compact_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(compact_json, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return "null" if value is None else scalar_text(value)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
