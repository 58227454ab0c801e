"""P1 and V1: pipelines that clients name by URL."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from infra.embedded.ports import LOOPBACK
from services.pipeline_registry.fetching import MOST_REDIRECTS, Fetcher
from shared.addresses import Reach
from shared.blobs import Blobs
from shared.database import Database
from shared.errors import InvalidInput
from tests.support.packages import PIPELINE, padded_to, tarball, tarball_of_zeros, zipped
from tests.support.service import V1, Client

from .conftest import Replica, upload, upload_version
from .site import OTHER_LOOPBACK, TEXT, Site, from_url, version_from_url

SMALL = 64 * 1024
"""The largest package of the tests that exceed it."""


@pytest.fixture
async def registry(replica: Replica) -> AsyncIterator[Client]:
    """One that may fetch from this machine's first address, and from no other that is not public."""
    async with replica(fetch_allowed_networks=(f"{LOOPBACK}/32",), fetch_seconds=20.0) as client:
        yield client


async def refusal(registry: Client, document: Any, path: str = "/pipelines") -> tuple[int, str, str]:
    """The status, the user's text and the technical one."""
    status, body = await registry.refused("POST", path, document)
    assert body["message"] == body["error"]
    return status, body["details"][0]["error_message"], body["error"]


def failed(url: str) -> str:
    return (
        f"Failed to download the pipeline from {url} "
        "Please double check the URL is valid and can be accessed by the pipeline system."
    )


async def test_a_pipeline_is_made_from_what_stands_at_a_url(registry: Client, site: Site, blobs: Blobs) -> None:
    pipeline = await registry.post("/pipelines", from_url(site.url(), name="mine", description="as I said"))
    assert pipeline["name"] == "mine"
    assert pipeline["description"] == "as I said"
    assert [parameter["name"] for parameter in pipeline["parameters"]] == ["greeting", "count", "whom"]
    assert pipeline["default_version"]["id"] == pipeline["id"]
    assert pipeline["default_version"]["name"] == "mine"
    assert "url" not in pipeline
    assert await registry.get(f"/pipelines/{pipeline['id']}") == pipeline
    assert await blobs.get(f"pipelines/{pipeline['id']}") == TEXT


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/a/p.tar.gz", tarball(("pipeline.yaml", TEXT))),
        ("/a/p.zip", zipped(("pipeline.yaml", TEXT))),
        ("/a/download", zipped(("first.yml", TEXT))),
        ("/a/100 %25+ü.yaml", TEXT),
    ],
)
async def test_without_a_name_it_is_called_as_its_file(registry: Client, site: Site, path: str, content: bytes) -> None:
    site.files[path.replace("%25", "%")] = content
    pipeline = await registry.post("/pipelines", {"url": {"pipelineUrl": site.url(path)}})
    assert pipeline["name"] == path.rpartition("/")[2]
    assert await registry.get(f"/pipelines/{pipeline['id']}/templates") == {"template": PIPELINE}


async def test_the_name_of_the_file_includes_the_query(registry: Client, site: Site) -> None:
    site.files["/p.zip"] = zipped(("pipeline.yaml", TEXT))
    assert (await registry.post("/pipelines", from_url(site.url("/p.zip?v=1"))))["name"] == "p.zip?v=1"
    status, message, error = await refusal(registry, from_url(site.url("/p.yaml?v=1")))
    assert status == 400
    assert message == "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML."
    assert error.startswith("The URL is valid but pipeline system failed to read the file.: Invalid input error: ")


