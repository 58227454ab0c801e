"""From an order to a step that can be started: secrets, claims and addresses get their values (specification §9).

What an order leaves open only this machine knows. The result is complete: the step runner looks nothing up.
"""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from services.run.engine.embedded import runtime
from services.run.engine.embedded.machine import Machine
from services.run.engine.embedded.manifest import EnvVar, HostPath, KeyToPath, Selector, Volume
from services.run.engine.embedded.objects import ObjectError, Objects
from services.run.engine.embedded.orders import PlacedArtifact, Process, StepKind, StepOrder, expand_variables
from services.run.engine.embedded.runtime import download as download_program

SCRIPT_PATH = "/argo/staging/script"
DOWNLOADED = "/tmp/downloaded"  # noqa: S108 - the step's own /tmp
LONGEST_DOWNLOAD_SECONDS = 3600

_FIELD_OF_MAP = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step is executed, and what it is called there."""

    key: str
    run_id: str
    namespace: str
    scratch: Path
    """A directory of this attempt alone, outside its private tree: volumes made for it, artifacts brought for it."""


class _Source(msgspec.Struct, frozen=True):
    """What is behind a volume."""

    directory: Path
    sub_path: str = ""
    """Below the directory; made where it is absent."""
    is_read_only: bool = False
    """By nature, whoever mounts it."""


class CannotPrepare(Exception):
    """The step cannot start as ordered; the text is the node's message."""


def build(
    order: StepOrder, place: Place, objects: Objects, machine: Machine, staged: Mapping[str, Path]
) -> runtime.StepSpec:
    """The step as the runner starts it. `staged`: input artifacts that were fetched, by name.

    Blocks on the disk. Raises CannotPrepare.
    """
    try:
        return _Builder(order, place, objects, machine).spec(staged)
    except ObjectError as error:
        raise CannotPrepare(str(error)) from error


def command_of(order: StepOrder, place: Place, objects: Objects, machine: Machine) -> list[str]:
    """What the main process will be started as. Blocks on the disk. Raises CannotPrepare."""
    builder = _Builder(order, place, objects, machine)
    try:
        return builder.argv(order.main, builder.environment(order.main))
    except ObjectError as error:
        raise CannotPrepare(str(error)) from error


def download(artifact: PlacedArtifact, key: str, image: str) -> runtime.StepSpec:
    """A step that leaves what the artifact's URL names at DOWNLOADED."""
    assert artifact.http is not None
    headers = [f"{each['name']}: {each.get('value') or ''}" for each in artifact.http.get("headers") or ()]
    program = "/tmp/download.py"  # noqa: S108 - the step's own /tmp
    return runtime.StepSpec(
        key=key,
        main=runtime.Process(
            argv=("python3", "-I", program, str(artifact.http["url"]), DOWNLOADED, *headers), image=image
        ),
        files=(runtime.Placement(target=program, text=Path(download_program.__file__).read_text()),),
        outputs=(DOWNLOADED,),
        deadline_seconds=LONGEST_DOWNLOAD_SECONDS,
    )


