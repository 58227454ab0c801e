"""From orders to steps that can be started: what only this machine knows gets its value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.run.engine.embedded import runtime
from services.run.engine.embedded.manifest import Resource
from services.run.engine.embedded.objects import Objects
from services.run.engine.embedded.specs import Place, build
from tests.support.embedded_runs import FakeExecutor, workflow


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "data")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(key="run.1.step", run_id="run", namespace="kubeflow", scratch=tmp_path / "scratch")


def built(template: str, place: Place, objects: Objects) -> runtime.StepSpec:
    (order,) = FakeExecutor(workflow(f"spec:\n  entrypoint: main\n  templates:\n  - {template}")).turn.start
    return build(order, place, objects, {})


def targets(process: runtime.Process, place: Place) -> dict[str, str]:
    """Where a process sees the step's own volumes: target → the volume's name."""
    return {mount.target: str(Path(mount.source).relative_to(place.scratch / "volumes")) for mount in process.mounts}


def test_each_container_has_its_own_mounts(place: Place, objects: Objects) -> None:
    spec = built(
        """
    name: main
    volumes: [{name: a, emptyDir: {}}, {name: b, emptyDir: {}}]
    initContainers:
    - {name: other, image: i, command: [x], volumeMounts: [{name: b, mountPath: /v}]}
    - {name: mirror, image: i, command: [x], mirrorVolumeMounts: true, volumeMounts: [{name: b, mountPath: /own}]}
    container: {image: i, command: [x], volumeMounts: [{name: a, mountPath: /v/}]}
    sidecars: [{name: bare, image: i, command: [x]}]
""",
        place,
        objects,
    )
    assert targets(spec.main, place) == {"/v": "a"}
    assert [targets(process, place) for process in spec.init] == [{"/v": "b"}, {"/own": "b", "/v": "a"}]
    assert [targets(process, place) for process in spec.sidecars] == [{}]


def test_a_secret_that_several_containers_mount_is_written_once(place: Place, objects: Objects) -> None:
    document = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}
    objects.perform(Resource(action="create", manifest=json.dumps(document)), node_id="n", namespace=place.namespace)
    mount = "volumeMounts: [{name: s, mountPath: /s}, {name: s, mountPath: /again}]"
    spec = built(
        f"""
    name: main
    volumes: [{{name: s, secret: {{secretName: s, defaultMode: 256}}}}]
    container: {{image: i, command: [x], {mount}}}
    sidecars: [{{name: side, image: i, command: [x], {mount}}}]
""",
        place,
        objects,
    )
    assert spec.main.mounts == spec.sidecars[0].mounts
    assert all(mount.read_only for mount in spec.main.mounts)
    assert (Path(spec.main.mounts[0].source) / "k").read_text() == "v"


def test_the_runtime_is_told_images_and_where_outputs_will_lie(place: Place, objects: Objects) -> None:
    spec = built(
        """
    name: main
    container: {image: cowsay, args: [moo]}
    sidecars: [{name: side, image: nginx, command: [nginx], args: [-g, daemon off;]}]
    outputs:
      artifacts: [{name: a, path: /tmp/out/a}, {name: b, path: /b}]
      parameters: [{name: p, valueFrom: {path: /tmp/out/p}}]
""",
        place,
        objects,
    )
    assert (spec.main.image, spec.main.argv, spec.main.runs_entrypoint, spec.main.cwd) == ("cowsay", ("moo",), True, "")
    side = spec.sidecars[0]
    assert (side.image, side.argv, side.runs_entrypoint) == ("nginx", ("nginx", "-g", "daemon off;"), False)
    assert spec.outputs == ("/tmp/out/a", "/b", "/tmp/out/p")
    assert spec.make_directories == ("/tmp/out", "/")
