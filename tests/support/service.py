"""A service in this process, served by a real server on a free port, and a client that talks to it as the gateway does.

Several of them on one database are replicas.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from infra.embedded.ports import LOOPBACK, free_ports
from shared.web import Service
from tests.support.hooks import aiohttp_session
from tests.support.prompt_server import PromptServer, as_in_production

V1 = "/apis/v1beta1"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def call(self, method: str, path: str, *, query: dict[str, str] | None = None, **how: Any) -> Reply:
        url = URL(self.url + path, encoded=True)
        async with self._session.request(method, url.update_query(query or {}), **how) as answer:
            body = await answer.read()
            return Reply(
                status=answer.status,
                headers={name.lower(): value for name, value in answer.headers.items()},
                body=body,
            )

    async def get(self, path: str, **query: str) -> Any:
        return _expected(await self.call("GET", V1 + path, query=query))

    async def post(self, path: str, document: Any = None) -> Any:
        return _expected(await self.call("POST", V1 + path, json=document))

    async def delete(self, path: str) -> Any:
        return _expected(await self.call("DELETE", V1 + path))

    async def refused(self, method: str, path: str, document: Any = None, **query: str) -> tuple[int, dict[str, Any]]:
        """The status and the body of a request that is refused."""
        answer = await self.call(method, V1 + path, query=query, json=document)
        assert answer.status >= 400, answer.body
        return answer.status, answer.json


async def status_without_the_body(url: str, path: str) -> int:
    """What a POST is answered whose body is announced and never sent."""
    address = URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".encode())
    async with asyncio.timeout(20):
        line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


@asynccontextmanager
async def serving(app: Service) -> AsyncIterator[Client]:
    """The application behind a server, started and stopped with its lifespan."""
    (port,) = free_ports(1)
    config = as_in_production(
        app, host=LOOPBACK, port=port, http="httptools", ws="none", lifespan="on", log_config=None, access_log=False
    )
    server = PromptServer(config)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                if task.done():
                    await task
                    raise AssertionError("the service did not start")
                await asyncio.sleep(0.01)
        async with aiohttp_session() as session:
            yield Client(session, f"http://{LOOPBACK}:{port}")
    finally:
        server.should_exit = True
        await task


def _expected(answer: Reply) -> Any:
    assert answer.status == 200, (answer.status, answer.body)
    return answer.json
