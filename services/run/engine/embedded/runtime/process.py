"""A child process seen from outside: when it ends, what it begot, and signals to all of that.

Ends are learnt from pidfds on the event loop: no thread per process, no SIGCHLD handler, no polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_ROUNDS = 8
"""A process that forks while it is being looked for is found in a later round."""


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    log: int,
    stdout: int | None = None,
    stdin: int | None = None,
    keep: Sequence[int] = (),
) -> int:
    """Start a program in a session of its own and return its pid. Raises OSError.

    The session keeps a terminal's Ctrl-C from it; who waits for the pid is `ended`.
    """
    child = subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=log if stdout is None else stdout,
        stderr=log,
        pass_fds=tuple(keep),
        start_new_session=True,
        umask=0o022,
    )
    # `ended` reaps it; Popen's own book-keeping would warn that it still runs.
    child.returncode = 0
    return child.pid


async def ended(pid: int) -> int:
    """Wait for our child and reap it: its exit code, or 128+s."""
    await gone(pid)
    _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 (it is a zombie by now)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


async def gone(pid: int) -> None:
    """Wait until no process has this pid any more (or, for a child of ours, until it is a zombie)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not over.done():
            over.set_result(None)

    loop.add_reader(descriptor, tell)
    try:
        await over
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def signal_descendants(root: int, number: signal.Signals) -> int:
    """Send a signal to every descendant of `root`, not to itself; returns how many were reached."""
    reached: set[int] = set()
    for _ in range(_ROUNDS):
        fresh = set(descendants(root, children())) - reached
        if not fresh:
            break
        for pid in fresh:
            send(pid, number)
        reached |= fresh
    return len(reached)


def writers_to(path: Path) -> list[int]:
    """The processes whose standard output is this file, as far as we may know."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "fd" / "1") == str(path):
                    found.append(int(entry.name))
    return found


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children() -> dict[int, list[int]]:
    """The living children of every process of this machine."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            about = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        # The name in parentheses may hold spaces and parentheses itself.
        state, parent = about.rpartition(")")[2].split()[:2]
        if state != "Z":
            found.setdefault(int(parent), []).append(int(entry.name))
    return found


def descendants(root: int, children: Mapping[int, Sequence[int]]) -> Iterator[int]:
    pending = [root]
    while pending:
        for child in children.get(pending.pop(), ()):
            yield child
            pending.append(child)
