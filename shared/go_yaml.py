"""YAML as the original server reads it: what Go's yaml.v2 makes of a text, in the types of JSON.

The work is bounded by the length of the text and by `LARGEST_EXPANDED_BYTES`: aliases and merge keys count as often
as they are used. Nothing is kept of the parser's events, because a tree of nodes takes ten times the memory of what it
says. Knows nothing of what is written in YAML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from shared import scalars

LARGEST_EXPANDED_BYTES: Final = 64 * 1024 * 1024
"""Of all that the aliases of a document stand for."""

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_PENDING: Final = object()
"""Stands for an anchored value that is still being read."""


class NotYaml(ValueError):
    """The text is refused; the message says why and, where it can, in which line."""


def load(text: str, *, only: bool = False) -> Any:
    """The first document: dicts by text, lists, texts, finite numbers, booleans and None. None where there is none.

    What an alias stands for is the same object in every place. Raises NotYaml; with `only` also where another document
    follows.
    """
    try:
        parser = _Parser(text.removeprefix("\ufeff"))
        try:
            return _Document(parser.get_event).read(only=only)
        finally:
            parser.dispose()
    except RecursionError:
        raise NotYaml("the document is nested too deeply") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise NotYaml(" ".join(str(error).split())[:500]) from error


class _Document:
    def __init__(self, next_event: Callable[[], Any]) -> None:
        self._next = next_event
        self._anchors: dict[str, tuple[Any, int]] = {}
        """By anchor, the value and its weight."""
        self._keys: dict[str, str] = {}
        """Each key once: the same few stand in a manifest ten thousand times."""
        self._weight = 0
        """Of all that has been read, in bytes of text, with what aliases stand for."""
        self._expanded = 0
        """The aliases' share of it."""

    def read(self, *, only: bool) -> Any:
        self._next()  # The stream begins.
        if type(self._next()) is StreamEndEvent:
            return None
        value = self._value(self._next())
        if only:
            self._next()  # The document ends.
            if type(self._next()) is not StreamEndEvent:
                raise NotYaml("another document follows the first one")
        return value

    def _value(self, event: Any) -> Any:
        kind = type(event)
        if kind is AliasEvent:
            return self._aliased(event.anchor)
        anchor, before = event.anchor, self._weight
        if anchor is not None:
            self._anchors[anchor] = (_PENDING, 0)
        if kind is ScalarEvent:
            value = _scalar(event)
            self._weight += len(event.value) + 3
        elif kind is SequenceStartEvent:
            value = self._sequence(event)
        else:
            value = self._mapping(event)
        if anchor is not None:
            self._anchors[anchor] = (value, self._weight - before)
        return value

    def _aliased(self, anchor: str) -> Any:
        if anchor not in self._anchors:
            raise NotYaml(f"there is no anchor '{anchor}' in front of its alias")
        value, weight = self._anchors[anchor]
        if value is _PENDING:
            raise NotYaml("an alias stands inside of what it stands for")
        self._weight += weight
        self._expanded += weight
        if self._expanded > LARGEST_EXPANDED_BYTES:
            raise NotYaml("the document is too large once its aliases are expanded")
        return value

    def _sequence(self, event: SequenceStartEvent) -> list[Any]:
        _check_tag(event, "seq")
        self._weight += 2
        items = []
        while type(each := self._next()) is not SequenceEndEvent:
            items.append(self._value(each))
        return items

    def _mapping(self, event: MappingStartEvent) -> dict[str, Any]:
        _check_tag(event, "map")
        self._weight += 2
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while type(each := self._next()) is not MappingEndEvent:
            if type(each) is ScalarEvent and each.value == "<<" and each.implicit[0]:
                for source in _sources(self._value(self._next())):
                    merged.update(source)
                continue
            key = _key(self._value(each))
            own[self._keys.setdefault(key, key)] = self._value(self._next())
        return merged | own if merged else own


def _sources(value: Any) -> Iterator[dict[str, Any]]:
    """The mappings that a merge key names, the one that wins at last."""
    for each in reversed(value) if isinstance(value, list) else (value,):
        if not isinstance(each, dict):
            raise NotYaml("a merge key needs a mapping or a list of mappings")
        yield each


def _key(value: Any) -> str:
    """Two spellings of one key are one key of a JSON object."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float):
        raise NotYaml("a key of a mapping must be text")
    return scalars.as_text(value)


def _scalar(event: Any) -> Any:
    if event.tag is not None:
        return _tagged(event.tag.removeprefix(_TAG), event.value)
    return _finite(scalars.plain(event.value)) if event.implicit[0] else event.value


def _finite(value: Any) -> Any:
    if type(value) is not float:
        return value
    if not math.isfinite(value):
        raise NotYaml(f"{value} is no number of JSON")
    return scalars.json_number(value)


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "!": (str,),
    "str": (str,),
    "timestamp": (str,),
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
}
"""What a scalar with this tag may say."""


def _tagged(tag: str, text: str) -> Any:
    types = _TYPES.get(tag, ())
    value = text if str in types else scalars.plain(text)
    if type(value) not in types:
        raise NotYaml(f"`{text[:100]}` cannot be read as {tag}")
    return _finite(value)


def _check_tag(event: SequenceStartEvent | MappingStartEvent, expected: str) -> None:
    if event.tag not in (None, _TAG + expected):
        raise NotYaml(f"the tag {event.tag} is not supported")