async def test_a_name_is_kept_as_it_was_given(registry: Client, site: Site) -> None:
    for name in ("a+b", "100%", "a%2Bb", "ü" * 50):
        assert (await registry.post("/pipelines", from_url(site.url(), name=name)))["name"] == name


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"url":null}', b'{"url":{}}', b'{"url":{"pipeline_url":""}}'])
@pytest.mark.parametrize("path", ["pipelines", "pipeline_versions"])
async def test_no_url_is_refused(registry: Client, path: str, body: bytes) -> None:
    answer = await registry.call("POST", f"{V1}/{path}", data=body)
    assert answer.status == 400
    assert answer.json["error"] == "Invalid input error: Pipeline URL is empty. Please specify a valid URL."


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/p.yaml", "/etc/passwd", "p.yaml", "http://"])
async def test_urls_that_are_not_of_the_web_are_refused(registry: Client, url: str) -> None:
    text = f"Invalid Pipeline URL {url}. Please specify a valid URL"
    expected = (400, text, f"Invalid input error: {text}")
    assert await refusal(registry, from_url(url)) == expected
    assert await refusal(registry, version_from_url(url, "unknown"), "/pipeline_versions") == expected


async def test_a_body_that_is_none_is_refused(registry: Client) -> None:
    for body in (b"{", b"[]", b'{"url":"text"}', b'{"name":5}'):
        answer = await registry.call("POST", f"{V1}/pipelines", data=body)
        assert (answer.status, answer.json["code"]) == (400, 3)


@pytest.mark.parametrize("path", ["/status/404", "/status/500", "/status/204", "/status/206", "/status/304", "/cut/p"])
async def test_what_cannot_be_downloaded_is_refused(registry: Client, site: Site, path: str) -> None:
    url = site.url(path)
    status, message, error = await refusal(registry, from_url(url))
    assert (status, message) == (400, failed(url))
    assert error.startswith(f"InvalidInputError: {failed(url)}: ")
    assert await registry.get("/pipelines") == {}


async def test_a_server_that_is_not_there_is_refused(registry: Client) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        url = f"http://{LOOPBACK}:{listening.getsockname()[1]}/p.yaml"
    assert (await refusal(registry, from_url(url)))[:2] == (400, failed(url))
    url = "http://name.invalid/p.yaml"
    assert (await refusal(registry, from_url(url)))[:2] == (400, failed(url))


async def test_a_download_in_parts_is_read_whole(registry: Client, site: Site) -> None:
    pipeline = await registry.post("/pipelines", from_url(site.url("/slowly/p.yaml")))
    assert await registry.get(f"/pipelines/{pipeline['id']}/templates") == {"template": PIPELINE}


async def test_a_download_that_never_ends_is_given_up_while_others_are_served(replica: Replica, site: Site) -> None:
    async with replica(fetch_any_network=True, fetch_seconds=0.5) as registry:
        slow = asyncio.create_task(refusal(registry, from_url(site.url("/never/p.yaml"))))
        assert await registry.post("/pipelines", from_url(site.url()))
        status, message, error = await slow
    assert (status, message) == (400, failed(site.url("/never/p.yaml")))
    assert "it takes longer than 0.5 s" in error


async def test_too_many_downloads_at_a_time_wait_and_are_told_so(replica: Replica, site: Site) -> None:
    async with replica(fetch_any_network=True, fetch_seconds=0.5, fetches=1) as registry:
        answers = await asyncio.gather(
            *(registry.call("POST", f"{V1}/pipelines", json=from_url(site.url("/never/p.yaml"))) for _ in range(3))
        )
    assert sorted(answer.status for answer in answers)[0] == 400
    assert {answer.status for answer in answers} == {400, 503}


async def test_a_download_is_limited(replica: Replica, site: Site) -> None:
    site.files["/largest.yaml"] = padded_to(SMALL)
    site.files["/larger.yaml"] = padded_to(SMALL + 1)
    site.files["/bomb.tgz"] = tarball_of_zeros(100 * SMALL)
    async with replica(fetch_any_network=True, largest_package_bytes=SMALL) as registry:
        assert (await registry.post("/pipelines", from_url(site.url("/largest.yaml"))))["name"] == "largest.yaml"
        for path in ("/larger.yaml", "/endless/p.yaml", "/bomb.tgz"):
            status, message, error = await refusal(registry, from_url(site.url(path)))
            assert (status, message) == (400, f"File size too large. Maximum supported size: {SMALL}")
            assert error.startswith("The URL is valid but pipeline system failed to read the file.: ")
            assert "HEADRACE_LARGEST_PACKAGE_BYTES" in error


