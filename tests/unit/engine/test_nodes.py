import json
from datetime import UTC, datetime

import msgspec
import pytest

from services.run.engine.embedded.nodes import (
    Node,
    NodeArtifact,
    NodeInputs,
    NodeOutputs,
    NodeParameter,
    NodeType,
    Phase,
    display_name,
    fnv1a_32,
    item_name,
    node_id,
)


def test_the_root_has_the_workflows_name_as_its_id() -> None:
    assert node_id("my-pipeline-x7k2p", "my-pipeline-x7k2p") == "my-pipeline-x7k2p"


def test_other_ids_end_in_a_hash_of_the_name() -> None:
    assert node_id("my-pipeline-x7k2p", "my-pipeline-x7k2p.train") == "my-pipeline-x7k2p-1727472585"


@pytest.mark.parametrize(("text", "digest"), [("", 2166136261), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_the_hash_is_fnv_1a(text: str, digest: int) -> None:
    assert fnv1a_32(text.encode()) == digest


@pytest.mark.parametrize(
    ("name", "boundary", "shown"),
    [
        ("wf", None, "wf"),
        ("wf.onExit", None, "wf.onExit"),
        ("wf.a", "wf", "a"),
        ("wf.a(0:x)", "wf", "a(0:x)"),
        ("wf.a(0:x).b", "wf.a(0:x)", "b"),
        ("wf[0]", "wf", "[0]"),
        ("wf[1].fan(0:a)", "wf", "fan(0:a)"),
        ("wf.flaky(2)", "wf", "flaky(2)"),
    ],
)
def test_the_display_name_leaves_the_boundary_out(name: str, boundary: str | None, shown: str) -> None:
    assert display_name(name, boundary) == shown


def test_parentheses_of_an_item_stay_out_of_its_name() -> None:
    assert item_name("wf.t", 3, "f(x)") == "wf.t(3:fx)"


def test_a_node_has_the_shape_clients_read() -> None:
    node = Node(
        id="wf-1",
        name="wf.a",
        display_name="a",
        type=NodeType.POD,
        phase=Phase.RUNNING,
        started_at=datetime(2026, 11, 23, 7, 3, 16, tzinfo=UTC),
        finished_at=None,
        template_name="a",
        boundary_id="wf",
        inputs=NodeInputs(parameters=(NodeParameter(name="p", value=""),)),
        outputs=NodeOutputs(
            artifacts=(NodeArtifact(name="main-logs", archive_logs=True, s3={"key": "k"}),), exit_code="0"
        ),
        children=("wf-2",),
    )
    encoded = msgspec.json.encode(node)
    assert json.loads(encoded) == {
        "id": "wf-1",
        "name": "wf.a",
        "displayName": "a",
        "type": "Pod",
        "phase": "Running",
        "startedAt": "2026-11-23T07:03:16Z",
        "finishedAt": None,
        "templateName": "a",
        "boundaryID": "wf",
        "inputs": {"parameters": [{"name": "p", "value": ""}]},
        "outputs": {"artifacts": [{"name": "main-logs", "archiveLogs": True, "s3": {"key": "k"}}], "exitCode": "0"},
        "children": ["wf-2"],
    }
    assert msgspec.json.decode(encoded, type=Node) == node
