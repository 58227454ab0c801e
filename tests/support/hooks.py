"""The hooks by which HTTP clients of tests hold every answer against the published reference, as they read it.

Whoever needs a client of the API takes it from here, from `tests.support.api` or from `tests.support.recorder`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import httpx

from tests.support import swagger


class JudgedResponse(aiohttp.ClientResponse):
    """Judged when it is read whole; what is read in pieces, such as a log that is followed, is no document."""

    async def read(self) -> bytes:
        body = await super().read()
        swagger.check(self.method, self.url.raw_path_qs, self.status, self.headers.get("content-type", ""), body)
        return body


def aiohttp_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(response_class=JudgedResponse)


def httpx_client(*, played: Callable[[httpx.Response], bool] | None = None, **how: Any) -> httpx.AsyncClient:
    """`played` tells which answers are the test's own, and nobody's to judge."""
    return httpx.AsyncClient(event_hooks={"response": [_judging(played)]}, **how)


def _judging(played: Callable[[httpx.Response], bool] | None) -> Callable[[httpx.Response], Awaitable[None]]:
    async def judge(answer: httpx.Response) -> None:
        if played is not None and played(answer):
            return
        body = await answer.aread()
        target = answer.request.url.raw_path.decode("ascii")
        swagger.check(answer.request.method, target, answer.status_code, answer.headers.get("content-type", ""), body)

    return judge
