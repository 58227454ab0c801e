"""Where a URL that somebody else names may lead this process.

Whoever can name a URL can make a process connect to it. Therefore the address is checked where a socket is made for it,
which is after every resolution, for every redirect and for every address that is tried: no name that changes its mind
between a check and its use gets through. Without a setting only public addresses pass. It knows addresses, and neither
an HTTP client nor what is fetched or sent.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

FORBIDDEN: Final = "it leads to an address that is not public; HEADRACE_FETCH_ALLOWED_NETWORKS may list its network"
"""Says nothing of the address: what names mean inside of a network is not for everyone to ask."""

_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
_PUBLIC_IN_NAME_ONLY: Final = (
    ip_network("192.0.0.0/24"),  # Assigned to protocols; some clouds keep their metadata there.
    ip_network("168.63.129.16/32"),  # Azure's, from inside of its machines.
)

Address = IPv4Address | IPv6Address


class Reach:
    """Which addresses may be connected to."""

    def __init__(self, allowed_networks: Sequence[str] = (), *, any_network: bool = False) -> None:
        """`allowed_networks` pass beside what is public; with `any_network` every address does."""
        self._allowed = tuple(ip_network(network) for network in allowed_networks)
        self._any_network = any_network

    def passes(self, address: Address) -> bool:
        inner = _inside(address)
        if self._any_network or any(each in network for each in (address, inner) for network in self._allowed):
            return True
        return is_public(inner)

    def passes_as_written(self, url: str) -> bool:
        """Whether a URL that holds an address may be connected to; what a name leads to shows when it is."""
        try:
            return self.passes(ip_address(urlsplit(url).hostname or ""))
        except ValueError:
            return True


class Guard:
    """Makes the sockets of a client of HTTP, and remembers whether it would not make one."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self.has_refused = False

    def socket_for(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, target = info
        if not self._reach.passes(ip_address(target[0])):
            self.has_refused = True
            raise OSError(errno.EACCES, FORBIDDEN)
        return socket.socket(family, kind, protocol)


def is_public(address: Address) -> bool:
    """Whether everyone reaches the same host there; nothing of a machine, a link, a site or a cloud."""
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and not (isinstance(address, IPv6Address) and address.is_site_local)
        and not any(address in network for network in _PUBLIC_IN_NAME_ONLY)
    )


def is_of_the_web(url: str) -> bool:
    """Of the kinds of URL, http and https, with a host."""
    if not url.isprintable() or url != url.strip():
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # A port beyond all ports, or a bracket without its other half.
        return False


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
