"""Artifacts on their way: into a step before it starts, out of its private tree after its end (specification §9).

Everything is streamed between files and the object store; nothing is held whole. What a failed step left behind is
collected as well, and what is missing is said, not raised: the reconciler decides who is to blame. A log is stored by
itself: no step that follows reads it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from services.run.engine import NodeDocument
from services.run.engine.embedded.cache import Kept
from services.run.engine.embedded.orders import (
    PlacedArtifact,
    StepOrder,
    WantedArtifact,
    WantedParameter,
    compression_level,
)
from services.run.engine.embedded.reconcile import Collected
from services.run.engine.embedded.runner.journal import stdout_of
from services.run.engine.embedded.runtime import archive
from services.run.engine.embedded.runtime.tree import OutsideTree, Tree, find, read_text
from services.run.engine.embedded.specs import CannotPrepare
from shared.blobs import Blobs, NoSuchObject

_log = logging.getLogger(__name__)

LARGEST_PARAMETER_BYTES = 4 * 1024 * 1024
"""Far above what fits a pod's annotation; a file beyond it is no parameter."""
LARGEST_RESULT_BYTES = 256 * 1024
_LARGEST_ELSEWHERE_BYTES = 256 * 1024
"""What the annotation of a pod holds, and with it all of a step's outputs on a cluster (§9, "parameter size")."""

_CREDENTIALS = {
    "accessKeySecret": {"name": "mlpipeline-minio-artifact", "key": "accesskey"},
    "secretKeySecret": {"name": "mlpipeline-minio-artifact", "key": "secretkey"},
}


_CACHE_LOG = "This step output is taken from cache.\n"
_CACHE_LOG_KEY = "artifacts/step-cache/main.log"
"""The same text for all, and a key without the node's id: by that the UI knows a step as cached (§14)."""

