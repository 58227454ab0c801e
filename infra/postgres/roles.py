"""Brings `roles.sql` to a server: the same file embedded, under compose and on Kubernetes.

It speaks through psql, whose variables quote the passwords; those travel by a pipe, never on a command line.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

DATABASE = "headrace"
ROLES: tuple[str, ...] = ("experiment", "pipeline_registry", "run", "job_scheduler", "metrics", "notifier")

_SQL = Path(__file__).with_name("roles.sql")


class RolesRefused(Exception):
    """The server did not accept the roles; the message is what psql said."""


def apply_roles(
    *,
    psql: Path,
    host: str,
    port: int,
    superuser: str,
    password: str,
    role_passwords: Mapping[str, str],
    database: str = DATABASE,
) -> None:
    """Create or repair every role, schema and extension in `database`, which is made if absent."""
    variables = {"database": database, **{f"{role}_password": role_passwords[role] for role in ROLES}}
    script = "".join(f"\\set {name} {_quoted(value)}\n" for name, value in variables.items()) + _SQL.read_text()
    run_psql(script, psql=psql, host=host, port=port, superuser=superuser, password=password)


def run_psql(script: str, *, psql: Path, host: str, port: int, superuser: str, password: str) -> str:
    """Run a script in the superuser's database; its rows, unaligned. Raises RolesRefused."""
    done = subprocess.run(
        [str(psql), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"],
        input=script,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PGHOST": host,
            "PGPORT": str(port),
            "PGUSER": superuser,
            "PGPASSWORD": password,
            "PGDATABASE": "postgres",
            "PGCONNECT_TIMEOUT": "10",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RolesRefused(done.stderr.strip() or f"psql ended with {done.returncode}")
    return done.stdout


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
