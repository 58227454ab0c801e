"""The processes of a running stack, found from outside as an operator would."""

from __future__ import annotations

import contextlib
import signal
import time

import msgspec
import psutil

from infra.embedded.readiness import http_status
from infra.embedded.replicas import names
from tests.support.eventually import eventually
from tests.support.stack import Stack

_WORDS = {"step-runner": "-m services.run.engine.embedded.runner"}


def process_of(stack: Stack, name: str) -> psutil.Process:
    """The process of that name, or one of its replicas; fails where there is none."""
    found = replicas_of(stack, name)
    assert found, f"no process {name}"
    return found[0]


def replicas_of(stack: Stack, name: str) -> list[psutil.Process]:
    """Every process of that name."""
    words = _WORDS.get(name, f"serve {name}")
    found = []
    for child in psutil.Process(stack.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # A forked process has its command line as one text.
            command = " ".join(child.cmdline())
            if f" {words} " in f"{command} " and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


async def end(stack: Stack, name: str, replica: psutil.Process, number: signal.Signals) -> None:
    """Send the signal to one of the replicas, and wait until its successor takes requests beside the others."""
    kept = msgspec.json.decode((stack.data_dir / "ports.json").read_bytes(), type=dict[str, int])
    ports = [kept[each] for each in names(name, len(replicas_of(stack, name)))]

    async def is_succeeded() -> bool:
        return _is_gone(replica) and all([await http_status(port, "/readyz") == 200 for port in ports])

    replica.send_signal(number)
    await eventually(is_succeeded, within_seconds=60)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def server_of(stack: Stack, program: str) -> psutil.Process:
    """The backing server that runs this program; fails where there is none. Its own children are not meant."""
    for child in psutil.Process(stack.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if child.name() == program and child.status() != psutil.STATUS_ZOMBIE:
                return child
    raise AssertionError(f"no server {program}")


def kill(stack: Stack, name: str, *, within_seconds: float = 20) -> psutil.Process:
    """kill -9, and wait for the successor that the supervisor starts. Returns the successor."""
    victim = process_of(stack, name)
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=within_seconds)
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            successor = process_of(stack, name)
        except AssertionError:
            successor = victim
        if successor.pid != victim.pid:
            return successor
        if time.monotonic() > deadline:
            raise AssertionError(f"{name} was not started again within {within_seconds} s")
        time.sleep(0.02)


def steps_of(marker: str) -> list[psutil.Process]:
    """Processes anywhere on this machine whose command line holds `marker`."""
    everything = psutil.process_iter(["cmdline"])
    return [process for process in everything if marker in " ".join(process.info["cmdline"] or ())]