_RESERVED = ("manifests", "pipelines")
"""Where the server keeps what runs are made of: no place for what a step writes, or reads."""
_LARGEST_KEY_BYTES = 1024
_IS_STORABLE = re.compile(r"[^\0\ud800-\udfff]+")
"""A file's name may be no text at all, which Python shows as lone surrogates."""
_AT_ONCE = 4


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was collected, and what should have been there and was not."""

    outputs: Collected
    problem: str | None = None


class Artifacts:
    """The artifacts of one workflow in the object store."""

    def __init__(self, blobs: Blobs, workflow_name: str, created_at: datetime) -> None:
        self._blobs = blobs
        self._prefix = artifact_prefix(workflow_name, created_at)

    def location(self, key: str) -> dict[str, Any]:
        """An `s3` block, complete enough for the UI of either version (specification §14)."""
        return {
            "bucket": self._blobs.bucket,
            "endpoint": self._blobs.endpoint,
            "insecure": self._blobs.is_insecure,
            **_CREDENTIALS,
            "key": key,
        }

    @property
    def bucket(self) -> str:
        return self._blobs.bucket

    async def stage(
        self, artifacts: Sequence[PlacedArtifact], scratch: Path, *, leave_out_lost: bool = False
    ) -> dict[str, Path]:
        """Bring the input artifacts that lie in the store. Returns name → path; raises CannotPrepare, Unavailable.

        `leave_out_lost`: what is not there is not brought, and nobody is told.
        """
        staged: dict[str, Path] = {}
        for number, artifact in enumerate(artifacts):
            if artifact.raw is not None or artifact.s3 is None:
                continue
            key = _key_of(artifact)
            if not leave_out_lost or await self._holds(key):
                staged[artifact.name] = await self._fetch(artifact, key, scratch / "inputs" / str(number))
        return staged

    async def _fetch(self, artifact: PlacedArtifact, key: str, target: Path) -> Path:
        await asyncio.to_thread(make_empty, target)
        packed, placed = target / "object", target / "artifact"
        try:
            await self._blobs.get_file(key, packed)
        except NoSuchObject as error:
            if await self._fetch_directory(key, placed):
                return placed
            raise CannotPrepare(f"artifact {artifact.name}: nothing is stored at {key}") from error
        return await asyncio.to_thread(unpacked, artifact, packed, placed)

    async def _fetch_directory(self, key: str, target: Path) -> bool:
        """One that was stored as an object per file. Whether there was any."""
        prefix = key.rstrip("/") + "/"
        names = [found.removeprefix(prefix) for found in await self._blobs.list_keys(prefix)]
        files = [name for name in names if not {"", ".", ".."}.intersection(name.split("/"))]

        async def fetch(name: str) -> None:
            await self._blobs.get_file(prefix + name, target / name)

        await _each(files, fetch)
        return bool(files)

    async def collect(self, order: StepOrder, tree: Tree | None, attempt_dir: Path, scratch: Path) -> Found:
        """Store what the step wrote, but not its log. Raises Unavailable; repeating it is harmless."""
        log = attempt_dir / "log"
        parameters: dict[str, str] = {}
        artifacts: dict[str, Mapping[str, Any]] = {}
        problems: list[str] = []
        for parameter in order.output_parameters:
            try:
                text = await asyncio.to_thread(_read_parameter, parameter, tree)
            except (OSError, OutsideTree) as error:
                problems.append(f"Error (exit code 1): {_said(error)}")
                continue
            if text is not None:
                parameters[parameter.name] = text
        for wanted in order.output_artifacts:
            path = None if tree is None else await asyncio.to_thread(find, tree, wanted.path)
            if path is not None:
                try:
                    artifacts[wanted.name] = await self._store(order.node_id, wanted, path, scratch)
                except (OSError, _BadKey) as error:
                    problems.append(f"Error (exit code 1): {wanted.path}: {_said(error)}")
            elif not wanted.optional:
                problems.append(f"Error (exit code 1): {wanted.path}: no such file or directory")
        outputs = Collected(
            parameters=parameters,
            artifacts=artifacts,
            log=self.location(self._log_key(order.node_id)) if await asyncio.to_thread(log.exists) else None,
            result=await asyncio.to_thread(_read_result, stdout_of(attempt_dir)) if order.needs_result else None,
        )
        if (size := len(msgspec.json.encode(outputs))) > _LARGEST_ELSEWHERE_BYTES:
            _log.warning(
                "step %s has %d bytes of outputs: too many on a cluster, where 256 KiB is all", order.node_id, size
            )
        return Found(outputs=outputs, problem=problems[0] if problems else None)

    async def take_over(self, kept: Kept) -> Collected | None:
        """The outputs of an earlier step as this one's; None where the store has lost any. Raises Unavailable."""
        for key in kept.artifacts.values():
            if not await self._holds(key):
                return None
        await self._blobs.put(_CACHE_LOG_KEY, _CACHE_LOG.encode(), content_type="text/plain")
        return Collected(
            parameters=kept.parameters,
            artifacts={name: self.location(key) for name, key in kept.artifacts.items()},
            log=self.location(_CACHE_LOG_KEY),
            result=kept.result,
        )

    async def _holds(self, key: str) -> bool:
        """An object, or a directory that was stored as one per file."""
        return await self._blobs.exists(key) or bool(await self._blobs.list_keys(f"{key}/"))

    async def _store(self, node_id: str, wanted: WantedArtifact, path: Path, scratch: Path) -> dict[str, Any]:
        top = PurePosixPath(wanted.path).name
        is_plain = wanted.archive is not None and "none" in wanted.archive
        file_name = top if is_plain else f"{wanted.name}.tgz"
        key = _checked(str((wanted.s3 or {}).get("key") or f"{self._prefix}/{node_id}/{file_name}"))
        if is_plain:
            is_own = wanted.owns_key or not (wanted.s3 or {}).get("key")
            await self._store_plain(key, path, is_own=is_own)
            return self.location(key)
        packed = scratch / "outputs" / f"{wanted.name}.tgz"
        await asyncio.to_thread(_pack, path, top, packed, compression_level(wanted.archive))
        await self._blobs.put_file(key, packed)
        await asyncio.to_thread(packed.unlink)
        return self.location(key)

    async def _store_plain(self, key: str, path: Path, *, is_own: bool) -> None:
        """A file as it is; a directory as one object per file under the key.

        A key that nobody else uses holds nothing but this when it is done: an earlier attempt may have left more.
        """
        files = {
            _checked(f"{key}/{relative}" if relative else key): file
            for relative, file in await asyncio.to_thread(_files_at, path)
        }
        if is_own:
            earlier = [key, *await self._blobs.list_keys(f"{key}/")]
            await _each([each for each in earlier if each not in files], self._blobs.delete)

        async def store(key: str) -> None:
            await self._blobs.put_file(key, files[key])

        await _each(files, store)

    def has_log(self, node: NodeDocument) -> bool:
        """Whether a node on record tells of a log of its own; another's is that of a step that was taken over."""
        key = self._log_key(str(node["id"]))
        told = (node.get("outputs") or {}).get("artifacts") or ()
        return any((artifact.get("s3") or {}).get("key") == key for artifact in told)

    async def store_log(self, node_id: str, attempt_dir: Path) -> None:
        """Nothing where the attempt is gone. Raises Unavailable; repeating it is harmless."""
        log = attempt_dir / "log"
        if await asyncio.to_thread(log.exists):
            await self._blobs.put_file(self._log_key(node_id), log)

    def _log_key(self, node_id: str) -> str:
        return f"{self._prefix}/{node_id}/main.log"


