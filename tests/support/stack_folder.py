"""The folder of a stack that runs, as whoever looks at it sees it; no stack is needed."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec


@contextmanager
def stack_on(folder: Path, ports: Mapping[str, int]) -> Iterator[None]:
    """`ports` by the names of processes."""
    folder.mkdir(exist_ok=True)
    (folder / "ports.json").write_bytes(msgspec.json.encode(ports))
    with (folder / "headrace.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
