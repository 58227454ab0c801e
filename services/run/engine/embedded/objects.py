"""The few Kubernetes objects that pipelines make and mount, kept as files (specification §9, "resource, embedded").

Claims and snapshots are directories, secrets and config maps are documents. An action is carried out once per node:
the object remembers the node that made it, so that repeating the action after a crash finds its own work. Any other
kind is refused when the run is created; here it is an error of the step.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from services.run.engine.embedded.manifest import Resource
from services.run.engine.embedded.paths import PathError, follow, read_jq_path, read_json_path
from shared import go_yaml

KINDS = ("PersistentVolumeClaim", "VolumeSnapshot", "Secret", "ConfigMap")
"""What resource templates may name on this engine."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_MADE_BY = "headrace/made-by-node"
_Object = dict[str, Any]


class ObjectError(Exception):
    """The action cannot be done; the text is the step's message."""


class Objects:
    """The objects of one installation, by namespace. Every method blocks on the disk for a moment."""

    def __init__(
        self, directory: Path, *, secrets_dir: Path | None = None, config_maps_dir: Path | None = None
    ) -> None:
        """Steps make objects in `directory`. What no step has made is looked for in the other two, for all namespaces.

        There an object is a directory, and each file in it an entry, as a cluster mounts them.
        """
        self._directory = directory
        self._secrets_dir = secrets_dir
        self._config_maps_dir = config_maps_dir

    def perform(self, resource: Resource, *, node_id: str, namespace: str) -> _Object | None:
        """Carry out a resource template's action. The object as it is now, None after a delete.

        Raises ObjectError.
        """
        wanted = _read_manifest(resource.manifest)
        kind = str(wanted.get("kind", ""))
        if kind not in KINDS:
            raise ObjectError(f"resource kind {kind} is not supported by the local engine")
        name = _name_of(wanted, node_id)
        match resource.action:
            case "create":
                result = self._create(wanted, kind, name, namespace, node_id)
            case "apply":
                result = self._apply(wanted, kind, name, namespace, node_id)
            case "get":
                result = self._get(kind, name, namespace)
            case "replace":
                self._get(kind, name, namespace)
                result = self._write(wanted, kind, name, namespace, node_id)
            case "patch":
                patched = _merged(self._get(kind, name, namespace), wanted)
                result = self._write(patched, kind, name, namespace, node_id)
            case "delete":
                self._delete(kind, name, namespace)
                return None
            case other:
                raise ObjectError(f"action must be one of create, apply, get, delete, replace, patch: {other}")
        _check_conditions(resource, result)
        return result

    def make_claim(self, document: Mapping[str, Any], *, run_id: str, namespace: str) -> None:
        """A claim of the run itself; made again, it is the same one. Raises ObjectError."""
        wanted = dict(document)
        self._create(wanted, "PersistentVolumeClaim", str(wanted["metadata"]["name"]), namespace, run_id)

    def remove_claims_of(self, run_id: str) -> None:
        """Those that `make_claim` made, with what is in them."""
        for file in (self._directory / "objects").glob("*/PersistentVolumeClaim/*.json"):
            name, namespace = file.stem, file.parent.parent.name
            found = self._find("PersistentVolumeClaim", name, namespace)
            if found is not None and found["metadata"].get("annotations", {}).get(_MADE_BY) == run_id:
                self._delete("PersistentVolumeClaim", name, namespace)

    def secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        """The decoded entries of a secret."""
        found = self._find("Secret", name, namespace)
        if found is None:
            return _given(self._secrets_dir, name)
        return {key: _decoded(str(value)) for key, value in (found.get("data") or {}).items()}

    def config_map(self, namespace: str, name: str) -> dict[str, bytes] | None:
        found = self._find("ConfigMap", name, namespace)
        if found is None:
            return _given(self._config_maps_dir, name)
        texts = {key: str(value).encode() for key, value in (found.get("data") or {}).items()}
        binary = {key: _decoded(str(value)) for key, value in (found.get("binaryData") or {}).items()}
        return texts | binary

    def claim(self, namespace: str, name: str) -> Path:
        """The directory of a claim, made on first use. Raises ObjectError for a name no claim can have."""
        directory = self._volume("PersistentVolumeClaim", name, namespace)
        directory.mkdir(parents=True, exist_ok=True)
        # Steps run as whoever they like to be; the claim is theirs to write.
        directory.chmod(0o777)
        return directory

    def _create(self, wanted: _Object, kind: str, name: str, namespace: str, node_id: str) -> _Object:
        found = self._find(kind, name, namespace)
        if found is None:
            return self._write(wanted, kind, name, namespace, node_id)
        if found["metadata"].get("annotations", {}).get(_MADE_BY) == node_id:
            return found
        raise ObjectError(f'{kind} "{name}" already exists')

    def _apply(self, wanted: _Object, kind: str, name: str, namespace: str, node_id: str) -> _Object:
        found = self._find(kind, name, namespace)
        merged = wanted if found is None else _merged(found, wanted)
        return self._write(merged, kind, name, namespace, node_id)

    def _get(self, kind: str, name: str, namespace: str) -> _Object:
        found = self._find(kind, name, namespace)
        if found is None:
            raise ObjectError(f'{kind} "{name}" not found')
        return found

    def _find(self, kind: str, name: str, namespace: str) -> _Object | None:
        file = self._file(kind, name, namespace)
        try:
            document: _Object = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        return document

    def _write(self, wanted: _Object, kind: str, name: str, namespace: str, node_id: str) -> _Object:
        metadata = {key: value for key, value in wanted.get("metadata", {}).items() if key != "generateName"}
        annotations = {**(metadata.get("annotations") or {}), _MADE_BY: node_id}
        document = {
            **wanted,
            "metadata": {**metadata, "name": name, "namespace": namespace, "annotations": annotations},
        }
        match kind:
            case "PersistentVolumeClaim":
                document["status"] = self._provision(document, name, namespace)
            case "VolumeSnapshot":
                document["status"] = self._snapshot(document, name, namespace)
            case "Secret":
                document = _with_encoded_data(document)
        file = self._file(kind, name, namespace)
        # Secrets are among them.
        (self._directory / "objects").mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(file, json.dumps(document).encode())
        return document

    def _delete(self, kind: str, name: str, namespace: str) -> None:
        self._file(kind, name, namespace).unlink(missing_ok=True)
        if kind in ("PersistentVolumeClaim", "VolumeSnapshot"):
            shutil.rmtree(self._volume(kind, name, namespace), ignore_errors=True)

    def _provision(self, document: _Object, name: str, namespace: str) -> _Object:
        spec = document.get("spec") or {}
        source = spec.get("dataSource") or {}
        target = self._volume("PersistentVolumeClaim", name, namespace)
        if source.get("kind") == "VolumeSnapshot" and not target.exists():
            self._copy(self._volume("VolumeSnapshot", str(source.get("name")), namespace), target)
        self.claim(namespace, name)
        storage = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "1Gi")
        return {"phase": "Bound", "accessModes": spec.get("accessModes", []), "capacity": {"storage": storage}}

    def _snapshot(self, document: _Object, name: str, namespace: str) -> _Object:
        source = (document.get("spec") or {}).get("source") or {}
        claim_name = str(source.get("persistentVolumeClaimName") or source.get("name") or "")
        target = self._volume("VolumeSnapshot", name, namespace)
        if not target.exists():
            self._copy(self._volume("PersistentVolumeClaim", claim_name, namespace), target)
        claim = self._find("PersistentVolumeClaim", claim_name, namespace) or {}
        size = ((claim.get("status") or {}).get("capacity") or {}).get("storage", "1Gi")
        return {"readyToUse": True, "restoreSize": size}

    def _copy(self, source: Path, target: Path) -> None:
        if not source.is_dir():
            raise ObjectError(f'the volume "{source.name}" to copy from does not exist')
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished, symlinks=True)
        unfinished.rename(target)

    def _file(self, kind: str, name: str, namespace: str) -> Path:
        return self._directory / "objects" / _safe(namespace) / kind / f"{_safe(name)}.json"

    def _volume(self, kind: str, name: str, namespace: str) -> Path:
        return self._directory / "volumes" / _safe(namespace) / kind / _safe(name)


