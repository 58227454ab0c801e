"""Writes the broker's configuration and ends: `python -m infra.docker.nats_config`.

Who may do what is `infra.nats.permissions`; here come the passwords, from HEADRACE_NATS_<USER>_PASSWORD, and the place.
It runs before the broker, once per start of the house, so that a changed password needs no more than a restart.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from infra.nats.permissions import USER_NAMES, server_config
from shared.settings import SettingsError, load

_PASSWORD = re.compile(r"[A-Za-z0-9_-]+")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    nats_dir: str
    """The broker's volume: the configuration lies beside its store."""


def main(environment: Mapping[str, str] = os.environ) -> int:
    try:
        folder = Path(load(Settings, environment).nats_dir)
        passwords = {user: _password_of(user, environment) for user in USER_NAMES}
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    config = json.loads(
        server_config(host="0.0.0.0", port=4222, store_dir=str(folder / "store"), passwords=passwords)  # noqa: S104
    )
    # For the health check inside the container, and nobody else.
    config["http"] = "127.0.0.1:8222"
    _write(folder / "nats.conf", json.dumps(config, indent=2, ensure_ascii=False))
    return 0


def _password_of(user: str, environment: Mapping[str, str]) -> str:
    """Clients read the password out of a URL as it stands there, escapes and all."""
    variable = f"HEADRACE_NATS_{user.replace('-', '_').upper()}_PASSWORD"
    password = environment.get(variable, "")
    if not _PASSWORD.fullmatch(password):
        raise SettingsError(f"{variable} must consist of letters, digits, - and _")
    return password


def _write(file: Path, text: str) -> None:
    """Whole or not at all, readable by the broker's user alone."""
    draft = file.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)


if __name__ == "__main__":
    sys.exit(main())
