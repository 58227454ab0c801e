"""A web server on this machine that pipelines are fetched from, well-behaved or not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from infra.embedded.ports import LOOPBACK
from tests.support.packages import PIPELINE

TEXT = PIPELINE.encode()
OTHER_LOOPBACK = "127.0.0.2"


class Site:
    """A web server on this machine, and what was asked of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {"/p.yaml": TEXT}
        self.may_end = asyncio.Event()

    def url(self, path: str = "/p.yaml", host: str = LOOPBACK) -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        match request.path.split("/")[1:]:
            case ["status", status]:
                return web.Response(status=int(status), text="no pipeline here")
            case ["to"]:
                return web.Response(status=302, headers={"Location": request.query["url"]})
            case ["hops", hops, name]:
                target = f"/hops/{int(hops) - 1}/{name}" if int(hops) > 1 else f"/{name}"
                return web.Response(status=307, headers={"Location": target})
            case ["slowly", *_]:
                return await self._in_parts(request, [TEXT[:10], TEXT[10:50], TEXT[50:]])
            case ["never", *_]:
                response = await self._begun(request)
                await self.may_end.wait()
                return response
            case ["cut", *_]:
                response = web.StreamResponse(headers={"Content-Length": str(len(TEXT))})
                await response.prepare(request)
                await response.write(TEXT[:20])
                assert request.transport is not None
                request.transport.close()
                return response
            case ["endless", *_]:
                response = await self._begun(request)
                while request.transport is not None and not request.transport.is_closing():
                    await response.write(bytes(16 * 1024))
                return response
            case _:
                return web.Response(body=self.files[request.path])

    async def _begun(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    async def _in_parts(self, request: web.Request, parts: Sequence[bytes]) -> web.StreamResponse:
        response = await self._begun(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0)
        return response


@asynccontextmanager
async def serving_site() -> AsyncIterator[Site]:
    """At both of its addresses."""
    with socket.create_server((LOOPBACK, 0)) as first:
        port = first.getsockname()[1]
        with socket.create_server((OTHER_LOOPBACK, port)) as second:
            site = Site(port)
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", site.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            for listening in (first, second):
                await web.SockSite(runner, listening).start()
            yield site
            site.may_end.set()
            await runner.cleanup()


def from_url(url: str, **others: Any) -> dict[str, Any]:
    return {"url": {"pipeline_url": url}, **others}


def version_from_url(url: str, pipeline_id: str, **others: Any) -> dict[str, Any]:
    owner = {"key": {"type": "PIPELINE", "id": pipeline_id}, "relationship": "OWNER"}
    return {"package_url": {"pipeline_url": url}, "resource_references": [owner], **others}
