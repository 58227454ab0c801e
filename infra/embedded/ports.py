"""Free ports on the loopback interface.

Taken from below the kernel's ephemeral range, so that no outgoing connection can take one between here and the bind.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Collection
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
_RANGE = range(18_000, 32_000)
SLICE = "EMBEDDED_PORTS"
"""The variable `1/2`: only every second port of the range is looked at, from the second on. Between a look and a bind
somebody else may take a port; whoever starts many stacks side by side gives each a part of its own."""


def free_ports(count: int, *, besides: Collection[int] = ()) -> list[int]:
    """Distinct ports that nobody listens on now; they are held until all are found.

    `besides` are meant for others, who do not listen yet.
    """
    found: list[int] = []
    with ExitStack() as held:
        ports = _slice()
        for port in random.sample(ports, len(ports)):
            if len(found) == count:
                break
            if port in besides:
                continue
            probe = held.enter_context(socket.socket())
            if _binds(probe, port):
                found.append(port)
    if len(found) < count:
        raise OSError(errno.EADDRINUSE, f"no {count} free ports between {_RANGE.start} and {_RANGE.stop}")
    return found


def _slice() -> range:
    number, _, count = os.environ.get(SLICE, "0/1").partition("/")
    return _RANGE[int(number) :: int(count)]


def is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: connections of a past server that linger in TIME_WAIT do not take the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _binds(probe, port, host)


def _binds(probe: socket.socket, port: int, host: str = LOOPBACK) -> bool:
    try:
        probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True
