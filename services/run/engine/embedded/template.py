"""`{{…}}`: finding tags and putting values in their place (specification §4).

Upstream replaces in the JSON text of a whole template and escapes what it inserts; replacing inside every string of
the parsed structure is the same thing without the escaping. Nothing here knows which names exist: a lookup answers a
tag's name with its text, or with None, and then the tag stays as it is. That includes text that merely looks like a
tag (Jinja, the `{{$.…}}` of v2 launchers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

Lookup = Callable[[str], str | None]
"""From the name in a tag, without braces and blanks, to the text that replaces the tag; None leaves it standing."""

T = TypeVar("T")

_TAG = re.compile(r"\{\{([^{}]*)\}\}")


def fill(value: T, lookup: Lookup) -> T:
    """A copy of a text, list, mapping or struct in which the known tags of every text are replaced.

    One pass: a replacement is not scanned again; callers make another pass where the specification has one.
    Parts without a known tag are shared with the original, not copied.
    """
    return _fill(value, lookup)  # type: ignore[no-any-return]


def _fill(value: Any, lookup: Lookup) -> Any:
    if isinstance(value, str):
        return _fill_text(value, lookup) if "{{" in value else value
    if isinstance(value, msgspec.Struct):
        return _fill_struct(value, lookup)
    if isinstance(value, dict):
        filled = {_fill(key, lookup): _fill(inner, lookup) for key, inner in value.items()}
        return value if filled == value else filled
    if isinstance(value, tuple | list):
        parts = [_fill(inner, lookup) for inner in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _fill_text(text: str, lookup: Lookup) -> str:
    def replacement(match: re.Match[str]) -> str:
        found = lookup(match[1].strip())
        return match[0] if found is None else found

    return _TAG.sub(replacement, text)


def _fill_struct(struct: msgspec.Struct, lookup: Lookup) -> msgspec.Struct:
    changes = {}
    for name in struct.__struct_fields__:
        old = getattr(struct, name)
        if old is None or old == ():
            continue
        new = _fill(old, lookup)
        if new is not old:
            changes[name] = new
    return msgspec.structs.replace(struct, **changes) if changes else struct


def first_of(*lookups: Lookup) -> Lookup:
    """A lookup that asks several in turn."""

    def ask(name: str) -> str | None:
        for lookup in lookups:
            found = lookup(name)
            if found is not None:
                return found
        return None

    return ask


def tags(value: Any) -> Iterator[str]:
    """The names of all tags inside a value, in document order, repetitions included."""
    if isinstance(value, str):
        if "{{" in value:
            for match in _TAG.finditer(value):
                yield match[1].strip()
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from tags(getattr(value, name))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tags(key)
            yield from tags(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tags(inner)


def only_tag(text: str) -> str | None:
    """The name, if the text is one tag and nothing else; outputs and artifact `from` are written so."""
    match = _TAG.fullmatch(text.strip())
    return match[1].strip() if match else None


def has_item_tag(value: Any) -> bool:
    return any(name == "item" or name.startswith("item.") for name in tags(value))
