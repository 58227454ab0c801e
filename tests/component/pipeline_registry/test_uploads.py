"""P6 and P7: what clients bring, and what becomes of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
import pytest

from services.pipeline_registry.domain import LARGEST_PACKAGE_BYTES
from services.pipeline_registry.settings import Settings
from shared import go_yaml
from shared.blobs import Blobs
from shared.database import Database
from tests.support.eventually import eventually
from tests.support.packages import (
    PIPELINE,
    alias_bomb,
    merge_bomb,
    ordinary,
    padded_to,
    tarball,
    tarball_of_zeros,
    zipped,
)
from tests.support.service import V1, Client, Reply

from .conftest import Replica, send, upload, upload_version

TEXT = PIPELINE.encode()


def refusal(answer: Reply) -> str:
    """The text of an upload's refusal, whose body is JSON that calls itself plain text."""
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    body = answer.json
    assert set(body) == {"error_message", "error_details"}
    assert body["error_message"] == body["error_details"]
    return str(body["error_message"])


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("p.yaml", TEXT),
        ("p.tar.gz", tarball(("pipeline.yaml", TEXT))),
        ("p.zip", zipped(("pipeline.yaml", TEXT))),
        ("archive-by-content", zipped(("first.yml", TEXT))),
    ],
)
async def test_a_package_becomes_a_pipeline_with_a_version_of_the_same_id(
    registry: Client, file_name: str, content: bytes
) -> None:
    answer = await send(registry, content, file_name=file_name, description="says + hello")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    pipeline = answer.json
    assert pipeline["name"] == file_name
    assert pipeline["description"] == "says + hello"
    assert pipeline["parameters"] == [
        {"name": "greeting", "value": "hello"},
        {"name": "count", "value": "3"},
        {"name": "whom"},
    ]
    version = pipeline["default_version"]
    assert version == {
        "id": pipeline["id"],
        "name": file_name,
        "created_at": pipeline["created_at"],
        "parameters": pipeline["parameters"],
        "resource_references": [{"key": {"type": "PIPELINE", "id": pipeline["id"]}, "relationship": "OWNER"}],
        "description": "says + hello",
    }
    assert await registry.get(f"/pipelines/{pipeline['id']}") == pipeline
    assert await registry.get(f"/pipelines/{pipeline['id']}/templates") == {"template": PIPELINE}


async def test_the_original_text_and_the_manifest_are_stored(
    registry: Client, blobs: Blobs, database: Database
) -> None:
    pipeline = await upload(registry)
    assert await blobs.get(f"pipelines/{pipeline['id']}") == TEXT
    digest = await database.fetchval("select manifest_digest from pipeline_versions")
    manifest = await blobs.get(f"manifests/{digest}")
    assert hashlib.sha256(manifest).hexdigest() == digest
    assert await database.fetchval("select count(*) from doomed_objects") == 0


async def test_every_method_uploads(registry: Client) -> None:
    for method in ("PUT", "PATCH"):
        assert (await send(registry, method=method, name=method)).status == 200


@pytest.mark.parametrize(
    ("file_name", "content", "text"),
    [
        ("p.txt", TEXT, "Error read pipeline file.: Invalid input error: Unexpected pipeline file format."),
        ("p.zip", zipped(), "Empty zip file."),
        ("p.tgz", b"\x1f\x8b nonsense", "Not a valid tarball file."),
        ("p.yaml", b"\xff\xfe", "The pipeline file is not UTF-8 text."),
        ("p.yaml", b"a: [", "Error creating pipeline: Create pipeline failed: InvalidInputError: Failed to parse the"),
        ("p.yaml", b"kind: Pod", "unknown template format"),
        (
            "p.yaml",
            TEXT.replace(b"entrypoint: main", b"entrypoint: other"),
            "Error creating pipeline: Create pipeline failed: Invalid input error: template name 'other' undefined",
        ),
        ("p.yaml", TEXT.replace(b"v1alpha1", b"v9"), "Unsupported argo version. Expected: argoproj.io/v1alpha1."),
        ("p.yaml", TEXT.replace(b"hello}", b"'" + b"x" * 10_000 + b"'}"), "exceed maximum size of 10000."),
        ("p.yaml", alias_bomb().encode(), "the document is too large once its aliases are expanded"),
        ("p.yaml", merge_bomb().encode(), "the document is too large once its aliases are expanded"),
        ("p.yaml", b"[" * 1_000_000, "Failed to parse the workflow template."),
        ("p.tgz", tarball_of_zeros(512 * 1024 * 1024), "File size too large. Maximum supported size: 33554432"),
        ("x" * 97 + ".yaml", TEXT, "Invalid pipeline name.: Invalid input error: Pipeline name too long. Support max"),
    ],
)
async def test_a_bad_package_is_refused_and_leaves_nothing(
    registry: Client, database: Database, file_name: str, content: bytes, text: str
) -> None:
    answer = await send(registry, content, file_name=file_name)
    assert answer.status == 400, answer.body
    assert text in refusal(answer)
    assert await registry.get("/pipelines") == {}
    assert await database.fetchval("select count(*) from doomed_objects") == 0
    if len(file_name) <= 100:
        await upload(registry, file_name)


