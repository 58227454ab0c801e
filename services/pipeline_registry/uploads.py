"""A file on its way in: `multipart/form-data`, streamed to a spooled file, never whole in memory.

More than a package may hold is not kept; it is still read for a while, because a client that is cut off while it sends
never sees why. This module knows the form and nothing of what the file means.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, Final

import msgspec
from litestar import Request
from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)
from prometheus_client import Counter, Histogram

from shared import telemetry
from shared.errors import MalformedRequest, layer

from .spool import Spool, spooled

_uploads = Counter(
    "headrace_uploads_total",
    "Files that were uploaded; `outcome` is received or malformed.",
    ("outcome",),
    registry=telemetry.metrics,
)
_sizes = Histogram(
    "headrace_upload_size_bytes",
    "Of the files that were received.",
    buckets=(2**10, 2**13, 2**16, 2**18, 2**20, 2**22, 2**24, 2**25, 2**26),
    registry=telemetry.metrics,
)

FIELD: Final = "uploadfile"
REQUEST_RATIO: Final = 8
"""How many times the largest package is read of a request before its connection is given up."""
MOST_PARTS: Final = 100


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """`size_bytes` is exact up to the largest package, and at least one more for anything larger."""

    name: str
    size_bytes: int
    content: BinaryIO

    async def digest(self) -> str:
        """SHA-256 of what was kept."""
        return await asyncio.to_thread(_digest, self.content)


@asynccontextmanager
async def received(request: Request[Any, Any, Any], otherwise: str, *, largest_bytes: int) -> AsyncIterator[Upload]:
    """The first file of the form's field `uploadfile`. Raises MalformedRequest inside of the layer `otherwise`."""
    with spooled(largest_bytes) as spool:
        with layer(otherwise):
            try:
                name = await _receive(request, spool, REQUEST_RATIO * largest_bytes)
            except MalformedRequest:
                _uploads.labels("malformed").inc()
                raise
        _uploads.labels("received").inc()
        _sizes.observe(spool.size_bytes)
        yield Upload(name=name, size_bytes=spool.size_bytes, content=spool.content)


async def _receive(request: Request[Any, Any, Any], spool: Spool, most_bytes: int) -> str:
    file_name: str | None = None
    is_inside = False
    received_bytes = 0
    try:
        with PushMultipartParser(_boundary(request), max_segment_count=MOST_PARTS) as parser:
            async for chunk in request.stream():
                received_bytes += len(chunk)
                if received_bytes > most_bytes:
                    raise MalformedRequest("http: request body too large")
                if parser.closed or not chunk:
                    continue  # What follows the form is read and ignored, as the rest of a request must be.
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        # Browsers send a form whose file nobody chose with an empty name: that is no file.
                        is_inside = file_name is None and event.name == FIELD and bool(event.filename)
                        file_name = event.filename if is_inside else file_name
                    elif event is None:
                        is_inside = False
                    elif is_inside:
                        await spool.write(event)
    except MultipartError as error:
        raise MalformedRequest(f"multipart: {error.args[0]}") from error
    if file_name is None:
        raise MalformedRequest("http: no such file")
    return file_name.replace("\x00", "\ufffd")


def _digest(content: Any) -> str:
    content.seek(0)
    return hashlib.file_digest(content, "sha256").hexdigest()


def _boundary(request: Request[Any, Any, Any]) -> str:
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != "multipart/form-data":
        raise MalformedRequest("request Content-Type isn't multipart/form-data")
    if not options.get("boundary"):
        raise MalformedRequest("no multipart boundary param in Content-Type")
    return str(options["boundary"])
