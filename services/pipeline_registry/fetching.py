"""A package on its way in from a URL that a client names: untrusted in where it leads and in what it says.

The one place of the service that speaks HTTP as a client. Where that may lead is for `shared.addresses` to say; what
the bytes mean it does not know.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from shared.addresses import FORBIDDEN, Guard, Reach
from shared.errors import InvalidInput, Unavailable

from .domain import check_url, last_element
from .spool import Spool, spooled

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

MOST_REDIRECTS: Final = 10
_CONNECT_SECONDS: Final = 10.0
_CHUNK_BYTES: Final = 64 * 1024


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """`size_bytes` is exact up to the largest package, and at least one more for anything larger."""

    name: str
    size_bytes: int
    content: BinaryIO


class Fetcher:
    def __init__(
        self,
        *,
        reach: Reach,
        largest_bytes: int,
        seconds: float,
        at_a_time: int,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """`seconds` bound a download from the first resolution to the last byte, and before it the wait for one of
        `at_a_time` turns.
        """
        self._reach = reach
        self._largest_bytes = largest_bytes
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_a_time)
        self._resolver = resolver

    @asynccontextmanager
    async def fetched(self, url: str) -> AsyncIterator[Download]:
        """What stands at the URL. Raises InvalidInput where nothing can be had from there."""
        check_url(url)
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Unavailable("Too many pipelines are being downloaded. Try again later.") from None
        try:
            with spooled(self._largest_bytes) as spool:
                await self._download(url, spool)
                yield Download(name=last_element(url), size_bytes=spool.size_bytes, content=spool.content)
        finally:
            self._turns.release()

    async def _download(self, url: str, spool: Spool) -> None:
        # Most processes never fetch, and importing takes long for an event loop.
        await asyncio.to_thread(importlib.import_module, "aiohttp")
        import aiohttp

        guard = Guard(self._reach)
        try:
            async with asyncio.timeout(self._seconds), self._session(guard) as session:
                await _receive(session, url, spool)
        except TimeoutError as error:
            raise _failed(url, f"it takes longer than {self._seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if guard.has_refused:
                raise _forbidden(url) from error
            raise _failed(url, _reason(error)) from error

    def _session(self, guard: Guard) -> aiohttp.ClientSession:
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=guard.socket_for, resolver=self._resolver, use_dns_cache=False, force_close=True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            # The bytes are the package, and how far they unpack is for those to bound who unpack them.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )


async def _receive(session: aiohttp.ClientSession, url: str, spool: Spool) -> None:
    async with session.get(url, max_redirects=MOST_REDIRECTS + 1) as answer:
        if answer.status != 200:
            raise _failed(url, f"the server answers {answer.status}")
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            await spool.write(chunk)
            if spool.is_over:
                return


def _failed(url: str, cause: str) -> InvalidInput:
    return InvalidInput(
        f"Failed to download the pipeline from {url} "
        "Please double check the URL is valid and can be accessed by the pipeline system.",
        cause=cause,
    )


def _forbidden(url: str) -> InvalidInput:
    return InvalidInput(f"Invalid Pipeline URL {url}. Please specify a valid URL", cause=FORBIDDEN)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
