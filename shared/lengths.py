"""How long a text may be that names something: names, ids and accounts in clients' requests.

An index takes 2,704 bytes at most for one entry, which may hold an id beside the name; a question to another service
has no room for a text without a bound either. Descriptions and manifests, which nobody looks up, have no such limit.
Limits that the API itself sets stand with their rules. Pure: the standard library and `shared.errors`.
"""

from __future__ import annotations

from typing import Final

from shared.errors import InvalidInput

LONGEST_NAME_BYTES: Final = 2_000
"""The original server refuses far shorter ones, as a database error."""


def is_too_long(name: str) -> bool:
    return len(name.encode()) > LONGEST_NAME_BYTES


def check_length(what: str, name: str) -> None:
    """`what` it is, in words for the API's user. Raises InvalidInput."""
    if is_too_long(name):
        raise InvalidInput(f"The {what} is longer than {LONGEST_NAME_BYTES} bytes. Please specify a shorter one.")