class _Builder:
    def __init__(self, order: StepOrder, place: Place, objects: Objects, machine: Machine) -> None:
        self._order = order
        self._place = place
        self._objects = objects
        self._machine = machine
        self._volumes: dict[str, _Source] = {}

    def spec(self, staged: Mapping[str, Path]) -> runtime.StepSpec:
        order = self._order
        return runtime.StepSpec(
            key=self._place.key,
            main=self._process(order.main),
            init=tuple(map(self._process, order.init)),
            sidecars=tuple(map(self._process, order.sidecars)),
            files=tuple(self._files(staged)),
            make_directories=tuple(dict.fromkeys(str(PurePosixPath(path).parent) for path in _outputs(order))),
            deadline_seconds=order.deadline_seconds,
            keep_stdout=order.needs_result,
            outputs=tuple(_outputs(order)),
        )

    def _process(self, process: Process) -> runtime.Process:
        env = self.environment(process)
        return runtime.Process(
            argv=tuple(self.argv(process, env)),
            runs_entrypoint=not self._command(process),
            image=process.image,
            env=env,
            cwd=process.working_dir,
            mounts=tuple(self._mounts(process)),
            memory_bytes=process.memory_bytes,
            cpu_millis=process.cpu_millis,
        )

    def argv(self, process: Process, env: Mapping[str, str]) -> list[str]:
        argv = [expand_variables(text, env) for text in (*self._command(process), *process.args)]
        if process is self._order.main and self._order.kind is StepKind.SCRIPT:
            argv.append(SCRIPT_PATH)
        return argv

    def _command(self, process: Process) -> tuple[str, ...]:
        """Empty where it is left to the image, in a container."""
        if process.command or self._machine.runs_images:
            return process.command
        return self._machine.entrypoint(process.image) or ()

    # Environment

    def environment(self, process: Process) -> dict[str, str]:
        """Later entries win; a value may refer to earlier ones."""
        env = {"ARGO_CONTAINER_NAME": process.name}
        if self._order.needs_result:
            env["ARGO_INCLUDE_SCRIPT_OUTPUT"] = "true"
        for source in process.env_from:
            for reference, find, kind in (
                (source.config_map_ref, self._objects.config_map, "configmap"),
                (source.secret_ref, self._objects.secret, "secret"),
            ):
                if reference is not None:
                    entries = self._entries(find, kind, reference.name, is_optional=reference.optional)
                    env.update({source.prefix + key: _text(value) for key, value in entries.items()})
        for each in process.env:
            value = self._value(each)
            if value is not None:
                env[each.name] = expand_variables(value, env)
        return env

    def _value(self, variable: EnvVar) -> str | None:
        source = variable.value_from
        if source is None:
            return variable.value or ""
        if source.field_ref is not None:
            return self._field(source.field_ref.field_path)
        if source.secret_key_ref is not None:
            return self._key(self._objects.secret, "secret", source.secret_key_ref)
        if source.config_map_key_ref is not None:
            return self._key(self._objects.config_map, "configmap", source.config_map_key_ref)
        raise CannotPrepare(f"env {variable.name}: this source of a value is not supported by the local engine")

    def _field(self, path: str) -> str:
        """A field of the pod that this step would be (workflow specification, section 9, env)."""
        in_map = _FIELD_OF_MAP.fullmatch(path)
        if in_map is not None:
            values = self._order.labels if in_map[1] == "labels" else self._order.annotations
            return values.get(in_map[2], "")
        fields: dict[str, Callable[[], str]] = {
            "metadata.name": lambda: self._order.node_id,
            "metadata.namespace": lambda: self._place.namespace,
            "metadata.uid": lambda: str(uuid.uuid5(uuid.NAMESPACE_OID, self._place.key)),
            "spec.nodeName": socket.gethostname,
            "spec.serviceAccountName": lambda: self._order.service_account,
            "status.podIP": lambda: "127.0.0.1",
            "status.hostIP": lambda: "127.0.0.1",
        }
        if path not in fields:
            raise CannotPrepare(f"the field {path} is not supported by the local engine")
        return fields[path]()

    def _key(self, find: _Find, kind: str, reference: Selector) -> str | None:
        entries = self._entries(find, kind, reference.name, is_optional=reference.optional)
        if reference.key in entries:
            return _text(entries[reference.key])
        if reference.optional:
            return None
        raise CannotPrepare(f"couldn't find key {reference.key} in {kind} {self._place.namespace}/{reference.name}")

    def _entries(self, find: _Find, kind: str, name: str, *, is_optional: bool) -> dict[str, bytes]:
        found = find(self._place.namespace, name)
        if found is None and not is_optional:
            raise CannotPrepare(f'{kind} "{name}" not found')
        return found or {}

    # Files and volumes

    def _files(self, staged: Mapping[str, Path]) -> Iterable[runtime.Placement]:
        if self._order.source is not None:
            yield runtime.Placement(target=SCRIPT_PATH, text=self._order.source)
        for artifact in self._order.input_artifacts:
            if artifact.raw is not None:
                yield runtime.Placement(target=artifact.path, text=artifact.raw, mode=artifact.mode)
            elif artifact.name in staged:
                yield _from_host(artifact, staged[artifact.name])

    def _mounts(self, process: Process) -> Iterable[runtime.Mount]:
        for mount in process.mounts:
            source = self._volume(mount.name)
            yield runtime.Mount(
                source=str(source.directory),
                target=mount.mount_path.rstrip("/") or "/",
                read_only=mount.read_only or source.is_read_only,
                sub_path="/".join(filter(None, (source.sub_path, mount.sub_path))),
            )

    def _volume(self, name: str) -> _Source:
        """Made once, however many containers mount it."""
        if name not in self._volumes:
            self._volumes[name] = self._made(next(each for each in self._order.volumes if each.name == name))
        return self._volumes[name]

    def _made(self, volume: Volume) -> _Source:
        if volume.persistent_volume_claim is not None:
            claim = volume.persistent_volume_claim
            return _Source(self._objects.claim(self._place.namespace, claim.claim_name), is_read_only=claim.read_only)
        if volume.secret is not None:
            secret = volume.secret
            entries = self._entries(self._objects.secret, "secret", secret.secret_name, is_optional=secret.optional)
            return _Source(self._written(volume.name, entries, secret.items, secret.default_mode), is_read_only=True)
        if volume.config_map is not None:
            config = volume.config_map
            entries = self._entries(self._objects.config_map, "configmap", config.name, is_optional=config.optional)
            return _Source(self._written(volume.name, entries, config.items, config.default_mode), is_read_only=True)
        if volume.host_path is not None:
            return self._of_host(volume.name, volume.host_path)
        directory = self._scratch_volume(volume.name)
        directory.chmod(0o777)
        return _Source(directory)

    def _of_host(self, name: str, host_path: HostPath) -> _Source:
        found = self._machine.host_directory(host_path.path)
        if found is None:
            raise CannotPrepare(f"volume {name}: {host_path.path} is no host path that HEADRACE_HOST_PATHS allows")
        directory, way = found
        if host_path.type not in ("", "DirectoryOrCreate") and not Path(directory, way).exists():
            raise CannotPrepare(f"volume {name}: hostPath {host_path.path} is not a {host_path.type}")
        # The way is left to the start, which does not follow links that lead out of the directory.
        return _Source(Path(directory), sub_path=way)

    def _written(
        self, name: str, entries: Mapping[str, bytes], items: tuple[KeyToPath, ...], default_mode: int | None
    ) -> Path:
        directory = self._scratch_volume(name)
        wanted = items or tuple(KeyToPath(key=key, path=key) for key in entries)
        for item in wanted:
            if item.key not in entries:
                raise CannotPrepare(f"volume {name}: references non-existent key: {item.key}")
            relative = PurePosixPath(item.path)
            if relative.is_absolute() or ".." in relative.parts:
                raise CannotPrepare(f"volume {name}: the path {item.path} leads outside")
            file = directory / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(entries[item.key])
            file.chmod(item.mode or default_mode or 0o644)
        return directory

    def _scratch_volume(self, name: str) -> Path:
        if "/" in name or name in ("", ".", ".."):
            raise CannotPrepare(f"'{name}' is not a valid name of a volume")
        directory = self._place.scratch / "volumes" / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory


_Find = Callable[[str, str], dict[str, bytes] | None]


def _from_host(artifact: PlacedArtifact, source: Path) -> runtime.Placement:
    return runtime.Placement(target=artifact.path, source=str(source), mode=artifact.mode)


def _outputs(order: StepOrder) -> Iterable[str]:
    """Every declared path. Its parent is made, so that a step may write without making directories first (§9, §17)."""
    for artifact in order.output_artifacts:
        yield artifact.path
    for parameter in order.output_parameters:
        if parameter.value_from is not None and parameter.value_from.path:
            yield parameter.value_from.path


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