async def _each(names: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """A few at a time: thousands of small objects one by one are thousands of waits. Raises what `work` raised."""
    left = iter(names)

    async def some() -> None:
        for name in left:
            await work(name)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(some())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


class _BadKey(Exception):
    """Nothing can be stored there, or read."""


def _key_of(artifact: PlacedArtifact) -> str:
    """Raises CannotPrepare."""
    key = str((artifact.s3 or {}).get("key", ""))
    try:
        _check_readable(key)
    except _BadKey as error:
        raise CannotPrepare(f"artifact {artifact.name}: {error}") from error
    return key


def _checked(key: str) -> str:
    """A key to store at, as written in a template or as a step named its files."""
    if "" in key.split("/"):
        raise _BadKey(f"the key {key[:200]!r} is not valid")
    _check_readable(key)
    return key


def _check_readable(key: str) -> None:
    """What the store would refuse for ever must not be tried for ever. Several slashes are one to some stores."""
    parts = [part for part in key.split("/") if part]
    size = len(key.encode(errors="replace"))
    if not parts or size > _LARGEST_KEY_BYTES or {".", ".."}.intersection(parts) or not _IS_STORABLE.fullmatch(key):
        raise _BadKey(f"the key {key[:200]!r} is not valid")
    if parts[0] in _RESERVED:
        raise _BadKey(f"the key {key!r} lies among what the server keeps")


def artifact_prefix(workflow_name: str, created_at: datetime) -> str:
    """Below it each pod has a folder of its own: the key format that `status.artifactRepositoryRef` tells."""
    return f"artifacts/{workflow_name}/{created_at:%Y/%m/%d}"


def unpacked(artifact: PlacedArtifact, packed: Path, placed: Path) -> Path:
    """What was brought, as the artifact wants it: the file itself, or at `placed` what it holds if it is a tar.

    Blocks on the disk. Raises CannotPrepare.
    """
    if artifact.archive is not None and "none" in artifact.archive:
        return packed
    try:
        archive.unpack(packed, placed)
    except (archive.BadArchive, OSError) as error:
        raise CannotPrepare(f"artifact {artifact.name}: {error}") from error
    return placed


def make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _pack(path: Path, top: str, packed: Path, level: int) -> None:
    packed.parent.mkdir(parents=True, exist_ok=True)
    archive.pack(path, top, packed, compression_level=level)


def _files_at(path: Path) -> list[tuple[str, Path]]:
    """The file itself under no name, or a directory's files under their relative ones."""
    if not path.is_dir():
        return [("", path)]
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink())
    return [(str(file.relative_to(path)), file) for file in files]


def _read_parameter(parameter: WantedParameter, tree: Tree | None) -> str | None:
    """Its text without one trailing newline, or its default; None where it has a literal value.

    Raises FileNotFoundError, OutsideTree.
    """
    source = parameter.value_from
    if source is None or source.path is None:
        return source.default if source is not None else None
    try:
        if tree is None:
            raise FileNotFoundError(f"{source.path}: no such file or directory")
        text = read_text(tree, source.path, limit_bytes=LARGEST_PARAMETER_BYTES)
    except FileNotFoundError:
        if source.default is None:
            raise
        return source.default
    return text.removesuffix("\n")


def _read_result(stdout: Path) -> str:
    """What the step printed, without one trailing newline; its last 256 KiB."""
    try:
        with stdout.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LARGEST_RESULT_BYTES))
            printed = file.read(LARGEST_RESULT_BYTES)
    except FileNotFoundError:
        return ""
    return printed.decode("utf-8", errors="replace").removesuffix("\n")


def _said(error: Exception) -> str:
    """In words for the pipeline's author: paths of this machine mean nothing to them."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    return str(error)
