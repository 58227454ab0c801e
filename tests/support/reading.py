"""Work for the processes that read: each function is one way to behave, and to misbehave."""

from __future__ import annotations

import os
import sys
import time


def echo(request: bytes) -> bytes:
    """The request's own bytes behind the id of the process."""
    return f"{os.getpid()} ".encode() + request


def obey(request: bytes) -> bytes:
    match request.split():
        case [b"wait", seconds]:
            time.sleep(float(seconds))
        case [b"compute"]:
            while True:
                pass
        case [b"allocate", count]:
            bytearray(int(count))
        case [b"recurse"]:
            sys.setrecursionlimit(10**9)
            _recurse()
        case [b"abort"]:
            os.abort()
        case [b"fail"]:
            raise ValueError("a bug")
    return echo(request)


def _recurse() -> None:
    list(map(lambda _: _recurse(), [0]))  # noqa: C417 - by way of C, whose stack is the one that ends
