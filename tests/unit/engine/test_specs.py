"""From orders to steps that can be started: what only this machine knows gets its value."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import msgspec
import pytest

from services.run.engine.embedded import runtime
from services.run.engine.embedded.machine import Machine
from services.run.engine.embedded.manifest import Resource
from services.run.engine.embedded.objects import Objects
from services.run.engine.embedded.runtime.placing import mounted
from services.run.engine.embedded.specs import CannotPrepare, Place, build
from tests.support.embedded_runs import FakeExecutor, workflow

BARE = Machine()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "data")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(key="run.1.step", run_id="run", namespace="kubeflow", scratch=tmp_path / "scratch")


def built(template: str, place: Place, objects: Objects, machine: Machine = BARE) -> runtime.StepSpec:
    (order,) = FakeExecutor(workflow(f"spec:\n  entrypoint: main\n  templates:\n  - {template}")).turn.start
    return build(order, place, objects, machine, {})


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


def env_of(text: str, place: Place, objects: Objects) -> dict[str, str]:
    template = f"""
    name: main
    metadata: {{labels: {{team: mill}}, annotations: {{note: wheel}}}}
    serviceAccountName: robot
    container: {{image: i, command: [x], {text}}}
"""
    return built(template, place, objects).main.env


def perform(objects: Objects, place: Place, kind: str, **fields: dict[str, str]) -> None:
    document = {"kind": kind, "metadata": {"name": "given"}, **fields}
    objects.perform(Resource(action="create", manifest=json.dumps(document)), node_id=kind, namespace=place.namespace)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "wf-x7k2p"),
        ("metadata.namespace", "kubeflow"),
        ("metadata.labels['team']", "mill"),
        ("metadata.labels['workflows.argoproj.io/workflow']", "wf-x7k2p"),
        ("metadata.labels['no-such']", ""),
        ("metadata.annotations['note']", "wheel"),
        ("spec.nodeName", socket.gethostname()),
        ("spec.serviceAccountName", "robot"),
        ("status.podIP", "127.0.0.1"),
        ("status.hostIP", "127.0.0.1"),
    ],
)
def test_a_field_of_the_pod_becomes_a_variable(path: str, value: str, place: Place, objects: Objects) -> None:
    env = env_of(f'env: [{{name: A, valueFrom: {{fieldRef: {{fieldPath: "{path}"}}}}}}]', place, objects)
    assert env["A"] == value


def test_the_pods_uid_is_the_same_for_the_same_attempt_alone(place: Place, objects: Objects) -> None:
    text = "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]"
    other = msgspec.structs.replace(place, key="run.2.step")
    assert env_of(text, place, objects) == env_of(text, place, objects)
    assert env_of(text, place, objects) != env_of(text, other, objects)


def test_config_maps_and_secrets_become_variables_and_later_ones_win(place: Place, objects: Objects) -> None:
    perform(objects, place, "ConfigMap", data={"k": "of the map", "only": "there"})
    perform(objects, place, "Secret", stringData={"k": "of the secret"})
    env = env_of(
        """
      envFrom: [{configMapRef: {name: given}, prefix: M_}, {configMapRef: {name: given}}, {secretRef: {name: given}}],
      env: [
        {name: A, valueFrom: {configMapKeyRef: {name: given, key: k}}},
        {name: B, valueFrom: {secretKeyRef: {name: given, key: k}}},
        {name: C, valueFrom: {configMapKeyRef: {name: none, key: k, optional: true}}},
        {name: D, valueFrom: {secretKeyRef: {name: given, key: none, optional: true}}},
        {name: only, value: "$(A), $(only) and $(C)"}]""",
        place,
        objects,
    )
    assert env == {
        "ARGO_CONTAINER_NAME": "main",
        "M_k": "of the map",
        "M_only": "there",
        "k": "of the secret",
        "A": "of the map",
        "B": "of the secret",
        "only": "of the map, there and $(C)",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("envFrom: [{configMapRef: {name: none}}]", 'configmap "none" not found'),
        ("envFrom: [{secretRef: {name: none}}]", 'secret "none" not found'),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: k}}}]", 'secret "none" not found'),
        (
            "env: [{name: A, valueFrom: {configMapKeyRef: {name: given, key: none}}}]",
            "couldn't find key none in configmap kubeflow/given",
        ),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]", "the field spec.x is not supported"),
    ],
)
def test_a_variable_without_a_source_keeps_the_step_from_starting(
    text: str, reason: str, place: Place, objects: Objects
) -> None:
    perform(objects, place, "ConfigMap", data={"k": "v"})
    with pytest.raises(CannotPrepare, match=re.escape(reason)):
        env_of(text, place, objects)


def test_a_step_without_a_command_runs_what_the_operator_says_its_image_runs(place: Place, objects: Objects) -> None:
    template = "{name: main, container: {image: 'docker/whalesay:1', args: [hello]}}"
    machine = Machine(entrypoints={"docker/whalesay": ("cowsay", "-d")})
    main = built(template, place, objects, machine).main
    assert (main.argv, main.runs_entrypoint) == (("cowsay", "-d", "hello"), False)
    # In containers the image itself is there to be asked.
    main = built(template, place, objects, msgspec.structs.replace(machine, runs_images=True)).main
    assert (main.argv, main.runs_entrypoint) == (("hello",), True)


def of_host(path: Path, kind: str = "", sub_path: str = "") -> str:
    return f"""
    name: main
    volumes: [{{name: h, hostPath: {{path: {path}, type: '{kind}'}}}}]
    container: {{image: i, command: [x], volumeMounts: [{{name: h, mountPath: /h, subPath: '{sub_path}'}}]}}
"""


def test_a_path_of_the_host_is_mounted_and_made_where_it_is_absent(
    place: Place, objects: Objects, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    machine = Machine(host_paths=(str(shared),))
    for template, source in (
        (of_host(shared), shared),
        (of_host(shared / "a" / "b"), shared / "a" / "b"),
        (of_host(shared / "a", "Directory", sub_path="b"), shared / "a" / "b"),
        (of_host(shared / "c", "DirectoryOrCreate"), shared / "c"),
    ):
        (mount,) = built(template, place, objects, machine).main.mounts
        assert mounted(mount).source == str(source)
        assert source.is_dir()


def test_no_other_path_of_the_host_is_mounted(place: Place, objects: Objects, tmp_path: Path) -> None:
    shared, secret = tmp_path / "shared", tmp_path / "secret"
    shared.mkdir()
    secret.mkdir()
    (shared / "link").symlink_to("../secret")
    (shared / "whole").symlink_to(secret)
    machine = Machine(host_paths=(str(shared),))
    with pytest.raises(CannotPrepare, match="is no host path that HEADRACE_HOST_PATHS allows"):
        built(of_host(secret), place, objects, machine)
    with pytest.raises(CannotPrepare, match="is not a Directory"):
        built(of_host(shared / "absent", "Directory"), place, objects, machine)
    for link in ("link", "whole"):
        (mount,) = built(of_host(shared / link), place, objects, machine).main.mounts
        assert mounted(mount).source.startswith(f"{shared}/")
