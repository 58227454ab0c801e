"""The verbs of the pipeline registry. Knows rules, rows and objects; knows neither HTTP nor what a run is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import BinaryIO, Protocol

from shared.blobs import Blobs, NoSuchObject
from shared.bus import Bus
from shared.contracts import events
from shared.contracts.states import PipelineId as PublicPipelineId
from shared.contracts.states import PipelineState, PipelineVersionState
from shared.contracts.states import PipelineVersionId as PublicVersionId
from shared.database import Connection, ConstraintViolated, Database, Transaction
from shared.errors import InvalidInput, Unavailable, layer
from shared.idempotency import Keep, keep_nothing
from shared.identity import caller_subject
from shared.listing import ListRequest, Page
from shared.outbox import Outbox
from shared.subscriptions import until_published_and_applied

from . import domain, store
from .domain import Described, Package, Pipeline, PipelineId, Version, VersionId
from .fetching import Fetcher
from .readers import PackageReaders, Reading

FOLLOWERS = ("run",)
"""Who makes something of versions by its own copy, and must have heard of their end."""

_ERASED_AT_ONCE = 100


class PackageFile(Protocol):
    """Where a package's bytes are while nobody has looked at them yet."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def content(self) -> BinaryIO: ...


class Pipelines:
    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        bus: Bus,
        blobs: Blobs,
        fetcher: Fetcher,
        readers: PackageReaders,
        *,
        upload_seconds: float,
        applied_wait_seconds: float,
        new_versions_become_default: bool,
        on_doomed: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_doomed` is told after the commit when there are objects to erase."""
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._blobs = blobs
        self._fetcher = fetcher
        self._readers = readers
        self._upload_seconds = upload_seconds
        self._applied_wait_seconds = applied_wait_seconds
        self._new_versions_become_default = new_versions_become_default
        self._on_doomed = on_doomed

    # Creating.

    @property
    def largest_package_bytes(self) -> int:
        return self._readers.largest_bytes

    async def create(self, url: str, keep: Keep[Described] = keep_nothing, *, name: str, description: str) -> Described:
        """P1. What is refused leaves no row, takes no name and leaves no object behind."""
        async with self._fetcher.fetched(url) as file:
            wanted = name or file.name
            with layer("The URL is valid but pipeline system failed to read the file."):
                reading = await self._read(file, pipeline_name=wanted)
            with layer("Invalid pipeline name."):
                domain.check_name(wanted)
            with layer("Create pipeline failed."), layer("Create pipeline failed"):
                return await self._create(wanted, description, reading.valid_package(), keep)

    async def create_version(
        self,
        url: str,
        pipeline_id: str,
        keep: Keep[Version] = keep_nothing,
        *,
        name: str,
        description: str,
        code_source_url: str,
    ) -> Version:
        """V1. Its name may be nothing."""
        async with self._fetcher.fetched(url) as file:
            pipeline = await store.find_pipeline(self._database, pipeline_id) if pipeline_id else None
            with layer("The URL is valid but pipeline system failed to read the file."):
                reading = await self._read(file, pipeline_name=pipeline.name if pipeline else name)
            with layer("Invalid pipeline version name."):
                domain.check_version_name(name)
            if not pipeline_id:
                raise domain.missing_pipeline()
            with layer("Failed to create a version."), layer("Create pipeline version failed"):
                package = reading.valid_package()
                if pipeline is None:
                    raise domain.unknown_pipeline(pipeline_id)
                return await self._create_version(
                    pipeline.id, name, description, package, keep, code_source_url=code_source_url
                )

    async def upload(
        self, file: PackageFile, keep: Keep[Described] = keep_nothing, *, name: str, description: str
    ) -> Described:
        """P6. As P1."""
        wanted = name or file.name
        with layer("Error read pipeline file."):
            reading = await self._read(file, pipeline_name=wanted)
        with layer("Invalid pipeline name."):
            domain.check_name(wanted)
        with layer("Error creating pipeline"), layer("Create pipeline failed"):
            return await self._create(wanted, description, reading.valid_package(), keep)

    async def upload_version(
        self,
        file: PackageFile,
        pipeline_id: str,
        keep: Keep[Version] = keep_nothing,
        *,
        name: str,
        description: str,
    ) -> Version:
        """P7."""
        wanted = name or file.name
        pipeline = await store.find_pipeline(self._database, pipeline_id) if pipeline_id else None
        with layer("Error read pipeline version file."):
            reading = await self._read(file, pipeline_name=pipeline.name if pipeline else wanted)
        with layer("Invalid pipeline version name."):
            domain.check_name(wanted)
        if not pipeline_id:
            raise InvalidInput("Please specify a pipeline id when creating versions.")
        if pipeline is None:
            with (
                layer("Failed to get namespace from pipelineId."),
                layer("Failed to get namespace from Pipeline ID"),
            ):
                raise domain.unknown_pipeline(pipeline_id)
        with layer("Error creating pipeline version"), layer("Create pipeline version failed"):
            return await self._create_version(pipeline.id, wanted, description, reading.valid_package(), keep)

    async def _read(self, file: PackageFile, *, pipeline_name: str) -> Reading:
        domain.check_size(file.size_bytes, self.largest_package_bytes)
        reading = await self._readers.read(file.content, file_name=file.name, pipeline_name=pipeline_name)
        reading.check_readable()
        return reading

    async def _create(self, name: str, description: str, package: Package, keep: Keep[Described]) -> Described:
        # Only to spare the object store.
        if await store.is_pipeline_name_taken(self._database, name):
            raise domain.pipeline_name_taken(name)
        pipeline_id = PipelineId(str(uuid.uuid4()))
        version_id = VersionId(pipeline_id)  # The first version is called as its pipeline.
        digest = await self._store(version_id, package)
        try:
            async with self._database.transaction() as tx:
                await self._spare(tx, version_id)
                pipeline = await store.insert_pipeline(
                    tx, pipeline_id, name, description, package.parameters, version_id, caller_subject()
                )
                version = await store.insert_version(
                    tx, version_id, pipeline_id, name, description, "", package.parameters, digest, caller_subject()
                )
                await self._outbox.add(tx, events.PIPELINE_CREATED, to_state(pipeline))
                await self._outbox.add(tx, events.PIPELINE_VERSION_CREATED, to_version_state(version))
                made = Described(pipeline=pipeline, default_version=version)
                await keep(tx, made)
        except ConstraintViolated as violation:
            if violation.constraint == store.PIPELINE_NAME_KEY:
                raise domain.pipeline_name_taken(name) from violation
            raise
        return made

    async def _create_version(
        self,
        pipeline_id: PipelineId,
        name: str,
        description: str,
        package: Package,
        keep: Keep[Version],
        *,
        code_source_url: str = "",
    ) -> Version:
        if await store.is_version_name_taken(self._database, pipeline_id, name):
            raise domain.version_name_taken(name)
        version_id = VersionId(str(uuid.uuid4()))
        digest = await self._store(version_id, package)
        try:
            async with self._database.transaction() as tx:
                pipeline = await self._locked(tx, pipeline_id)
                await self._spare(tx, version_id)
                version = await store.insert_version(
                    tx,
                    version_id,
                    pipeline.id,
                    name,
                    description,
                    code_source_url,
                    package.parameters,
                    digest,
                    caller_subject(),
                )
                await self._outbox.add(tx, events.PIPELINE_VERSION_CREATED, to_version_state(version))
                if self._new_versions_become_default:
                    await self._set_default(tx, pipeline, version_id)
                await keep(tx, version)
        except ConstraintViolated as violation:
            if violation.constraint == store.VERSION_NAME_KEY:
                raise domain.version_name_taken(name) from violation
            raise
        return version

    async def _store(self, version_id: VersionId, package: Package) -> str:
        """Write the package and its manifest ahead of the commit. Returns the manifest's digest."""
        key = _key_of(version_id)
        await store.doom(self._database, [key], within_seconds=self._upload_seconds)
        _, digest = await asyncio.gather(
            self._blobs.put(key, package.text.encode(), content_type="text/plain"),
            self._blobs.put_manifest(package.manifest),
        )
        return digest

    async def _spare(self, tx: Transaction, version_id: VersionId) -> None:
        if not await store.spare(tx, _key_of(version_id)):
            raise Unavailable("Storing the package took too long. Try again.")

    # Reading.

    async def get(self, pipeline_id: str) -> Described:
        pipeline = await store.find_pipeline(self._database, pipeline_id)
        if pipeline is None:
            raise domain.unknown_pipeline(pipeline_id)
        return (await self._described(self._database, [pipeline]))[0]

    async def list(self, asked: ListRequest) -> Page[Described]:
        page = await store.PIPELINES.page(self._database, store.PIPELINES.query(asked), store.to_pipeline)
        return Page(
            rows=tuple(await self._described(self._database, page.rows)),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )

    async def get_version(self, version_id: str, *, of_pipeline: str | None = None) -> Version:
        version = await store.find_version(self._database, version_id)
        if version is None:
            raise domain.unknown_version(version_id)
        if of_pipeline is not None and version.pipeline_id != of_pipeline:
            raise domain.foreign_version()
        return version

    async def get_default_version(self, pipeline_id: str) -> tuple[Pipeline, Version]:
        described = await self.get(pipeline_id)
        if described.default_version is None:
            raise InvalidInput("No pipeline version.")
        return described.pipeline, described.default_version

    async def list_versions(self, pipeline_id: str, asked: ListRequest) -> Page[Version]:
        query = store.VERSIONS.query(asked, only={"pipeline_id": pipeline_id})
        page = await store.VERSIONS.page(self._database, query, store.to_version)
        if not page.rows and await store.find_pipeline(self._database, pipeline_id) is None:
            raise domain.unknown_pipeline(pipeline_id)
        return page

    async def get_template(self, pipeline_id: str) -> str:
        """P5: the default version's text; empty where there is none."""
        with layer("Get pipeline template failed."):
            described = await self.get(pipeline_id)
        return await self._text_of(described.default_version) if described.default_version else ""

    async def get_version_template(self, version_id: str) -> str:
        """V5."""
        with layer("Get pipeline template failed."), layer("Get pipeline version template failed"):
            version = await self.get_version(version_id)
        return await self._text_of(version)

    async def _text_of(self, version: Version) -> str:
        """Empty where the object is gone, as clients of the API expect."""
        try:
            return (await self._blobs.get(_key_of(version.id))).decode()
        except NoSuchObject:
            return ""

    async def _described(self, connection: Connection, pipelines: Sequence[Pipeline]) -> Sequence[Described]:
        wanted = [pipeline.default_version_id for pipeline in pipelines if pipeline.default_version_id]
        found = await store.find_versions(connection, wanted) if wanted else {}
        return [
            Described(
                pipeline=pipeline,
                default_version=found.get(pipeline.default_version_id) if pipeline.default_version_id else None,
            )
            for pipeline in pipelines
        ]

    # Changing.

    async def set_default_version(self, pipeline_id: str, version_id: str) -> None:
        """P8. Idempotent."""
        async with self._database.transaction() as tx:
            pipeline = await self._locked(tx, pipeline_id)
            version = await store.find_version(tx, version_id)
            if version is None:
                raise domain.unknown_version(version_id)
            if version.pipeline_id != pipeline.id:
                raise domain.foreign_version()
            if pipeline.default_version_id != version.id:
                await self._set_default(tx, pipeline, version.id)

    async def _set_default(self, tx: Transaction, pipeline: Pipeline, version_id: VersionId | None) -> None:
        changed = await store.set_default(tx, pipeline.id, version_id)
        await self._outbox.add(tx, events.PIPELINE_DEFAULT_CHANGED, to_state(changed))

    async def delete(self, pipeline_id: str) -> None:
        """P4. Runs and jobs keep what they remember of it.

        Answers after no run is made from it any more, or after a bounded wait.
        """
        with layer("Delete pipelines failed."), layer("Delete pipeline failed"):
            async with self._database.transaction() as tx:
                pipeline = await self._locked(tx, pipeline_id)
                versions = await store.list_versions_of(tx, pipeline.id)
                await self._doom(tx, versions)
                await store.delete_pipeline(tx, pipeline.id)
                for version in versions:
                    state = to_version_state(version, is_deleted=True)
                    await self._outbox.add(tx, events.PIPELINE_VERSION_DELETED, state)
                fact_id = await self._outbox.add(tx, events.PIPELINE_DELETED, to_state(pipeline, is_deleted=True))
        await self._until_followed(fact_id)

    async def delete_version(self, version_id: str) -> None:
        """V4. The newest of those left takes the place of a default that goes. Answers as `delete` does."""
        version = await store.find_version(self._database, version_id)
        if version is None:
            raise domain.unknown_version(version_id)
        async with self._database.transaction() as tx:
            pipeline = await store.lock_pipeline(tx, version.pipeline_id)
            if pipeline is None or await store.find_version(tx, version_id) is None:
                raise domain.unknown_version(version_id)
            await self._doom(tx, [version])
            if pipeline.default_version_id == version.id:
                await self._set_default(tx, pipeline, await store.find_newest_version_id(tx, pipeline.id, version.id))
            await store.delete_version(tx, version.id)
            state = to_version_state(version, is_deleted=True)
            fact_id = await self._outbox.add(tx, events.PIPELINE_VERSION_DELETED, state)
        await self._until_followed(fact_id)

    async def _until_followed(self, fact_id: uuid.UUID) -> None:
        await until_published_and_applied(
            self._bus,
            self._database,
            fact_id,
            FOLLOWERS,
            "pipeline-registry",
            within_seconds=self._applied_wait_seconds,
        )

    async def _locked(self, tx: Transaction, pipeline_id: str) -> Pipeline:
        """The pipeline, which nobody else changes before this transaction ends; its facts keep their order by it."""
        pipeline = await store.lock_pipeline(tx, pipeline_id)
        if pipeline is None:
            raise domain.unknown_pipeline(pipeline_id)
        return pipeline

    # Erasing.

    async def _doom(self, tx: Transaction, versions: Iterable[Version]) -> None:
        await store.doom(tx, [_key_of(version.id) for version in versions], within_seconds=0)
        tx.after_commit(self._on_doomed)

    async def erase_due_objects(self) -> bool:
        """Erase what is due; whether there may be more. Any replica may do it, and doing it twice is harmless."""
        keys = await store.list_due(self._database, at_most=_ERASED_AT_ONCE)
        for key in keys:
            await self._blobs.delete(key)
        if keys:
            await store.forget_doomed(self._database, keys)
        return len(keys) == _ERASED_AT_ONCE


def to_state(pipeline: Pipeline, *, is_deleted: bool = False) -> PipelineState:
    default_version_id = pipeline.default_version_id
    return PipelineState(
        id=pipeline.id,
        version=pipeline.revision + is_deleted,
        name=pipeline.name,
        default_version_id=None if default_version_id is None else PublicVersionId(default_version_id),
        created_at=pipeline.created_at,
        created_by=pipeline.created_by,
        is_deleted=is_deleted,
    )


def to_version_state(version: Version, *, is_deleted: bool = False) -> PipelineVersionState:
    """A version never changes: it is new, or it is gone."""
    return PipelineVersionState(
        id=version.id,
        version=2 if is_deleted else 1,
        name=version.name,
        pipeline_id=PublicPipelineId(version.pipeline_id),
        manifest_digest=version.manifest_digest,
        created_at=version.created_at,
        created_by=version.created_by,
        is_deleted=is_deleted,
    )


def _key_of(version_id: VersionId) -> str:
    return f"pipelines/{version_id}"
