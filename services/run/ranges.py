"""The part of an object that a `Range` header asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re

import msgspec

_ONE_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.IGNORECASE | re.ASCII)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    offset: int
    length: int
    """At least one."""


class Unsatisfiable(Exception):
    """The object has no byte of what was asked for."""


def part(header: str | None, size: int) -> Part | None:
    """None where the whole is to be sent: without the header, and where it is one that a server may ignore.

    Several ranges at once are among those. Raises Unsatisfiable.
    """
    found = None if header is None else _ONE_RANGE.fullmatch(header)
    if found is None:
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    if not first:
        return _checked(max(0, size - int(last)), size, size)
    if last and int(last) < int(first):
        return None
    return _checked(int(first), min(int(last) + 1, size) if last else size, size)


def _checked(start: int, end: int, size: int) -> Part:
    if start >= min(end, size):
        raise Unsatisfiable
    return Part(offset=start, length=end - start)
