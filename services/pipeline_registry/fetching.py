"""A package on its way in from a URL that a client names: untrusted in where it leads and in what it says.

The one place of the service that speaks HTTP as a client. It knows addresses, and nothing of what the bytes mean.

Whoever can name a URL can make this process connect to it. Therefore the address is checked where a socket is made for
it, which is after every resolution, for every redirect and for every address that is tried: no name that changes its
mind between a check and its use gets through. Without a setting only public addresses pass.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec

from shared.errors import InvalidInput, Unavailable

from .domain import check_url, last_element
from .spool import Spool, spooled

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

MOST_REDIRECTS: Final = 10
_CONNECT_SECONDS: Final = 10.0
_CHUNK_BYTES: Final = 64 * 1024
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
_PUBLIC_IN_NAME_ONLY: Final = (
    ip_network("192.0.0.0/24"),  # Assigned to protocols; some clouds keep their metadata there.
    ip_network("168.63.129.16/32"),  # Azure's, from inside of its machines.
)

Address = IPv4Address | IPv6Address


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """`size_bytes` is exact up to the largest package, and at least one more for anything larger."""

    name: str
    size_bytes: int
    content: BinaryIO


class Fetcher:
    def __init__(
        self,
        *,
        allowed_networks: Sequence[str],
        any_network: bool,
        largest_bytes: int,
        seconds: float,
        at_a_time: int,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """`allowed_networks` pass beside what is public; with `any_network` every address does. `seconds` bound a
        download from the first resolution to the last byte, and before it the wait for one of `at_a_time` turns.
        """
        self._allowed = tuple(ip_network(network) for network in allowed_networks)
        self._any_network = any_network
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

    def passes(self, address: Address) -> bool:
        inner = _inside(address)
        if self._any_network or any(each in network for each in (address, inner) for network in self._allowed):
            return True
        return is_public(inner)

    async def _download(self, url: str, spool: Spool) -> None:
        # Most processes never fetch, and importing takes long for an event loop.
        await asyncio.to_thread(importlib.import_module, "aiohttp")
        import aiohttp

        guard = _Guard(self)
        try:
            async with asyncio.timeout(self._seconds), self._session(guard) as session:
                await _receive(session, url, spool)
        except TimeoutError as error:
            raise _failed(url, f"it takes longer than {self._seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if guard.has_refused:
                raise _forbidden(url) from error
            raise _failed(url, _reason(error)) from error

    def _session(self, guard: _Guard) -> aiohttp.ClientSession:
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


class _Guard:
    """Makes the sockets of one download, and remembers whether it would not make one."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.has_refused = False

    def socket_for(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, target = info
        if not self._fetcher.passes(ip_address(target[0])):
            self.has_refused = True
            raise OSError("the address is not allowed")
        return socket.socket(family, kind, protocol)


async def _receive(session: aiohttp.ClientSession, url: str, spool: Spool) -> None:
    async with session.get(url, max_redirects=MOST_REDIRECTS + 1) as answer:
        if answer.status != 200:
            raise _failed(url, f"the server answers {answer.status}")
        async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
            await spool.write(chunk)
            if spool.is_over:
                return


def is_public(address: Address) -> bool:
    """Whether everyone reaches the same host there; nothing of a machine, a link, a site or a cloud."""
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and not (isinstance(address, IPv6Address) and address.is_site_local)
        and not any(address in network for network in _PUBLIC_IN_NAME_ONLY)
    )


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _failed(url: str, cause: str) -> InvalidInput:
    return InvalidInput(
        f"Failed to download the pipeline from {url} "
        "Please double check the URL is valid and can be accessed by the pipeline system.",
        cause=cause,
    )


def _forbidden(url: str) -> InvalidInput:
    """Says nothing of the address: what names mean inside of a network is not for everyone to ask."""
    return InvalidInput(
        f"Invalid Pipeline URL {url}. Please specify a valid URL",
        cause="it leads to an address that is not public; HEADRACE_FETCH_ALLOWED_NETWORKS may list its network",
    )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
