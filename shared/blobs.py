"""The one door to the object store: packages, manifests, artifacts and logs, in one bucket of any S3 server.

The SDK is synchronous: one client per process, its calls run in threads, a few at a time. Nothing here knows
what the objects mean beyond the two places everyone shares: `manifests/<sha256>` and keys given by the caller.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import msgspec
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from shared.errors import Unavailable

if TYPE_CHECKING:
    from minio import Minio

T = TypeVar("T")

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 * 1024
_THREADS = 8


class NoSuchObject(Exception):
    """Nothing is stored under this key."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What the store says of an object."""

    size: int
    etag: str
    """Changes with the content."""


class Blobs:
    """Objects of one bucket. Every method may raise Unavailable; reads raise NoSuchObject."""

    def __init__(self, url: str, *, access_key: str, secret_key: str, bucket: str) -> None:
        """`url` is `http://host:port` or `https://host[:port]`."""
        self.bucket = bucket
        self._url = urlsplit(url)
        self._access_key = access_key
        self._secret_key = secret_key
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="blobs")
        self._connecting = threading.Lock()
        self._client: Minio | None = None

    @property
    def endpoint(self) -> str:
        """`host:port`, as artifacts' locations name it."""
        return self._url.netloc

    @property
    def is_insecure(self) -> bool:
        return self._url.scheme == "http"

    async def ensure_bucket(self) -> None:
        """Create the bucket where it is missing, waiting for a store that is still starting."""

        def ensure(client: Minio) -> None:
            if not client.bucket_exists(self.bucket):
                client.make_bucket(self.bucket)

        @retry(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            stop=stop_after_delay(30),
            reraise=True,
        )
        async def patiently() -> None:
            await self._call(ensure)

        await patiently()

    async def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        await self._call(
            lambda client: client.put_object(
                self.bucket, key, io.BytesIO(data), length=len(data), content_type=content_type
            )
        )

    async def put_file(self, key: str, file: Path) -> int:
        """Store a file by streaming it. Returns its size in bytes."""

        def put(client: Minio) -> int:
            size = file.stat().st_size
            with file.open("rb") as stream:
                client.put_object(self.bucket, key, stream, length=size)
            return size

        return await self._call(put)

    async def put_stream(self, key: str, stream: BinaryIO, length: int) -> None:
        await self._call(lambda client: client.put_object(self.bucket, key, stream, length=length))

    async def get(self, key: str, *, largest_bytes: int | None = None) -> bytes:
        """The whole object, or its first `largest_bytes` (at least one)."""

        def get(client: Minio) -> bytes:
            response = self._open(client, key, 0, largest_bytes)
            if response is None:
                return b""
            try:
                data: bytes = response.read()
                return data
            finally:
                response.close()
                response.release_conn()

        return await self._call(get)

    async def get_file(self, key: str, file: Path) -> None:
        """Download into `file`, streaming; the file is whole or absent."""
        await self._call(lambda client: client.fget_object(self.bucket, key, str(file)))

    async def stream(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The object in chunks, from the byte `offset` on, at most `length` bytes. Raises NoSuchObject before the
        first chunk. From its end on, an object has no bytes."""
        response = await self._call(lambda client: self._open(client, key, offset, length))
        if response is None:
            return
        try:
            while chunk := await self._call(lambda _: response.read(_CHUNK_BYTES)):
                yield chunk
        finally:
            response.close()
            response.release_conn()

    async def stat(self, key: str) -> Stored:
        """Raises NoSuchObject."""

        def stat(client: Minio) -> Stored:
            found = client.stat_object(self.bucket, key)
            return Stored(size=int(found.size or 0), etag=str(found.etag or ""))

        return await self._call(stat)

    async def exists(self, key: str) -> bool:
        def stat(client: Minio) -> bool:
            client.stat_object(self.bucket, key)
            return True

        try:
            return await self._call(stat)
        except NoSuchObject:
            return False

    async def list_keys(self, prefix: str) -> list[str]:
        """The keys that begin so, in order."""
        return await self._call(
            lambda client: sorted(
                str(found.object_name)
                for found in client.list_objects(self.bucket, prefix=prefix, recursive=True)
                if not found.is_dir
            )
        )

    async def delete(self, key: str) -> None:
        """Harmless where the object is absent."""
        await self._call(lambda client: client.remove_object(self.bucket, key))

    async def put_manifest(self, text: str) -> str:
        """Store a manifest once under its digest. Returns the digest (SHA-256, hex)."""
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        await self.put(f"manifests/{digest}", data, content_type="application/json")
        return digest

    async def get_manifest(self, digest: str) -> str:
        return (await self.get(f"manifests/{digest}")).decode()

    async def check(self) -> None:
        await self._call(lambda client: client.bucket_exists(self.bucket))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self, client: Minio, key: str, offset: int, length: int | None) -> Any:
        """The answer to read from and to release; None where the object ends before the first byte asked for."""
        from minio.error import S3Error

        try:
            return client.get_object(self.bucket, key, offset=offset, length=length or 0)
        except S3Error as error:
            if error.code == "InvalidRange":
                return None
            raise

    async def _call(self, work: Callable[[Minio], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._translated, work)

    def _translated(self, work: Callable[[Any], T]) -> T:
        from minio.error import MinioException, S3Error
        from urllib3.exceptions import HTTPError

        try:
            return work(self._connected())
        except S3Error as error:
            if error.code in {"NoSuchKey", "NoSuchBucket", "NoSuchObject"}:
                raise NoSuchObject(str(error.resource)) from error
            raise Unavailable("The object store refuses.", cause=f"{error.code}: {error.message}") from error
        except (MinioException, HTTPError, OSError) as error:
            raise Unavailable("The object store does not answer.", cause=repr(error)[:500]) from error

    def _connected(self) -> Minio:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Minio:
        import urllib3
        from minio import Minio

        return Minio(
            endpoint=self._url.netloc,
            access_key=self._access_key,
            secret_key=self._secret_key,
            secure=not self.is_insecure,
            region="us-east-1",
            http_client=urllib3.PoolManager(
                maxsize=_THREADS,
                timeout=urllib3.Timeout(connect=2, read=30),
                retries=urllib3.Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504]),
            ),
        )
