"""An HTTP endpoint that inserts a row and does nothing else: the floor of every creation.

`python -m tests.bench.bare_endpoint DATABASE_URL TABLE COLUMN... PORT`: Litestar, one worker, the HTTP server of the
services; no gateway, no outbox, no rule. It reads the request's JSON, inserts, and answers with an id.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, Request, Response, post

from infra.embedded.ports import LOOPBACK
from tests.bench.bare import BareTable, pool


@post("/", status_code=200)
async def create(request: Request[Any, Any, Any]) -> Response[bytes]:
    msgspec.json.decode(await request.body())
    table: BareTable = request.app.state.table
    return Response(msgspec.json.encode({"id": await table.insert()}), media_type="application/json")


def serve(database_url: str, table: str, unique: Sequence[str], port: int) -> None:
    @asynccontextmanager
    async def connected(app: Litestar) -> AsyncIterator[None]:
        async with pool(database_url) as opened:
            app.state.table = await BareTable.open(opened, table, unique)
            yield

    app = Litestar([create], lifespan=[connected], openapi_config=None, logging_config=None)
    uvicorn.run(
        app,
        host=LOOPBACK,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    _, database_url, table, *unique, port = sys.argv
    serve(database_url, table, unique, int(port))
