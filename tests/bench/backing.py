"""The three backing servers by themselves, as the stack starts them: the floor of its start and of its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from infra.embedded.backing import PORT_NAMES, Backing
from infra.embedded.binaries import find_programs
from infra.embedded.data_dir import DataDir


@asynccontextmanager
async def backing_servers(path: Path) -> AsyncIterator[None]:
    """All three answer while the block runs."""
    data_dir = DataDir(path)
    await data_dir.open()
    try:
        rows = Backing(data_dir, data_dir.ports(PORT_NAMES), find_programs()).rows()
        await asyncio.gather(*(row.startable.start() for row in rows))
        try:
            yield
        finally:
            await asyncio.gather(*(row.startable.stop() for row in rows))
    finally:
        data_dir.close()