async def test_redirects_are_followed_so_far(registry: Client, site: Site) -> None:
    pipeline = await registry.post("/pipelines", from_url(site.url(f"/hops/{MOST_REDIRECTS}/p.yaml")))
    assert pipeline["name"] == "p.yaml"
    url = site.url(f"/hops/{MOST_REDIRECTS + 1}/p.yaml")
    assert (await refusal(registry, from_url(url)))[:2] == (400, failed(url))


@pytest.mark.parametrize(
    "host", [OTHER_LOOPBACK, "localhost", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:127.0.0.2]", "0.0.0.0"]
)
async def test_addresses_that_are_not_public_are_refused_unless_listed(replica: Replica, site: Site, host: str) -> None:
    allowed = ("10.99.0.0/16",) if host == "localhost" else (f"{LOOPBACK}/32",)
    async with replica(fetch_allowed_networks=allowed) as registry:
        url = site.url(host=host)
        status, message, error = await refusal(registry, from_url(url))
        assert (status, message) == (400, f"Invalid Pipeline URL {url}. Please specify a valid URL")
        assert "HEADRACE_FETCH_ALLOWED_NETWORKS may list its network" in error
        status, message, _ = await refusal(registry, version_from_url(url, "unknown"), "/pipeline_versions")
        assert (status, message) == (400, f"Invalid Pipeline URL {url}. Please specify a valid URL")
    assert site.asked == []


@pytest.mark.parametrize("spelling", ["2130706434", "0x7f000002", "127.2", "0177.0.0.2"])
async def test_no_spelling_of_an_address_leads_around_the_check(registry: Client, site: Site, spelling: str) -> None:
    assert (await refusal(registry, from_url(site.url(host=spelling))))[0] == 400
    assert site.asked == []


async def test_the_target_of_a_redirect_is_checked_too(registry: Client, site: Site) -> None:
    for target in (site.url(host=OTHER_LOOPBACK), "http://169.254.169.254/latest/meta-data"):
        url = site.url(f"/to?url={target}")
        status, message, _ = await refusal(registry, from_url(url))
        assert (status, message) == (400, f"Invalid Pipeline URL {url}. Please specify a valid URL")
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/p.yaml", "gopher://127.0.0.1/"):
        url = site.url(f"/to?url={target}")
        assert (await refusal(registry, from_url(url)))[:2] == (400, failed(url))
    assert set(site.asked) == {"/to"}


