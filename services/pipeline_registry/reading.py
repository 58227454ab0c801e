"""The reading of a package, as it is done in a process of its own: unpacking, parsing, checking.

Whoever only asks for it needs no YAML and no archives; they are imported where the work is done.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shared.errors import Refusal, to_document

from .domain import Package

WORK: Final = f"{__name__}:read"
"""For `shared.readers`."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    file_name: str
    pipeline_name: str
    largest_bytes: int
    """Of the package, and of the pipeline in it."""
    data: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of the three."""

    package: Package | None = None
    unreadable: dict[str, Any] | None = None
    """The refusal of the bytes, before anything was understood."""
    invalid: dict[str, Any] | None = None
    """The refusal of what they say."""


def read(request: bytes) -> bytes:
    return msgspec.msgpack.encode(_read(msgspec.msgpack.decode(request, type=Request)))


def _read(request: Request) -> Answer:
    from .packages import read_package
    from .templates import read_template

    try:
        text = read_package(request.file_name, request.data, request.largest_bytes)
    except Refusal as refusal:
        return Answer(unreadable=to_document(refusal))
    try:
        template = read_template(text, request.pipeline_name)
    except Refusal as refusal:
        return Answer(invalid=to_document(refusal))
    return Answer(package=Package(text=text, manifest=template.manifest, parameters=template.parameters))
