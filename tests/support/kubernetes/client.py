"""A plain client of any API server: paths and documents, and nothing made of either.

It stands apart from the product's client, so that what tests prove about a server is not what that client makes of it.
"""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from kubernetes_asyncio import config
from kubernetes_asyncio.client import Configuration

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_MOST_CONNECTIONS = 100
_LONGEST_LINE_BYTES = 4 * 1024 * 1024
"""An event holds a whole object."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.body, type=dict[str, Any])
        return decoded

    @property
    def version(self) -> str:
        return str(self.document["metadata"]["resourceVersion"])

    @property
    def reason(self) -> str:
        return str(self.document.get("reason", ""))

    @property
    def message(self) -> str:
        return str(self.document.get("message", ""))

    def ok(self) -> dict[str, Any]:
        """The document of a success."""
        assert self.status < 300, (self.status, self.body[:1000])
        return self.document


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One of a watch."""

    type: str
    object: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.object["metadata"].get("name", ""))

    @property
    def version(self) -> int:
        return int(self.object["metadata"]["resourceVersion"])


class Refused(Exception):
    """No watch of this kind."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class ApiClient:
    def __init__(self, session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> None:
        self._session = session
        self._url = url
        self._headers = headers

    async def ask(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        token: str | None = None,
        **query: str,
    ) -> Answer:
        """`document` may be the bytes of one. `token` stands for whatever the client would show otherwise."""
        body = document if isinstance(document, bytes | None) else msgspec.json.encode(document)
        # aiohttp warns of large bodies that are no files.
        data = None if body is None else io.BytesIO(body)
        headers = {**self._headers, "Accept": accept, "Content-Type": content_type}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._session.request(method, self._url + path, data=data, headers=headers, params=query) as answer:
            return Answer(status=answer.status, body=await answer.read())

    async def get(self, path: str, **query: str) -> Answer:
        return await self.ask("GET", path, **query)

    async def post(self, path: str, document: Any, **query: str) -> Answer:
        return await self.ask("POST", path, document, **query)

    async def put(self, path: str, document: Any, **query: str) -> Answer:
        return await self.ask("PUT", path, document, **query)

    async def merge(self, path: str, patch: Any, **query: str) -> Answer:
        return await self.ask("PATCH", path, patch, content_type=MERGE, **query)

    async def delete(self, path: str, options: Any = None, **query: str) -> Answer:
        return await self.ask("DELETE", path, options, **query)

    @contextlib.asynccontextmanager
    async def watch(
        self, path: str, *, accept: str = "application/json", **query: str
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Open by the time one is inside. The events end where the server ends them; where the connection breaks,
        they do so with aiohttp's ClientError."""
        headers = {**self._headers, "Accept": accept}
        async with self._session.get(self._url + path, headers=headers, params={"watch": "1", **query}) as answer:
            if answer.status != 200:
                raise Refused(answer.status, await answer.text())
            yield _events(answer)

    async def stream(self, path: str, **query: str) -> AsyncGenerator[bytes, None]:
        async with self._session.get(self._url + path, headers=self._headers, params=query) as answer:
            assert answer.status == 200, (answer.status, await answer.read())
            async for chunk in answer.content.iter_any():
                yield chunk


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    async for line in answer.content:
        yield msgspec.json.decode(line, type=Event)


@contextlib.asynccontextmanager
async def connected(url: str, token: str) -> AsyncIterator[ApiClient]:
    async with _session(tls=None) as session:
        yield ApiClient(session, url, {"Authorization": f"Bearer {token}"})


@contextlib.asynccontextmanager
async def connected_by(kubeconfig: Path) -> AsyncIterator[ApiClient]:
    """As the current context of the file says."""
    found = Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=found)
    shown = found.api_key.get("BearerToken")
    async with _session(tls=_tls(found)) as session:
        yield ApiClient(session, str(found.host), {"Authorization": shown} if shown else {})


def _tls(found: Configuration) -> ssl.SSLContext | None:
    if not str(found.host).startswith("https"):
        return None
    context = ssl.create_default_context(cafile=found.ssl_ca_cert)
    if not found.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if found.cert_file:
        context.load_cert_chain(found.cert_file, found.key_file)
    return context


def _session(*, tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=True if tls is None else tls, limit=_MOST_CONNECTIONS)
    return aiohttp.ClientSession(
        connector=connector, read_bufsize=_LONGEST_LINE_BYTES, timeout=aiohttp.ClientTimeout(total=None, connect=20)
    )