class _Fickle(AbstractResolver):
    """A name whose meaning changes with every question."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
            for address in self._answers.pop(0)
        ]

    async def close(self) -> None:
        return None


@asynccontextmanager
async def fetched_as(site: Site, path: str, *answers: Sequence[str]) -> AsyncIterator[bytes]:
    fetcher = Fetcher(
        reach=Reach([f"{LOOPBACK}/32"]),
        largest_bytes=SMALL,
        seconds=10,
        at_a_time=1,
        resolver=_Fickle(*answers),
    )
    async with fetcher.fetched(site.url(path, host="fickle.example")) as download:
        download.content.seek(0)
        yield download.content.read()


async def test_a_name_that_changes_its_meaning_between_two_connections_is_refused(site: Site) -> None:
    path = f"/to?url={site.url(host='fickle.example')}"
    async with fetched_as(site, path, [LOOPBACK], [LOOPBACK]) as content:
        assert content == TEXT
    site.asked.clear()
    with pytest.raises(InvalidInput, match="Invalid Pipeline URL"):
        async with fetched_as(site, path, [LOOPBACK], [OTHER_LOOPBACK]):
            pass
    assert site.asked == ["/to"]


async def test_of_a_names_many_addresses_only_those_that_pass_are_tried(site: Site) -> None:
    async with fetched_as(site, "/p.yaml", [OTHER_LOOPBACK, "10.0.0.1", LOOPBACK]) as content:
        assert content == TEXT
    with pytest.raises(InvalidInput, match="Invalid Pipeline URL"):
        async with fetched_as(site, "/p.yaml", [OTHER_LOOPBACK, "10.0.0.1"]):
            pass


async def test_the_checks_of_a_pipeline_come_in_the_apis_order(registry: Client, site: Site) -> None:
    """Each document fails every later check as well."""
    site.files |= {"/bad.txt": b"kind: Pod", "/bad.yaml": b"kind: Pod"}
    await upload(registry, "taken")
    long = "ü" * 50 + "a"
    assert (await refusal(registry, from_url("", name=long)))[1] == "Pipeline URL is empty. Please specify a valid URL."
    assert (await refusal(registry, from_url("x:y", name=long)))[1].startswith("Invalid Pipeline URL x:y.")
    assert (await refusal(registry, from_url(site.url("/status/404"), name=long)))[1].startswith("Failed to download")
    assert (await refusal(registry, from_url(site.url("/bad.txt"), name=long)))[2].startswith("The URL is valid but")
    assert await refusal(registry, from_url(site.url("/bad.yaml"), name=long)) == (
        400,
        "Pipeline name too long. Support maximum length of 100",
        "Invalid pipeline name.: Invalid input error: Pipeline name too long. Support maximum length of 100",
    )
    status, message, error = await refusal(registry, from_url(site.url("/bad.yaml"), name="taken"))
    assert (status, message) == (400, "unknown template format")
    assert error.startswith("Create pipeline failed.: Create pipeline failed: InvalidInputError: unknown template")
    text = "Failed to create a new pipeline. The name taken already exist. Please specify a new name."
    assert await refusal(registry, from_url(site.url(), name="taken")) == (
        409,
        text,
        f"Create pipeline failed.: Create pipeline failed: Already exist error: {text}",
    )


async def test_a_version_is_made_from_what_stands_at_a_url(registry: Client, site: Site) -> None:
    pipeline = await upload(registry)
    newer = PIPELINE.replace("value: hello", "value: newer")
    site.files["/newer.yaml"] = newer.encode()
    asked = version_from_url(
        site.url("/newer.yaml"), pipeline["id"], name="v2", description="better", code_source_url="https://code"
    )
    version = await registry.post("/pipeline_versions", asked)
    assert version == {
        "id": version["id"],
        "name": "v2",
        "created_at": version["created_at"],
        "parameters": [{"name": "greeting", "value": "newer"}, *pipeline["parameters"][1:]],
        "code_source_url": "https://code",
        "resource_references": [{"key": {"type": "PIPELINE", "id": pipeline["id"]}, "relationship": "OWNER"}],
        "description": "better",
    }
    assert await registry.get(f"/pipeline_versions/{version['id']}") == version
    found = await registry.get(f"/pipelines/{pipeline['id']}")
    assert found["default_version"] == version
    assert found["parameters"] == pipeline["parameters"]
    assert await registry.get(f"/pipeline_versions/{version['id']}/templates") == {"template": newer}


async def test_a_version_from_a_url_leaves_the_default_where_the_setting_says_so(replica: Replica, site: Site) -> None:
    async with replica(auto_update_pipeline_default_version=False, fetch_any_network=True) as registry:
        pipeline = await upload(registry)
        await registry.post("/pipeline_versions", version_from_url(site.url(), pipeline["id"], name="v2"))
        assert (await registry.get(f"/pipelines/{pipeline['id']}"))["default_version"]["id"] == pipeline["id"]


async def test_a_versions_name_may_be_empty_or_long(registry: Client, site: Site) -> None:
    pipeline = await upload(registry)
    for name in ("", "n" * 300):
        version = await registry.post("/pipeline_versions", version_from_url(site.url(), pipeline["id"], name=name))
        assert version.get("name", "") == name


async def test_the_last_pipeline_among_the_references_owns_the_version(registry: Client, site: Site) -> None:
    one, two = await upload(registry, "one"), await upload(registry, "two")
    asked = version_from_url(site.url(), one["id"], name="v2")
    asked["resource_references"] += [
        {"key": {"type": 3, "id": two["id"]}, "relationship": 1},
        {"key": {"type": "PIPELINE", "id": one["id"]}, "relationship": "CREATOR"},
        {"key": {"type": "EXPERIMENT", "id": one["id"]}, "relationship": "OWNER"},
        {"relationship": "OWNER"},
    ]
    version = await registry.post("/pipeline_versions", asked)
    assert version["resource_references"][0]["key"]["id"] == two["id"]


async def test_a_version_has_a_name_that_an_index_can_hold(registry: Client, site: Site) -> None:
    pipeline = await upload(registry, "one")
    longest = secrets.token_hex(1_000)  # Nothing in it repeats, so that nothing can be stored shorter than it is.
    asked = version_from_url(site.url(), pipeline["id"], name=longest)
    assert (await registry.post("/pipeline_versions", asked))["name"] == longest
    assert (await registry.refused("POST", "/pipeline_versions", asked))[0] == 409
    text = "The version name is longer than 2000 bytes. Please specify a shorter one."
    for name in (longest + "x", secrets.token_hex(1_400), secrets.token_hex(150_000)):
        asked = version_from_url(site.url(), pipeline["id"], name=name)
        assert await refusal(registry, asked, "/pipeline_versions") == (
            400,
            text,
            f"Invalid pipeline version name.: Invalid input error: {text}",
        )


async def test_the_checks_of_a_version_come_in_the_apis_order(registry: Client, site: Site, database: Database) -> None:
    site.files |= {"/bad.txt": b"kind: Pod", "/bad.yaml": b"kind: Pod"}
    pipeline = await upload(registry, "one")
    await upload_version(registry, pipeline["id"], "taken")

    async def refused(path: str, pipeline_id: str, name: str = "") -> tuple[int, str, str]:
        return await refusal(registry, version_from_url(site.url(path), pipeline_id, name=name), "/pipeline_versions")

    assert (await refused("/status/404", ""))[1].startswith("Failed to download the pipeline from ")
    assert (await refused("/bad.txt", ""))[2].startswith("The URL is valid but pipeline system failed to read the file")
    text = "Create pipeline version failed due to missing pipeline id"
    assert await refused("/bad.yaml", "") == (400, text, f"Invalid input error: {text}")
    status, message, error = await refused("/bad.yaml", "unknown")
    assert (status, message) == (400, "unknown template format")
    assert error.startswith("Failed to create a version.: Create pipeline version failed: InvalidInputError: ")
    assert await refused("/p.yaml", "unknown") == (
        404,
        "Pipeline unknown not found.",
        "Failed to create a version.: Create pipeline version failed: "
        "ResourceNotFoundError: Pipeline unknown not found.",
    )
    text = "Failed to create a new pipeline version. The name taken already exist. Please specify a new name."
    assert await refused("/p.yaml", pipeline["id"], "taken") == (
        409,
        text,
        f"Failed to create a version.: Create pipeline version failed: Already exist error: {text}",
    )
    assert await database.fetchval("select count(*) from pipeline_versions") == 2


async def test_parallel_creations_of_one_name_at_two_replicas_make_exactly_one(
    registry: Client, replica: Replica, site: Site
) -> None:
    async with replica(fetch_any_network=True) as other:
        made = await asyncio.gather(
            *(
                each.call("POST", f"{V1}/pipelines", json=from_url(site.url(), name="same"))
                for each in (registry, other) * 3
            )
        )
        assert sorted(answer.status for answer in made) == [200] + [409] * 5
        (pipeline_id,) = (answer.json["id"] for answer in made if answer.status == 200)
        made = await asyncio.gather(
            *(
                each.call("POST", f"{V1}/pipeline_versions", json=version_from_url(site.url(), pipeline_id, name="v"))
                for each in (registry, other) * 3
            )
        )
        assert sorted(answer.status for answer in made) == [200] + [409] * 5
        assert (await other.get("/pipeline_versions", **{"resource_key.id": pipeline_id}))["total_size"] == 2
