"""The step runner's HTTP, for those who watch it: whether it is alive, whether it is ready, what it has counted.

A page is a function; each request is a line, each answer ends its connection. What does not fit in a few kilobytes, or
does not come within a few seconds, is hung up on: whoever runs steps must not be held up by whoever asks about them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

_LONGEST_HEAD_BYTES = 8192
_WITHIN_SECONDS = 5.0


class Page(msgspec.Struct, frozen=True, kw_only=True):
    status: str = "200 OK"
    text: str
    content_type: str = "text/plain; charset=utf-8"


def verdict(why_not: str | None) -> Page:
    return Page(text="ok\n") if why_not is None else Page(status="503 Service Unavailable", text=f"{why_not}\n")


@contextlib.asynccontextmanager
async def serving(pages: Mapping[str, Callable[[], Page]], *, host: str, port: int) -> AsyncIterator[int]:
    """Answer by what lies at a path; yields the port. Raises OSError where it is taken."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_WITHIN_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(pages, head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # Nothing here depends on who asks.
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port, limit=_LONGEST_HEAD_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _answer(pages: Mapping[str, Callable[[], Page]], head: bytes) -> bytes:
    method, _, rest = head.decode("latin-1").partition("\r\n")[0].partition(" ")
    page = pages.get(rest.partition(" ")[0].partition("?")[0])
    if method not in ("GET", "HEAD"):
        found = Page(status="405 Method Not Allowed", text="Method Not Allowed\n")
    elif page is None:
        found = Page(status="404 Not Found", text="Not Found\n")
    else:
        found = page()
    body = found.text.encode()
    lines = (
        f"HTTP/1.1 {found.status}",
        f"Content-Type: {found.content_type}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    )
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if method == "HEAD" else body)
