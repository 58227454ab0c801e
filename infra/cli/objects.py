"""`headrace objects`: the bucket of any S3 server, as a file and back; for backups."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import IO

import click
import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """As every process that keeps objects is told."""

    object_store_url: str
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str


@click.group(short_help="Copy all objects to a tar file and back.")
def objects() -> None:
    """Copy all objects to a tar file and back, with the settings of a process that keeps objects.

    Under compose and on Kubernetes, run it where these are set. `headrace backup` does the same for `headrace up`.
    """


@objects.command()
@click.argument("file", type=click.File("wb"), default="-")
def save(file: IO[bytes]) -> None:
    """Write every object to FILE, or to the output."""
    _carry_out(file, is_save=True)


@objects.command()
@click.argument("file", type=click.File("rb"), default="-")
def load(file: IO[bytes]) -> None:
    """Store every object of FILE, or of the input. The bucket is made where it is missing."""
    _carry_out(file, is_save=False)


def _carry_out(file: IO[bytes], *, is_save: bool) -> None:
    import tarfile

    from infra.embedded import objects as copying
    from shared.blobs import Blobs
    from shared.errors import Unavailable
    from shared.settings import SettingsError
    from shared.settings import load as load_settings

    try:
        told = load_settings(Settings, os.environ)
        blobs = Blobs(
            told.object_store_url,
            access_key=told.object_store_access_key,
            secret_key=told.object_store_secret_key,
            bucket=told.object_store_bucket,
        )

        async def copy() -> int:
            try:
                if is_save:
                    return await copying.save(blobs, file)
                await blobs.ensure_bucket()
                return await copying.load(blobs, file)
            finally:
                blobs.close()

        count = asyncio.run(copy())
    except (SettingsError, Unavailable, copying.ObjectError, tarfile.TarError, OSError) as error:
        click.echo(f"headrace objects: {error}", err=True)
        sys.exit(1)
    click.echo(f"{count} objects", err=True)
