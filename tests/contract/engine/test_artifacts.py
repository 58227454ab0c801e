"""Artifacts that are not packed, and how hard others are: what the store holds, and what arrives of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.run.engine.embedded.collection import Artifacts
from services.run.engine.embedded.orders import Process, StepKind, StepOrder, WantedArtifact
from services.run.engine.embedded.runtime.tree import Branch, Tree
from shared.blobs import NoSuchObject
from tests.contract.engine.engines import EngineUnderTest
from tests.contract.engine.manifests import c, dag, file_of, task, workflow
from tests.contract.engine.recorder import Recorder

PLAIN: dict[str, Any] = {"archive": {"none": {}}}


def handed_on(script: str, reader: str, **archive: Any) -> dict[str, Any]:
    """A step that leaves /tmp/a, and one that reads it at /in/f."""
    return workflow(
        dag(task("a", "p"), task("b", "q", "a", files={"f": file_of("a")})),
        templates={
            "p": c(script, leaves={"a": {"path": "/tmp/a", **archive}}),
            "q": c(reader, files={"f": {"path": "/in/f"}}, gives={"o": "/tmp/o"}),
        },
    )


async def test_a_directory_that_is_not_packed_arrives_whole(under_test: EngineUnderTest, recorder: Recorder) -> None:
    script = "mkdir -p /tmp/a/deep/er; for n in $(seq 40); do echo $n > /tmp/a/$n; done; echo z > /tmp/a/deep/er/z"
    reader = "cd /in/f; (ls | wc -l; cat 7 40 deep/er/z; echo more >> 7 && tail -n 1 7) > /tmp/o"

    run = await recorder.carry_out(handed_on(script, reader, **PLAIN))

    assert run.value(".b").split() == ["41", "7", "40", "z", "more"]
    key = run.artifact(".a", "a")["s3"]["key"]
    assert key.endswith(f"/{run.id_of('.a')}/a")
    assert await under_test.blobs.get(f"{key}/deep/er/z") == b"z\n"
    assert await under_test.blobs.get(f"{key}/7") == b"7\n", "the reader had a copy"
    with pytest.raises(NoSuchObject):
        await under_test.blobs.get(f"{key}.tgz")


async def test_a_file_that_is_not_packed_arrives_as_it_is(recorder: Recorder) -> None:
    run = await recorder.carry_out(
        handed_on("echo inside > /tmp/x; tar -czf /tmp/a -C /tmp x", "tar -xzOf /in/f > /tmp/o", **PLAIN)
    )

    assert run.value(".b") == "inside"


async def test_an_artifact_is_packed_as_hard_as_its_template_says(
    under_test: EngineUnderTest, recorder: Recorder
) -> None:
    sizes = []
    for level in (0, 9):
        archive = {"archive": {"tar": {"compressionLevel": level}}}
        run = await recorder.carry_out(
            handed_on("head -c 200000 /dev/zero > /tmp/a", "wc -c < /in/f > /tmp/o", **archive)
        )
        assert run.value(".b").strip() == "200000"
        stored = await under_test.blobs.get(run.artifact(".a", "a")["s3"]["key"])
        assert stored[:2] == b"\x1f\x8b", "still gzip"
        sizes.append(len(stored))
    assert sizes[0] > 200_000
    assert sizes[1] < 2_000


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("nothing/here", "nothing is stored at nothing/here"),
        ("manifests", "the key 'manifests' lies among what the server keeps"),
        ("pipelines/x", "the key 'pipelines/x' lies among what the server keeps"),
    ],
)
async def test_what_cannot_be_brought_is_said(recorder: Recorder, key: str, reason: str) -> None:
    run = await recorder.carry_out(workflow(c("true", files={"f": {"path": "/in/f", "s3": {"key": key}}})))

    assert (run.phase, run.message) == ("Error", f"artifact f: {reason}")


async def test_a_step_that_is_repeated_leaves_nothing_of_its_earlier_directory(
    under_test: EngineUnderTest, tmp_path: Path
) -> None:
    artifacts = Artifacts(under_test.blobs, f"again-{tmp_path.name}", datetime.now(UTC))
    order = StepOrder(
        node_id="n",
        node_name="n",
        template_name="t",
        kind=StepKind.CONTAINER,
        main=Process(name="main"),
        output_artifacts=(WantedArtifact(name="a", path="/a", archive={"none": {}}),),
    )

    async def collect(**files: str) -> str:
        root = tmp_path / "-".join(files)
        for name, text in files.items():
            (root / "a").mkdir(parents=True, exist_ok=True)
            (root / "a" / name).write_text(text)
        tree = Tree(branches=(Branch(target="/", source=str(root)),))
        found = await artifacts.collect(order, tree, root, tmp_path / "scratch")
        return str(found.outputs.artifacts["a"]["key"])

    await collect(x="1", y="1")
    key = await collect(y="2")

    assert await under_test.blobs.list_keys(f"{key}/") == [f"{key}/y"]
    assert await under_test.blobs.get(f"{key}/y") == b"2"
