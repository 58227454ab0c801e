"""`headrace migrate NAME`: brings a service's schema to what this version of its code expects, and ends.

A service does that itself when it starts. As a step before it, a migration may take its time: no statement of it is
given up, no probe watches, and a schema that cannot be brought up leaves the replicas of the version before at work.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from pathlib import Path

import click
import msgspec

from infra.cli.serve import SERVICES

PATIENCE_SECONDS = 60.0
"""With a server that is still starting."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    database_url: str
    """As the service is told: the role owns the schema."""


@click.command()
@click.argument("name", type=click.Choice(SERVICES), metavar="NAME")
def migrate(name: str) -> None:
    """Apply the migrations that a service's schema misses.

    NAME is a service, as in `headrace serve`. HEADRACE_DATABASE_URL is all that is read beside the settings of logs.
    Any number may be started at once: one of them works, the others wait for it and find it done. A database that is
    still starting is waited for, for a minute.
    """
    from shared import logs
    from shared.errors import Unavailable
    from shared.migrate import MigrationError
    from shared.settings import SettingsError, load

    try:
        log = load(logs.LogSettings)
        logs.configure(f"migrate-{name}", format=log.log_format, level=log.log_level)
        applied = asyncio.run(_migrate(name, load(Settings)))
    except SettingsError as error:
        click.echo(f"headrace migrate {name}: {error}", err=True)
        sys.exit(2)
    except (MigrationError, Unavailable) as error:
        click.echo(f"headrace migrate {name}: {error}", err=True)
        sys.exit(1)
    click.echo(f"{name}: applied {applied}" if applied else f"{name}: nothing to apply")


async def _migrate(name: str, settings: Settings) -> int:
    from shared.database import Database
    from shared.migrate import migrate

    room = Path(import_module(f"services.{name.replace('-', '_')}").__path__[0])
    database = Database(settings.database_url, name=f"migrate {name}", max_size=1, statement_seconds=None)
    await database.open(patience_seconds=PATIENCE_SECONDS)
    try:
        return await migrate(database, room / "migrations")
    finally:
        await database.close()
