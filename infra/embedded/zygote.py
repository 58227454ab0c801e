"""Forks the stack's Python processes from one that has imported what they share: `python -m infra.embedded.zygote`.

Importing the web framework and the drivers takes a process most of a second and half of its memory; forked, the
processes pay both once together. They share nothing else: each has its own session, log, environment and command line,
and is a process like any other to signals and to whoever lists it. When the zygote dies the kernel ends its children.

It is told over a unix socket, whose descriptor is the first argument, by lines of JSON (`Order`), and answers with
lines of JSON (`News`). The other arguments are the modules to import. It knows nothing of what it runs.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterator

import msgspec

from infra.embedded.process import die_with_parent, open_log


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Fork a process that does what Python does with these arguments: `-m module …` or `file …`."""

    id: int
    arguments: list[str]
    environment: dict[str, str]
    log: str


class News(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an order: first its process's pid, later how it ended (negative: by that signal)."""

    id: int
    pid: int | None = None
    exit_code: int | None = None


def main() -> None:
    descriptor, *modules = sys.argv[1:]
    channel = socket.socket(fileno=int(descriptor))
    for module in modules:
        importlib.import_module(module)
    # The collector would write into every shared page.
    gc.collect()
    gc.freeze()
    order = _fork_on_order(channel)
    # From here on this is a child.
    _run(order)


def _fork_on_order(channel: socket.socket) -> Order:
    """Returns in children alone; the zygote itself ends with its channel."""
    alarm, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    zygote = os.getpid()
    living: dict[int, int] = {}
    received = b""
    while True:
        readable, _, _ = select.select([channel, alarm], [], [])
        if alarm in readable:
            alarm.recv(4096)
            for pid, exit_code in _ended_children():
                _tell(channel, News(id=living.pop(pid), exit_code=exit_code))
        if channel not in readable:
            continue
        if not (chunk := channel.recv(65536)):
            sys.exit(0)
        *lines, received = (received + chunk).split(b"\n")
        for line in lines:
            order = msgspec.json.decode(line, type=Order)
            if (pid := os.fork()) == 0:
                _leave(zygote, channel, alarm, waker)
                return order
            living[pid] = order.id
            _tell(channel, News(id=order.id, pid=pid))


def _ended_children() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _tell(channel: socket.socket, news: News) -> None:
    channel.sendall(msgspec.json.encode(news) + b"\n")


def _leave(zygote: int, *sockets: socket.socket) -> None:
    """Keep nothing of the zygote's but its modules."""
    os.setsid()
    die_with_parent(zygote, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in sockets:
        each.close()


def _run(order: Order) -> None:
    with open_log(order.log) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(order.environment)
    _rename([sys.executable, *order.arguments])
    first, *rest = order.arguments
    if first == "-m":
        module, *rest = rest
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _rename(argv: list[str]) -> None:
    """Let the lists of processes show what this one runs: the kernel reads them from the memory of the arguments."""
    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(map(os.fsencode, argv)) + b"\0"
    if len(text) < end - start:  # Never beyond: the environment begins there.
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
