"""What is refused before anything is started or written: each as one line that says what to do."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping

from infra.embedded.failure import StartFailure
from infra.embedded.ports import LOOPBACK, is_free
from shared.settings import variable_of

_PREFIX = "HEADRACE_"
_MACHINES = ("x86_64", "aarch64", "arm64")
_FOREIGN_PREFIXES = ("HEADRACE_TEST_", "HEADRACE_BENCH_")
"""Variables of the project's own checks, which may be set while a stack runs."""

_PROGRAMS = frozenset({"HEADRACE_POSTGRES_BIN", "HEADRACE_NATS_SERVER", "HEADRACE_WEED"})
"""Read where the backing servers' programs are looked for."""
CLIENTS_VARIABLES = frozenset({"HEADRACE_URL", "HEADRACE_TOKEN"})
"""Read by commands that reach a gateway, in the terminal of the same person."""


def refuse_unsupported_platform(system: str = sys.platform, machine: str = platform.machine()) -> None:
    if system != "linux" or machine.lower() not in _MACHINES:
        raise StartFailure(
            f"the embedded stack runs on Linux (x86_64 and arm64), not on {system} {machine}: use docker-compose up"
        )


def refuse_taken_port(port: int) -> None:
    try:
        free = is_free(port)
    except OSError as error:
        raise StartFailure(f"port {port} cannot be used: {error.strerror}") from error
    if not free:
        raise StartFailure(f"port {port} on {LOOPBACK} is taken: stop what listens there, or choose another by --port")


def refuse_absent_directories(environment: Mapping[str, str], *variables: str) -> None:
    """Who names one means it to be there, now."""
    for name in variables:
        path = environment.get(name)
        if path and not os.path.isdir(path):
            raise StartFailure(f"{name}={path}: there is no such directory")


def refuse_unknown_settings(environment: Mapping[str, str], known: Iterable[str]) -> None:
    """A mistyped variable would be ignored by every process: refuse it instead."""
    allowed = {*known, *_PROGRAMS, *CLIENTS_VARIABLES}
    for name in sorted(environment):
        if not name.startswith(_PREFIX) or name in allowed or name.startswith(_FOREIGN_PREFIXES):
            continue
        likely = difflib.get_close_matches(name, allowed, n=1)
        hint = f" (did you mean {likely[0]}?)" if likely else ""
        raise StartFailure(f"unknown setting {name}{hint}")


def variables_of(*settings: str) -> set[str]:
    """The variables that the given settings structs (`module:Name`) are read from."""
    found: set[str] = set()
    for place in settings:
        module, _, name = place.partition(":")
        struct = getattr(importlib.import_module(module), name)
        found.update(variable_of(field) for field in struct.__struct_fields__)
    return found
