"""The hooks by which HTTP clients of tests hold every answer against the published reference, as they read it.

Whoever needs a client of the API takes it from here, from `tests.support.api` or from `tests.support.recorder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import aiohttp
import httpx

from tests.support import swagger

Judge = Callable[[str, str, int, str, bytes], None]
"""Of method, target, status, type and body. Raises NotAsPublished."""

listeners: Final[list[Callable[[str, str, int, bool], None]]] = []
"""Told of every answer that passed: method, target, status, and whether the reference describes it. By any thread."""


def judge(method: str, target: str, status: int, content_type: str, body: bytes) -> None:
    """Raises NotAsPublished. What no version describes passes."""
    swagger.check(method, target, status, content_type, body)
    is_described = any(swagger.operations(method, target.partition("?")[0]))
    for tell in listeners:
        tell(method, target, status, is_described)


class JudgedResponse(aiohttp.ClientResponse):
    """Judged when it is read whole; what is read in pieces, such as a log that is followed, is no document."""

    async def read(self) -> bytes:
        body = await super().read()
        judge(self.method, self.url.raw_path_qs, self.status, self.headers.get("content-type", ""), body)
        return body


def aiohttp_session(*, connector: aiohttp.TCPConnector | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(response_class=JudgedResponse, connector=connector)


def httpx_client(
    *, unless: Callable[[httpx.Response], bool] | None = None, judge: Judge = judge, **how: Any
) -> httpx.AsyncClient:
    """`unless` tells which answers are nobody's to judge."""

    async def hear(answer: httpx.Response) -> None:
        if unless is not None and unless(answer):
            return
        body = await answer.aread()
        target = answer.request.url.raw_path.decode("ascii")
        judge(answer.request.method, target, answer.status_code, answer.headers.get("content-type", ""), body)

    return httpx.AsyncClient(event_hooks={"response": [hear]}, **how)
