"""Objects in the shapes that the versions of Argo leave them in (`tests/contract/engine/shapes`).

Each file says what it shows: `object`, and beside it, where that is the point, `nodes` (what is packed in the object)
and `pods` (the pod's name by the node's id).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.run.engine.argo import shapes
from services.run.engine.embedded.nodes import Node

FOLDER = Path(__file__).parents[2] / "contract/engine/shapes"
OFFLOADED = "any-offloaded-nodes"
PACKED_OTHERWISE = "4.1-compressed-otherwise"
READABLE = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem not in (OFFLOADED, PACKED_OTHERWISE))


def recorded(name: str) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode((FOLDER / f"{name}.json").read_bytes())
    return document


def seen(name: str) -> shapes.Seen:
    return shapes.read(msgspec.json.encode(recorded(name)["object"]))


def documents(name: str) -> dict[str, Any]:
    found = seen(name)
    return {node_id: found.document(node) for node_id, node in found.nodes().items()}


@pytest.mark.parametrize("name", READABLE)
def test_every_version_is_read(name: str) -> None:
    record = recorded(name)
    status = record["object"]["status"]
    found = seen(name)
    assert (found.phase, found.is_final) == (status["phase"], status["finishedAt"] is not None)
    assert not found.is_offloaded
    nodes = documents(name)
    assert set(nodes) == set(record.get("nodes") or status["nodes"])
    for node_id, node in nodes.items():
        assert msgspec.convert(node, Node).id == node_id


@pytest.mark.parametrize("name", READABLE)
def test_artifacts_of_every_version_are_found(name: str) -> None:
    places = [
        artifact["s3"]
        for node in documents(name).values()
        for artifact in node.get("outputs", {}).get("artifacts", ())
        if "s3" in artifact
    ]
    assert all(place["key"] and place["bucket"] == "mlpipeline" and place["endpoint"] for place in places)


def test_pods_are_named_in_two_ways() -> None:
    for name in READABLE:
        record, nodes = recorded(name), documents(name)
        metadata = record["object"]["metadata"]
        way = metadata["annotations"].get("workflows.argoproj.io/pod-name-format", "")
        for node_id, pod in record.get("pods", {}).items():
            assert pod in shapes.pod_names(metadata["name"], nodes[node_id], way)


def test_what_was_packed_is_unpacked() -> None:
    unpacked, packed = documents("any-compressed-nodes"), recorded("any-compressed-nodes")["nodes"]
    assert {key: node["phase"] for key, node in unpacked.items()} == {
        key: node["phase"] for key, node in packed.items()
    }


def test_what_is_kept_elsewhere_is_known_to_be() -> None:
    assert seen(OFFLOADED).is_offloaded
    with pytest.raises(shapes.Unreadable):
        seen(OFFLOADED).nodes()


def test_what_is_packed_in_a_way_that_nobody_here_knows_is_no_mere_absence() -> None:
    with pytest.raises(shapes.Unreadable, match="compressedNodes"):
        seen(PACKED_OTHERWISE).nodes()
