"""Artifacts as they are stored, whole and in parts, beside the API of the original."""

from __future__ import annotations

import pytest

from tests.component.run.conftest import World
from tests.component.run.test_life import node

DATA = bytes(range(256)) * 4000
KEY = "artifacts/w/a/my model.tgz"


async def stored(world: World, data: bytes = DATA) -> str:
    """The address of an artifact that a step has stored."""
    await world.blobs.put(KEY, data)
    run_id = (await world.client.create())["id"]
    artifacts = [{"name": "model", "s3": {"key": KEY}}, {"name": "gone", "s3": {"key": "nowhere"}}]
    await world.observe(run_id, "Running", nodes=(node("a", "Succeeded", outputs={"artifacts": artifacts}),))
    return f"{world.client.base}/apis/headrace/v1/runs/{run_id}/nodes/a/artifacts/model"


async def test_an_artifact_is_downloaded_as_it_is_stored(world: World) -> None:
    url = await stored(world)

    async with world.client.session.get(url) as response:
        assert response.status == 200
        assert await response.read() == DATA
    assert response.headers["content-length"] == str(len(DATA))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''my%20model.tgz"
    assert response.headers["x-content-type-options"] == "nosniff"

    async with world.client.session.head(url) as head:
        assert head.status == 200
        assert head.headers["content-length"] == str(len(DATA))
        assert head.headers["etag"] == response.headers["etag"]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=1000-", 1000, len(DATA) - 1), ("bytes=-7", len(DATA) - 7, len(DATA) - 1)],
)
async def test_a_part_of_an_artifact_is_downloaded(world: World, asked: str, first: int, last: int) -> None:
    url = await stored(world)

    async with world.client.session.get(url, headers={"Range": asked}) as response:
        assert response.status == 206
        assert await response.read() == DATA[first : last + 1]
    assert response.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert response.headers["content-length"] == str(last + 1 - first)


async def test_a_download_goes_on_where_it_broke_off_unless_the_artifact_is_another_one(world: World) -> None:
    url = await stored(world)
    async with world.client.session.get(url) as response:
        etag = response.headers["etag"]

    async with world.client.session.get(url, headers={"Range": "bytes=500-", "If-Range": etag}) as rest:
        assert (rest.status, await rest.read()) == (206, DATA[500:])
    await world.blobs.put(KEY, b"of a later attempt")
    async with world.client.session.get(url, headers={"Range": "bytes=500-", "If-Range": etag}) as whole:
        assert (whole.status, await whole.read()) == (200, b"of a later attempt")


async def test_a_part_beyond_the_end_is_refused_with_the_size(world: World) -> None:
    url = await stored(world)

    async with world.client.session.get(url, headers={"Range": f"bytes={len(DATA)}-"}) as response:
        assert response.status == 416
        assert response.headers["content-range"] == f"bytes */{len(DATA)}"
        assert (await response.json())["code"] == 3


async def test_an_empty_artifact_is_downloaded_and_has_no_parts(world: World) -> None:
    url = await stored(world, b"")

    async with world.client.session.get(url) as response:
        assert (response.status, response.headers["content-length"], await response.read()) == (200, "0", b"")
    async with world.client.session.get(url, headers={"Range": "bytes=0-"}) as response:
        assert response.status == 416


async def test_what_is_not_there_is_not_found(world: World) -> None:
    url = await stored(world)
    base, _, _ = url.rpartition("/")

    for unknown in (f"{base}/nothing", f"{base}/gone", url.replace("/nodes/a/", "/nodes/b/")):
        async with world.client.session.get(unknown) as response:
            assert response.status == 404
            assert (await response.json())["details"][0]["error_message"].startswith("artifact runs/")
    async with world.client.session.get(f"{world.client.base}/apis/headrace/v1/runs/x/nodes/a/artifacts/m") as response:
        assert response.status == 404
        assert (await response.json())["details"][0]["error_message"] == "Run x not found."
