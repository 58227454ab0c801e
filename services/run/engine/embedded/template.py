"""`{{…}}`: finding tags and putting values in their place (specification §4).

Upstream replaces in the JSON text of a whole template and escapes what it inserts; replacing inside every string of
the parsed structure is the same thing without the escaping. Nothing here knows which names exist: a lookup answers a
tag's name with its text, or with None, and then the tag stays as it is. That includes text that merely looks like a
tag (Jinja, the `{{$.…}}` of v2 launchers). A tag `{{=…}}` holds an expression; it stays for as long as a name in it is
unknown.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from services.run.engine.embedded import expr
from services.run.engine.embedded.expression import ExpressionError
from services.run.engine.embedded.manifest import ManifestError

Lookup = Callable[[str], str | None]
"""From the name in a tag, without braces and blanks, to the text that replaces the tag; None leaves it standing."""

T = TypeVar("T")

_TAG = re.compile(r"\{\{=((?:(?!\{\{).)*?)\}\}|\{\{([^{}]*)\}\}", re.DOTALL)
"""An expression or a name."""


def fill(value: T, lookup: Lookup, beside: Lookup | None = None) -> T:
    """A copy of a text, list, mapping or struct in which the known tags of every text are replaced.

    One pass: a replacement is not scanned again; callers make another pass where the specification has one.
    Parts without a known tag are shared with the original, not copied. Expressions may ask `beside`, too, for what an
    earlier pass has replaced elsewhere. Raises ManifestError for an expression that makes no sense.
    """
    if beside is None:
        return _fill(value, lookup, lookup)  # type: ignore[no-any-return]
    return _fill(value, lookup, first_of(lookup, beside))  # type: ignore[no-any-return]


def _fill(value: Any, lookup: Lookup, of_expressions: Lookup) -> Any:
    if isinstance(value, str):
        return _fill_text(value, lookup, of_expressions) if "{{" in value else value
    if isinstance(value, msgspec.Struct):
        return _fill_struct(value, lookup, of_expressions)
    if isinstance(value, dict):
        filled = {
            _fill(key, lookup, of_expressions): _fill(inner, lookup, of_expressions) for key, inner in value.items()
        }
        return value if filled == value else filled
    if isinstance(value, tuple | list):
        parts = [_fill(inner, lookup, of_expressions) for inner in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _fill_text(text: str, lookup: Lookup, of_expressions: Lookup) -> str:
    def replacement(match: re.Match[str]) -> str:
        found = lookup(match[2].strip()) if match[1] is None else _evaluated(match[1], of_expressions)
        return match[0] if found is None else found

    return _TAG.sub(replacement, text)


def _evaluated(text: str, lookup: Lookup) -> str | None:
    try:
        expression = expr.read(text)
    except ExpressionError:
        return None  # It merely looks like one: what was meant as one is refused when the run is created.
    try:
        return expr.text_of(expression, lookup)
    except ExpressionError as error:
        raise ManifestError(f"failed to evaluate {{{{={text}}}}}: {error}") from error


def _fill_struct(struct: msgspec.Struct, lookup: Lookup, of_expressions: Lookup) -> msgspec.Struct:
    changes = {}
    for name in struct.__struct_fields__:
        old = getattr(struct, name)
        if old is None or old == ():
            continue
        new = _fill(old, lookup, of_expressions)
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
    """The names of all tags inside a value, and in their expressions, in document order, repetitions included."""
    for match in _matches(value):
        if match[1] is None:
            yield match[2].strip()
        else:
            with contextlib.suppress(ExpressionError):
                yield from expr.read(match[1]).names


def expressions(value: Any) -> Iterator[str]:
    """The texts of all expressions inside a value."""
    return (match[1] for match in _matches(value) if match[1] is not None)


def _matches(value: Any) -> Iterator[re.Match[str]]:
    if isinstance(value, str):
        if "{{" in value:
            yield from _TAG.finditer(value)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _matches(getattr(value, name))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _matches(key)
            yield from _matches(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _matches(inner)


def only_tag(text: str) -> str | None:
    """The name, if the text is one tag and nothing else; outputs and artifact `from` are written so."""
    match = _TAG.fullmatch(text.strip())
    return match[2].strip() if match and match[1] is None else None


def blanked(text: str, by: str) -> str:
    """The text with every tag replaced by the same."""
    return _TAG.sub(lambda _match: by, text)


def has_item_tag(value: Any) -> bool:
    return any(name == "item" or name.startswith("item.") for name in tags(value))
