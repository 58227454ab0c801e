"""A delivery on its way out to a URL that a client named: untrusted in where it leads and in what it answers.

The one place of the service that speaks HTTP as a client. Where that may lead is for `shared.addresses` to say; when
something is sent, and what follows from the answer, it does not know.

Deliveries are signed as the Standard Webhooks specification says (standardwebhooks.com), by its library.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
import time
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from standardwebhooks import Webhook as Signer

from shared.addresses import Guard, Reach
from shared.clock import now

from .domain import Result

if TYPE_CHECKING:
    import aiohttp

_CONNECT_SECONDS: Final = 10.0
_KEEP_ALIVE_SECONDS: Final = 2.0
"""Less than any receiver keeps an idle connection: what is sent on one that it has just closed is lost."""
_LARGEST_ANSWER_BYTES: Final = 64 * 1024
"""Nobody looks at it; it is read so that the connection can be used again."""
_LONGEST_REASON: Final = 300
_SECRET_BYTES: Final = 32


def new_secret() -> str:
    return "whsec_" + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(signed_by: Sequence[str], message_id: str, at: datetime, body: bytes) -> str:
    """By each of the secrets: whoever knows one of them can tell."""
    return " ".join(Signer(secret).sign(message_id, at, body.decode()) for secret in signed_by)


class Sender:
    def __init__(self, reach: Reach, *, seconds: float, at_a_time: int) -> None:
        """`seconds` bound an attempt from the resolution of the name to the end of the answer."""
        self._reach = reach
        self._seconds = seconds
        self._at_a_time = at_a_time
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    async def send(self, url: str, message_id: str, body: bytes, content_type: str, signed_by: Sequence[str]) -> Result:
        """Never raises: whatever goes wrong is a result."""
        session = await self._opened()
        import aiohttp

        at = now()
        started = time.monotonic()
        headers = {
            "content-type": content_type,
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signature(signed_by, message_id, at, body),
        }
        code, reason = 0, ""
        try:
            async with (
                asyncio.timeout(self._seconds),
                session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                code = answer.status
                await _read_some(answer)
        except TimeoutError:
            code, reason = 0, f"There is no answer within {self._seconds:g} s."
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # An answer that breaks off has been given.
            reason = "" if code else _reason(error)
        milliseconds = round((time.monotonic() - started) * 1000)
        return Result(code=code, reason=reason or _words(code), milliseconds=milliseconds)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                # Most processes never send, and importing takes long for an event loop.
                await asyncio.to_thread(importlib.import_module, "aiohttp")
                import aiohttp

                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(
                        socket_factory=Guard(self._reach).socket_for,
                        limit=self._at_a_time,
                        use_dns_cache=False,
                        keepalive_timeout=_KEEP_ALIVE_SECONDS,
                    ),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                    headers={"User-Agent": "headrace-webhooks", "Accept-Encoding": "identity"},
                    auto_decompress=False,
                )
        return self._session


async def _read_some(answer: aiohttp.ClientResponse) -> None:
    length = 0
    async for chunk in answer.content.iter_any():
        length += len(chunk)
        if length > _LARGEST_ANSWER_BYTES:
            answer.close()
            return


def _words(code: int) -> str:
    if 200 <= code < 300:
        return ""
    return f"The receiver answers {code}." + (" Redirects are not followed." if 300 <= code < 400 else "")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