async def test_a_package_that_takes_too_long_is_refused_while_others_are_served(replica: Replica) -> None:
    async with replica(package_read_cpu_seconds=1.0) as registry:
        endless = PIPELINE + "many: [" + "x, " * 5_000_000 + "x]\n"
        slow = asyncio.create_task(send(registry, endless, name="endless"))
        while not slow.done():
            async with asyncio.timeout(20):
                assert await registry.get("/pipelines") == {}
        answer = await slow
        assert answer.status == 400
        assert refusal(answer).endswith(
            "Failed to parse the workflow template.: it takes more than 1 s of processor time to read; "
            "the setting HEADRACE_PACKAGE_READ_CPU_SECONDS says so"
        )
        await upload(registry)


async def test_a_package_that_takes_too_much_memory_is_refused_and_the_next_is_read(replica: Replica) -> None:
    async with replica(package_read_memory_bytes=128 * 1024 * 1024) as registry:
        wide = PIPELINE + "many: [" + "[], " * 1_000_000 + "x]\n"
        answer = await send(registry, wide)
        assert answer.status == 400
        assert refusal(answer).endswith(
            "it takes more than 128 MiB of memory, or more depth, to read; "
            "the setting HEADRACE_PACKAGE_READ_MEMORY_BYTES says so"
        )
        await upload(registry)


async def test_a_package_that_takes_very_long_on_a_busy_machine_is_nobodys_fault(replica: Replica) -> None:
    async with replica(package_read_seconds=0.001) as registry:
        answer = await send(registry)
        assert answer.status == 503
        assert "This machine is too busy to read that. Try again later." in refusal(answer)


async def test_a_package_of_many_ordinary_templates_is_read(registry: Client, blobs: Blobs, database: Database) -> None:
    text = ordinary(4 * 1024 * 1024)
    pipeline = await upload(registry, "large", text)
    assert (await registry.get(f"/pipelines/{pipeline['id']}/templates"))["template"] == text
    manifest = await blobs.get(f"manifests/{await database.fetchval('select manifest_digest from pipeline_versions')}")
    read, (group, *steps) = go_yaml.load(text), msgspec.json.decode(manifest)["spec"]["templates"]
    assert [each["container"]["command"] for each in steps] == [
        each["container"]["command"] for each in read["spec"]["templates"][1:]
    ]
    assert group["dag"] == read["spec"]["templates"][0]["dag"]


async def test_the_largest_file_passes_and_one_byte_more_does_not(registry: Client) -> None:
    answer = await send(registry, padded_to(LARGEST_PACKAGE_BYTES))
    assert answer.status == 200, answer.body
    answer = await send(registry, padded_to(LARGEST_PACKAGE_BYTES + 1), name="larger")
    assert answer.status == 400
    assert "File size too large. Maximum supported size: 33554432" in refusal(answer)
    answer = await send(registry, padded_to(2 * LARGEST_PACKAGE_BYTES), name="much-larger")
    assert answer.status == 400


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"json": {"name": "x"}}, "Failed to read pipeline from file: request Content-Type isn't multipart/form-data"),
        ({}, "request Content-Type isn't multipart/form-data"),
        ({"headers": {"Content-Type": "multipart/form-data"}}, "no multipart boundary param in Content-Type"),
        (
            {"data": b"--b\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            "Failed to read pipeline from file: multipart: ",
        ),
        ({"data": b"", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "multipart: "),
    ],
)
async def test_what_is_no_form_is_refused(registry: Client, how: dict[str, Any], text: str) -> None:
    answer = await registry.call("POST", f"{V1}/pipelines/upload", **how)
    assert answer.status == 400
    assert text in refusal(answer)


async def test_a_form_without_the_file_is_refused(registry: Client) -> None:
    assert "Failed to read pipeline from file: http: no such file" in refusal(await send(registry, field="file"))
    form = aiohttp.FormData({"other": "x"})
    form.add_field("uploadfile", "text, and no file", content_type="text/plain")
    answer = await registry.call("POST", f"{V1}/pipelines/upload", data=form)
    assert answer.status == 400