def output_of(document: _Object | None, json_path: str | None, jq_filter: str | None) -> str:
    """An output parameter of a resource step: `{}` is the whole object, `{.a.b[0]}` a part of it (§9).

    Raises ObjectError where the path leads nowhere; a jq filter gives null there.
    """
    whole: _Object = {} if document is None else document
    try:
        path = read_json_path(json_path or "{}") if jq_filter is None else read_jq_path(jq_filter)
    except PathError as error:
        raise ObjectError(str(error)) from error
    try:
        found = follow(whole, path)
    except PathError as error:
        if jq_filter is None:
            raise ObjectError(f"{json_path}: {error}") from error
        found = None
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()


def _check_conditions(resource: Resource, document: _Object) -> None:
    """Objects here are ready at once, so a condition that does not hold now never will."""
    if resource.failure_condition and _holds(resource.failure_condition, document):
        raise ObjectError(f"failure condition '{resource.failure_condition}' is met")
    if resource.success_condition and not _holds(resource.success_condition, document):
        raise ObjectError(f"success condition '{resource.success_condition}' is not met")


def _holds(condition: str, document: _Object) -> bool:
    return all(_requirement_holds(each.strip(), document) for each in condition.split(",") if each.strip())


def _requirement_holds(requirement: str, document: _Object) -> bool:
    match = re.fullmatch(r"([^\s=!<>]+)\s*(==|=|!=|>|<)\s*(.*)", requirement)
    if match is None:
        raise ObjectError(f"the condition '{requirement}' is not supported by the local engine")
    path, operator, wanted = match.groups()
    try:
        found = output_of(document, "{." + path + "}", None)
    except ObjectError:
        return operator == "!="
    if operator in (">", "<"):
        try:
            return float(found) > float(wanted) if operator == ">" else float(found) < float(wanted)
        except ValueError:
            return False
    return (found == wanted.strip()) is (operator != "!=")


