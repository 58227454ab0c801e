"""proto3 JSON as the API's clients know it (specification, section 2)."""

from __future__ import annotations

import msgspec


def encode(document: msgspec.Struct) -> bytes:
    return msgspec.json.encode(document)
