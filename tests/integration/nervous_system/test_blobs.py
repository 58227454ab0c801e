"""The object store, by what a service asks of it."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.embedded.ports import free_ports
from shared.blobs import Blobs, NoSuchObject
from shared.errors import Unavailable
from tests.support.servers import ObjectStoreAccess

LARGE = os.urandom(7 * 1024 * 1024 + 13)


@pytest.fixture
async def blobs(object_store_access: ObjectStoreAccess) -> AsyncIterator[Blobs]:
    access = object_store_access
    blobs = Blobs(access.endpoint_url, access_key=access.access_key, secret_key=access.secret_key, bucket=access.bucket)
    # Two at once: replicas start together.
    await asyncio.gather(blobs.ensure_bucket(), blobs.ensure_bucket())
    yield blobs
    blobs.close()


@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["empty", "small", "large"])
async def test_what_is_put_comes_back_whole_streamed_and_as_a_file(blobs: Blobs, data: bytes, tmp_path: Path) -> None:
    await blobs.put("a/b", data)
    assert await blobs.get("a/b") == data
    assert b"".join([chunk async for chunk in blobs.stream("a/b")]) == data
    await blobs.get_file("a/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert await blobs.put_file("again", tmp_path / "copy") == len(data)
    assert await blobs.get("again") == data
    await blobs.put_stream("streamed", io.BytesIO(data), len(data))
    assert await blobs.get("streamed") == data


@pytest.mark.parametrize(("stored", "largest", "expected"), [(10, 4, 4), (10, 10, 10), (10, 99, 10), (0, 4, 0)])
async def test_the_first_bytes_of_an_object(blobs: Blobs, stored: int, largest: int, expected: int) -> None:
    await blobs.put("a", b"x" * stored)
    assert len(await blobs.get("a", largest_bytes=largest)) == expected


async def test_what_is_missing_is_no_such_object(blobs: Blobs, tmp_path: Path) -> None:
    assert not await blobs.exists("nothing")
    for read in (
        blobs.get("nothing"),
        blobs.get("nothing", largest_bytes=4),
        blobs.get_file("nothing", tmp_path / "copy"),
        anext(blobs.stream("nothing")),
    ):
        with pytest.raises(NoSuchObject):
            await read
    assert os.listdir(tmp_path) == []
    await blobs.delete("nothing")


async def test_a_deleted_object_is_gone(blobs: Blobs) -> None:
    await blobs.put("a", b"x")
    assert await blobs.exists("a")
    await blobs.delete("a")
    assert not await blobs.exists("a")


async def test_a_manifest_is_kept_under_its_digest(blobs: Blobs) -> None:
    text = '{"name": "mühle"}'
    digest = await blobs.put_manifest(text)
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert await blobs.put_manifest(text) == digest
    assert await blobs.get_manifest(digest) == text


async def test_many_reads_at_once(blobs: Blobs) -> None:
    await blobs.put("a", LARGE[:100_000])
    assert set(await asyncio.gather(*(blobs.get("a") for _ in range(40)))) == {LARGE[:100_000]}


async def test_wrong_credentials_are_unavailable(object_store_access: ObjectStoreAccess) -> None:
    access = object_store_access
    blobs = Blobs(access.endpoint_url, access_key=access.access_key, secret_key="guess", bucket=access.bucket)
    with pytest.raises(Unavailable):
        await blobs.get("a")
    blobs.close()


async def test_a_store_that_is_down_is_unavailable() -> None:
    (port,) = free_ports(1)
    blobs = Blobs(f"http://127.0.0.1:{port}", access_key="a", secret_key="b", bucket="mill")
    for call in (blobs.get("a"), blobs.put("a", b"x"), blobs.check(), anext(blobs.stream("a"))):
        with pytest.raises(Unavailable):
            await call
    blobs.close()


async def test_the_keys_below_a_prefix(blobs: Blobs) -> None:
    for key in ("tree/b", "tree/a/deep", "tree-not", "tree/a/er"):
        await blobs.put(key, b"x")
    assert await blobs.list_keys("tree/") == ["tree/a/deep", "tree/a/er", "tree/b"]
    assert await blobs.list_keys("nowhere/") == []
