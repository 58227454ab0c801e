"""Declares the streams and the bucket, then ends: `python -m infra.embedded.prepare`.

A process of its own, because the drivers it needs would stay in the supervisor's memory for good. Services that start
before it is done wait, or declare what they miss themselves.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from shared.blobs import Blobs
from shared.bus import StreamLimits, declare_streams
from shared.settings import SettingsError, load


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    nats_url: str
    """With the credentials of the user that may declare streams."""
    object_store_url: str
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str
    facts_kept_days: float = 7
    stream_kept_bytes: int = 2 * 1024**3
    stream_replicas: int = 1
    """As services are told."""


async def prepare(settings: Settings) -> None:
    """Harmless where streams and bucket exist."""
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    limits = StreamLimits.beyond(
        days=settings.facts_kept_days, bytes=settings.stream_kept_bytes, replicas=settings.stream_replicas
    )
    await asyncio.gather(declare_streams(settings.nats_url, limits), blobs.ensure_bucket())


def main() -> int:
    try:
        settings = load(Settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asyncio.run(prepare(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