@pytest.mark.parametrize("route", ["upload", "upload_version"])
async def test_a_file_without_a_name_is_none(registry: Client, route: str) -> None:
    unnamed = b'--b\r\nContent-Disposition: form-data; name="uploadfile"; filename=""\r\n\r\n%s\r\n' % TEXT
    named = unnamed.replace(b'""', b'"p.yaml"')
    how: dict[str, Any] = {"query": {"name": "mine"}, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    answer = await registry.call("POST", f"{V1}/pipelines/{route}", data=unnamed + b"--b--\r\n", **how)
    assert answer.status == 400
    assert refusal(answer).endswith(" from file: http: no such file")
    answer = await registry.call("POST", f"{V1}/pipelines/upload", data=unnamed + named + b"--b--\r\n", **how)
    assert answer.status == 200, answer.body


async def test_the_first_file_of_the_field_counts_whatever_stands_around_it(registry: Client) -> None:
    form = aiohttp.FormData({"name": "ignored"})
    form.add_field("other", b"x", filename="other.yaml")
    form.add_field("uploadfile", TEXT, filename="first.yaml")
    form.add_field("uploadfile", b"kind: Other", filename="second.yaml")
    answer = await registry.call("POST", f"{V1}/pipelines/upload", data=form)
    assert answer.json["name"] == "first.yaml"


async def test_a_taken_name_is_a_500_in_the_words_that_clients_look_for(registry: Client) -> None:
    await upload(registry, "taken")
    answer = await send(registry, name="taken")
    assert answer.status == 500
    assert refusal(answer) == (
        "Error creating pipeline: Create pipeline failed: Already exist error: "
        "Failed to create a new pipeline. The name taken already exist. Please specify a new name."
    )


async def test_parallel_uploads_of_one_name_to_two_replicas_make_exactly_one(
    registry: Client, replica: Replica, database: Database
) -> None:
    async with replica() as other:
        answers = await asyncio.gather(*(send(each, name="same") for each in (registry, other) * 4))
    assert sorted(answer.status for answer in answers) == [200] + [500] * 7
    assert (await registry.get("/pipelines"))["total_size"] == 1
    # The losers' objects are doomed, the winner's is not.
    (winner,) = (answer.json for answer in answers if answer.status == 200)
    doomed = await database.fetch("select key from doomed_objects")
    assert f"pipelines/{winner['id']}" not in {row["key"] for row in doomed}


async def test_an_upload_whose_commit_comes_too_late_is_refused_and_its_object_erased(
    replica: Replica, blobs: Blobs, settings: Settings
) -> None:
    async with replica(upload_seconds=0.0) as registry:
        answer = await send(registry, name="late")
        assert answer.status == 503
        database = await Database(settings.database_url, name="test").open()

        async def nothing_is_doomed() -> bool:
            return not await database.fetchval("select count(*) from doomed_objects")

        await eventually(nothing_is_doomed)
        await database.close()
        assert await registry.get("/pipelines") == {}


async def test_a_new_version_becomes_the_default(registry: Client) -> None:
    pipeline = await upload(registry)
    newer = PIPELINE.replace("value: hello", "value: newer")
    version = await upload_version(registry, pipeline["id"], "v2", newer, description="better")
    assert version["name"] == "v2"
    assert version["description"] == "better"
    assert version["resource_references"][0]["key"]["id"] == pipeline["id"]
    found = await registry.get(f"/pipelines/{pipeline['id']}")
    assert found["default_version"] == version
    assert found["parameters"] == pipeline["parameters"], "those of the first version"
    assert await registry.get(f"/pipelines/{pipeline['id']}/templates") == {"template": newer}
    assert await registry.get(f"/pipeline_versions/{pipeline['id']}/templates") == {"template": PIPELINE}


async def test_a_new_version_leaves_the_default_where_the_setting_says_so(replica: Replica) -> None:
    async with replica(auto_update_pipeline_default_version=False) as registry:
        pipeline = await upload(registry)
        await upload_version(registry, pipeline["id"], "v2")
        assert (await registry.get(f"/pipelines/{pipeline['id']}"))["default_version"]["id"] == pipeline["id"]


@pytest.mark.parametrize(
    ("query", "content", "status", "text"),
    [
        ({}, PIPELINE, 400, "Please specify a pipeline id when creating versions."),
        (
            {"pipelineid": "unknown"},
            PIPELINE,
            400,
            "Failed to get namespace from pipelineId.: Failed to get namespace from Pipeline ID: "
            "ResourceNotFoundError: Pipeline unknown not found.",
        ),
        ({"pipelineid": "unknown"}, "kind: Pod", 400, "Pipeline unknown not found."),
        ({"name": "ü" * 51}, PIPELINE, 400, "Invalid pipeline version name.: Invalid input error: Pipeline name too"),
    ],
)
async def test_a_version_that_cannot_be_is_refused(
    registry: Client, query: Mapping[str, str], content: str, status: int, text: str
) -> None:
    answer = await send(registry, content, route="upload_version", **query)
    assert answer.status == status
    assert text in refusal(answer)


async def test_a_version_name_is_unique_within_its_pipeline(registry: Client) -> None:
    one, two = await upload(registry, "one"), await upload(registry, "two")
    await upload_version(registry, one["id"], "v")
    await upload_version(registry, two["id"], "v")
    answer = await send(registry, route="upload_version", pipelineid=one["id"], name="v")
    assert answer.status == 500
    assert "Failed to create a new pipeline version. The name v already exist." in refusal(answer)
    answer = await send(registry, "kind: Pod", route="upload_version", pipelineid=one["id"], name="w")
    assert answer.status == 400
    assert "Error creating pipeline version: " in refusal(answer)