def _read_manifest(text: str) -> _Object:
    try:
        document = go_yaml.load(text, only=True)
    except go_yaml.NotYaml as error:
        raise ObjectError(f"the resource manifest must be a valid yaml: {error}") from error
    if not isinstance(document, dict):
        raise ObjectError("the resource manifest must be a valid yaml mapping")
    return document


def _name_of(wanted: Mapping[str, Any], node_id: str) -> str:
    metadata = wanted.get("metadata") or {}
    if metadata.get("name"):
        return str(metadata["name"])
    prefix = metadata.get("generateName")
    if not prefix:
        raise ObjectError("the resource manifest has neither metadata.name nor metadata.generateName")
    # From the node's id, not by chance: a repetition after a crash finds the object it made.
    digest = hashlib.sha256(node_id.encode()).digest()
    return f"{prefix}{''.join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:5])}"


def _given(directory: Path | None, name: str) -> dict[str, bytes] | None:
    """The files of `directory/name`. Names that begin with a dot are no keys: a cluster keeps its versions there."""
    if directory is None or not (directory / name).is_dir():
        return None
    files = (file for file in (directory / name).iterdir() if file.is_file() and not file.name.startswith("."))
    return {file.name: file.read_bytes() for file in files}


def _safe(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ObjectError(f'"{name}" is not a valid name of an object')
    return name


def _with_encoded_data(document: _Object) -> _Object:
    """What an API server does with `stringData`."""
    texts = document.get("stringData") or {}
    encoded = {key: base64.b64encode(str(value).encode()).decode() for key, value in texts.items()}
    rest = {key: value for key, value in document.items() if key != "stringData"}
    return {**rest, "data": {**(document.get("data") or {}), **encoded}}


def _decoded(value: str) -> bytes:
    """Tolerant of plain text where base64 belongs: pipelines that put a parameter there are meant to work."""
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return value.encode()


def _merged(old: Any, new: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    result = dict(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _write_durably(file: Path, data: bytes) -> None:
    temporary = file.with_suffix(".new")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
