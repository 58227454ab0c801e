"""The verbs of the run API. Knows rules and rows; knows neither HTTP nor how a run is executed.

Creation only records: the controller finds what is to be started. Everything is checked, and everything remote is
fetched, before the one transaction opens.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from shared import clock, replica
from shared.blobs import Blobs, NoSuchObject
from shared.bus import Bus
from shared.contracts import events, states
from shared.contracts.questions import (
    DESCRIBE_ENGINE,
    GET_DEFAULT_EXPERIMENT,
    GET_DEFAULT_VERSION,
    GET_EXPERIMENT,
    GET_JOB,
    GET_VERSION,
    ById,
    EngineAnswer,
    ManifestAnswer,
    Nothing,
    ValuesAnswer,
    ValuesRequest,
    VersionAnswer,
    VersionRequest,
)
from shared.contracts.states import ExperimentState, PipelineVersionState, TriggerState
from shared.database import Connection, ConstraintViolated, Database, Transaction
from shared.errors import InvalidInput, NotFound, Unavailable, layer
from shared.figures import schema_gauge
from shared.idempotency import Keep, keep_nothing
from shared.identity import caller_subject
from shared.listing import ListRequest, Page
from shared.outbox import Outbox
from shared.readers import OverLimit
from shared.subscriptions import until_published_and_applied
from shared.telemetry import continue_trace, current_traceparent

from . import compose, domain, store
from .domain import (
    AskedReference,
    Detail,
    EngineName,
    Metric,
    NewRun,
    Parameter,
    Reference,
    Relationship,
    ReportedRun,
    ResourceType,
    Run,
    RunId,
    StorageState,
    View,
    WorkflowName,
)
from .engine.retry import OfAnotherKind, StillOpen, rewrite
from .manifests import Manifests, digest_of
from .reading import Reading

_open = schema_gauge(
    "headrace_runs", "Runs that are not over, by status; New is one that nothing happened to yet.", "status"
)
_oldest = schema_gauge(
    "headrace_runs_oldest_seconds", "Since the creation of the oldest run of a status; 0 where there is none.", "status"
)

EXPERIMENT = "experiment"
"""The kind under which experiments are replicated."""
PIPELINE_VERSION = "pipeline-version"
"""The kind under which pipeline versions are."""

LARGEST_REFUSAL = 16_384
"""In the answer to a question. The reason may quote names from the manifest, of any length."""
FOLLOWERS = ("metrics",)
"""Who takes a client's word about a run, and must have heard of its end."""


_LARGEST_VALUES_BYTES = 100_000
"""An answer has to fit into a message. No run takes parameters of that size."""
_LOG_STORED_WITHIN_SECONDS = 1.0
_LOG_STORED_PAUSE_SECONDS = 0.05


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for every run here."""

    namespace: str
    engine: EngineName
    ask_seconds: float
    applied_wait_seconds: float


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The pipeline version that a run is made from."""

    version_id: str
    version_name: str
    manifest_digest: str
    pipeline_name: str | None = None
    """None where nobody has asked for the pipeline."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A run that a slot asks for."""

    run: Run
    refusal: str = ""
    """Why there will be none; empty where nothing speaks against it."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A stored artifact, as it is to be sent."""

    key: str
    size: int
    etag: str

    @property
    def file_name(self) -> str:
        return self.key.rpartition("/")[2]


class Runs:
    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        bus: Bus,
        blobs: Blobs,
        manifests: Manifests,
        installation: Installation,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._blobs = blobs
        self._manifests = manifests
        self._installation = installation
        self._repository = compose.Repository(
            endpoint=blobs.endpoint, bucket=blobs.bucket, is_insecure=blobs.is_insecure
        )
        self._default_experiment_id = ""

    async def engine(self) -> EngineAnswer:
        """What executes the runs, as it is now. Raises Unavailable."""
        return await self._bus.ask(DESCRIBE_ENGINE, Nothing(), within_seconds=self._installation.ask_seconds)

    async def create(self, asked: NewRun, keep: Keep[Detail] = keep_nothing) -> Detail:
        """API specification, section 9.2, in the order of its checks. Nothing is started here."""
        digest = digest_of(asked.manifest)
        with layer("Validate create run request failed."):
            domain.check_name(asked.name)
            domain.check_lengths(asked)
            domain.check_source(asked)
            copies = await self._copies(asked)
            version, reading = await self._check_source(asked, digest, copies)
            domain.check_parameters_size(asked.parameters)
        with layer("Failed to create a new run."):
            reading = reading or await self._read(asked, version, digest)
            prepared = reading.prepared
            self._check_parameters(prepared, asked.parameters)
            known = copies.find(EXPERIMENT, asked.experiment_id, ExperimentState)
            experiment = known or await self._experiment(asked.experiment_id)
            draft = self._draft(asked, version, prepared, experiment)
            if reading.refusal:
                raise domain.invalid_workflow(draft.name, reading.refusal)
            names = domain.workflow_names(prepared.name, prepared.generate_name)
            for name in names:
                domain.check_workflow_name(name)
            with layer("Unable to convert resource references."):
                references = await self._references(asked, version, experiment)
            await self._manifests.keep(prepared.text, prepared.digest)

            def detail(run: Run) -> Detail:
                # The reply to a creation keeps the order of the request; what is read later stands in storage order.
                return Detail(
                    view=View(run=msgspec.structs.replace(run, references=references), manifest=prepared.text),
                    workflow=compose.workflow_document(prepared, run, (), self._repository),
                )

            return await self._insert(_with_references(draft, references), names, detail, keep)

    async def adopt(self, reported: ReportedRun) -> Run:
        """The record of a run that an external engine's scheduler has made of a job, made by the first report of it.

        Where no external engine is configured there is none to come. Raises NotFound for what was deleted here, too.
        """
        if self._installation.engine is not EngineName.EXTERNAL:
            raise domain.unknown(reported.id)
        domain.check_workflow_name(reported.workflow_name)
        job = await self._bus.ask(GET_JOB, ById(id=reported.job_id), within_seconds=self._installation.ask_seconds)
        try:
            prepared = await self._manifests.prepare(reported.manifest, digest_of(reported.manifest))
        except (compose.Malformed, compose.OfAnotherKind, OverLimit) as error:
            raise domain.not_a_report(str(error)) from error
        await self._manifests.keep(prepared.text, prepared.digest)
        run = Run(
            id=reported.id,
            name=reported.workflow_name,
            experiment_id=job.experiment_id,
            namespace=reported.namespace,
            references=(
                Reference(
                    type=ResourceType.EXPERIMENT,
                    id=job.experiment_id,
                    name=await self._name_of_experiment(job.experiment_id),
                    relationship=Relationship.OWNER,
                ),
                Reference(type=ResourceType.JOB, id=job.id, name=job.name, relationship=Relationship.CREATOR),
            ),
            job_id=job.id,
            service_account="",
            manifest_digest=prepared.digest,
            engine=EngineName.EXTERNAL,
            workflow_name=reported.workflow_name,
            created_by=job.created_by,
            traceparent=current_traceparent(),
            created_at=reported.created_at,
            scheduled_at=reported.scheduled_at,
        )
        return await self._adopted(run)

    async def get(self, run_id: str) -> Detail:
        run = await self._get(run_id)
        nodes = await store.list_nodes(self._database, run_id)
        prepared = await self._prepared(run)
        (view,) = await self._views((run,))
        return Detail(view=view, workflow=compose.workflow_document(prepared, run, nodes, self._repository))

    async def get_state(self, run_id: str) -> states.RunState:
        return to_state(await self._get(run_id))

    async def get_values(self, asked: ValuesRequest) -> ValuesAnswer:
        """What a run has left for one that it triggers: all that is asked for, or a refusal that tells what is missing.

        Raises NotFound, and InvalidInput also where the run is in another attempt by now.
        """
        run = await self._get(asked.run_id)
        if run.attempt != asked.attempt:
            raise domain.retried_since(run.id, asked.attempt)
        nodes = await store.list_nodes(self._database, run.id) if asked.outputs else []
        parameters = compose.output_parameters(nodes)
        outputs = tuple(
            domain.get_output(run.id, each.node, each.name, parameters.get((each.node, each.name), ()))
            for each in asked.outputs
        )
        if sum(map(len, outputs)) > _LARGEST_VALUES_BYTES:
            raise domain.values_too_large(run.id, _LARGEST_VALUES_BYTES)
        reported = await store.list_metrics(self._database, [run.id]) if asked.metrics else []
        numbers = {each.name: each.number for each in sorted(reported, key=lambda each: each.number)}
        for name in asked.metrics:
            if name not in numbers:
                raise domain.metric_unknown(run.id, name)
        return ValuesAnswer(outputs=outputs, metrics=tuple(numbers[name] for name in asked.metrics))

    async def list(self, asked: ListRequest) -> Page[View]:
        async def count(equalities: Mapping[str, str]) -> int | None:
            return await store.kept_count(self._database, equalities)

        query = store.LISTING.query(asked)
        page = await store.LISTING.page(self._database, query, store.to_run, count=count)
        return Page(rows=await self._views(page.rows), total_size=page.total_size, next_page_token=page.next_page_token)

    async def delete(self, run_id: str) -> None:
        """The row is gone at once; the engine's object, the nodes and the metrics follow (`Records.due`).

        Answers after nobody takes reports of it any more, or after a bounded wait.
        """
        async with self._database.transaction() as tx:
            run = await store.delete(tx, run_id)
            if run is None:
                raise domain.unknown(run_id)
            last = msgspec.structs.replace(run, version=run.version + 1)
            fact_id = await self._outbox.add(tx, events.RUN_DELETED, to_state(last, is_deleted=True))
            if run.engine is EngineName.EXTERNAL:
                # There is no controller to do it. The engine's agent learns it from the answer to its next report.
                await store.erase(tx, run.id)
                if run.job_id:
                    await store.remember_deleted(tx, run.id, run.job_id)
        await until_published_and_applied(
            self._bus,
            self._database,
            fact_id,
            FOLLOWERS,
            "run",
            within_seconds=self._installation.applied_wait_seconds,
        )

    async def archive(self, run_id: str) -> None:
        await self._move(run_id, StorageState.ARCHIVED)

    async def unarchive(self, run_id: str) -> None:
        await self._move(run_id, StorageState.AVAILABLE)

    async def check_manifest(self, digest: str, parameters: tuple[str, ...]) -> ManifestAnswer:
        """What creation would say of a manifest, for whoever will create runs of it later."""
        text = await self._manifests.find(digest)
        if text is None:
            raise NotFound.of("WorkflowSpecManifest", digest)
        try:
            reading = await self._manifests.read(text, digest)
        except (compose.Malformed, compose.OfAnotherKind, OverLimit) as error:
            return ManifestAnswer(malformation=str(error)[:LARGEST_REFUSAL])
        prepared = reading.prepared
        return ManifestAnswer(
            refusal=reading.refusal[:LARGEST_REFUSAL],
            unrecognized=compose.unrecognized(prepared, tuple(Parameter(name=name) for name in parameters)),
            service_account=prepared.service_account,
        )

    async def archive_experiment(self, tx: Transaction, experiment_id: str) -> None:
        """Its runs follow an experiment into the archive (API specification, section 7, E5)."""
        for run in await store.archive_experiment(tx, experiment_id):
            await self._outbox.add(tx, events.RUN_ARCHIVED, to_state(run))

    async def drafts_of_slots(self, triggers: Sequence[tuple[TriggerState, str]]) -> Sequence[Draft]:
        """The runs of jobs' slots, each with why there will be none. Beside each slot is the traceparent of its fact.

        Raises Unavailable.
        """
        ids = {trigger.experiment_id for trigger, _ in triggers}
        gone = await replica.deleted_among(self._database, EXPERIMENT, ids)
        drafts = []
        for trigger, traceparent in triggers:
            with continue_trace(traceparent):
                drafts.append(await self._draft_of_slot(trigger, gone))
        return drafts

    async def _draft_of_slot(self, trigger: TriggerState, gone: Collection[str]) -> Draft:
        run = _fired(trigger)
        try:
            if run.experiment_id in gone:
                raise domain.experiment_gone(run.experiment_id)
            await self._check_slot(trigger, run)
        except (InvalidInput, NotFound) as refusal:
            return Draft(run=run, refusal=refusal.message[:LARGEST_REFUSAL])
        return Draft(run=run)

    async def make_of_slots(self, tx: Transaction, drafts: Sequence[Draft]) -> None:
        """Make them, or tell that they are refused. Harmless where one was made before."""
        # A slot may be told twice in one batch.
        good = {draft.run.id: draft.run for draft in drafts if not draft.refusal}
        made: set[RunId] = set()
        if good:
            created = [(run, self._outbox.entry(events.RUN_CREATED, to_state(run))) for run in good.values()]
            made = await store.insert_fired(tx, created)
            tx.after_commit(self._outbox.wake)
        for draft in drafts:
            if draft.run.id not in made and not await store.exists(tx, draft.run.id):
                await self._reject(tx, draft)

    async def _reject(self, tx: Transaction, draft: Draft) -> None:
        reason = draft.refusal or domain.workflow_name_taken(draft.run.workflow_name).message
        never_was = msgspec.structs.replace(
            draft.run, status=domain.Status.ERROR, error=reason, finished_at=draft.run.created_at
        )
        with continue_trace(draft.run.traceparent):
            await self._outbox.add(tx, events.RUN_REJECTED, to_state(never_was))

    async def follow_replacement(self, tx: Transaction, run_id: str) -> None:
        """Its job has another run in its place. Harmless where it is over."""
        await self._terminate(tx, run_id)

    async def forget_job(self, tx: Transaction, job_id: str) -> None:
        await store.forget_job(tx, job_id)

    async def keep_metrics(self, tx: Transaction, metrics: Sequence[Metric]) -> None:
        await store.insert_metrics(tx, metrics)

    async def show(self, connection: Connection) -> None:
        """For the metrics. Raises Unavailable."""
        found = {status: (runs, oldest) for status, runs, oldest in await store.list_open(connection)}
        for status in domain.Status:
            if not status.is_final:
                runs, oldest_seconds = found.get(status.value, (0, 0))
                _open.labels("run", status.value or "New").set(runs)
                _oldest.labels("run", status.value or "New").set(oldest_seconds)

    async def fold_counts(self) -> None:
        await store.fold_counts(self._database)

    async def terminate(self, run_id: str) -> None:
        async with self._database.transaction() as tx:
            if await self._terminate(tx, run_id):
                return
            if await store.exists(tx, run_id):
                raise domain.not_terminable(run_id)
            raise domain.unknown(run_id).inside("Check run exist failed")

    async def follow_termination(self, run_id: str) -> None:
        """Somebody has asked the engine itself for the stop. Harmless where the run's state forbids it."""
        async with self._database.transaction() as tx:
            await self._terminate(tx, run_id)

    async def _terminate(self, tx: Transaction, run_id: str) -> bool:
        run = await store.terminate(tx, run_id)
        if run is not None:
            await self._outbox.add(tx, events.RUN_TERMINATING, to_state(run))
        return run is not None

    async def retry(self, run_id: str) -> None:
        """The next attempt of a failed run: what is done stays done, the rest runs again (section 9.6)."""
        async with self._database.transaction() as tx:
            run = await store.lock(tx, run_id)
            if run is None:
                raise domain.unknown(run_id).inside("Check run exist failed").inside("Retry run failed")
            with layer("Retry run failed."):
                if run.status not in domain.RETRYABLE:
                    raise domain.not_retryable()
                await self._reopen_nodes(tx, run)
            await self._outbox.add(tx, events.RUN_RETRIED, to_state(await store.retry(tx, run.id)))

    async def read_artifact(self, run_id: str, node_id: str, artifact_name: str) -> AsyncIterator[bytes]:
        """The object as it is stored, in chunks; nothing where it cannot be read (section 9.9).

        Raises NotFound before the first chunk.
        """
        key = await self._artifact_key(run_id, node_id, artifact_name)
        return self._object(key)

    async def find_artifact(self, run_id: str, node_id: str, artifact_name: str) -> Artifact:
        """Where it lies, for who reads parts of it. Raises NotFound, also where the object is gone."""
        key = await self._artifact_key(run_id, node_id, artifact_name)
        try:
            stored = await self._blobs.stat(key)
        except NoSuchObject as error:
            raise domain.artifact_unknown(run_id, node_id, artifact_name) from error
        return Artifact(key=key, size=stored.size, etag=stored.etag)

    def read_part(self, artifact: Artifact, offset: int, length: int) -> AsyncIterator[bytes]:
        """Raises NoSuchObject where it went meanwhile."""
        return self._blobs.stream(artifact.key, offset=offset, length=length)

    # Creation.

    async def _copies(self, asked: NewRun) -> replica.Copies:
        """Of the version and the experiment that are named together, by one statement; what is missing among them, or
        named alone, is looked for when its turn comes."""
        if not (asked.version_id and asked.experiment_id) or asked.pipeline_id:
            return replica.Copies({})
        identities = ((PIPELINE_VERSION, asked.version_id), (EXPERIMENT, asked.experiment_id))
        return await replica.find_all(self._database, identities)

    async def _check_source(
        self, asked: NewRun, digest: str, copies: replica.Copies
    ) -> tuple[Source | None, Reading | None]:
        """Section 9.3. The version to run, or what is read of the manifest that came along."""
        if asked.version_id:
            with layer("Get pipelineVersionId failed."):
                if known := copies.find(PIPELINE_VERSION, asked.version_id, PipelineVersionState):
                    return _from_copy(known), None
                return await self._version(asked.version_id, asked.pipeline_id), None
        if asked.pipeline_id:
            with layer("Get pipelineId failed."):
                # Of the default no copy will do: a stale one would run the wrong code.
                answer = await self._bus.ask(
                    GET_DEFAULT_VERSION, ById(id=asked.pipeline_id), within_seconds=self._installation.ask_seconds
                )
                return _to_source(answer), None
        try:
            return None, await self._manifests.read(asked.manifest, digest)
        except compose.Malformed as error:
            raise domain.not_a_workflow(asked.manifest, str(error)) from error
        except OverLimit as error:
            raise domain.not_our_kind(str(error)) from error
        except compose.OfAnotherKind:
            return None, None  # That is told by a later check.

    async def _version(self, version_id: str, pipeline_id: str = "") -> Source:
        """As with experiments; our copy does not know the pipeline."""
        if not pipeline_id and (known := await self._known_version(version_id)):
            return _from_copy(known)
        request = VersionRequest(
            version_id=states.PipelineVersionId(version_id),
            pipeline_id=states.PipelineId(pipeline_id) if pipeline_id else None,
        )
        return _to_source(await self._bus.ask(GET_VERSION, request, within_seconds=self._installation.ask_seconds))

    async def _known_version(self, version_id: str) -> PipelineVersionState | None:
        return await replica.find(self._database, PIPELINE_VERSION, version_id, PipelineVersionState)

    async def _read(self, asked: NewRun, version: Source | None, digest: str) -> Reading:
        if version is None:
            text = asked.manifest
        else:
            digest = version.manifest_digest
            with layer("Failed to fetch workflow spec."):
                found = await self._manifests.find(digest)
                if found is None:
                    raise domain.manifest_gone(asked.name)
                text = found
        try:
            return await self._manifests.read(text, digest)
        except (compose.Malformed, compose.OfAnotherKind, OverLimit) as error:
            raise domain.not_our_kind(str(error)) from error

    def _check_parameters(self, prepared: compose.Prepared, parameters: tuple[Parameter, ...]) -> None:
        name = compose.unrecognized(prepared, parameters)
        if name is not None:
            raise domain.unrecognized_parameter(name).inside("Failed to verify parameters.")

    async def _experiment(self, experiment_id: str) -> ExperimentState:
        with layer("Failed to get experiment."):
            if experiment_id:
                return await self._named_experiment(experiment_id)
            # A default that still exists is still the default.
            if self._default_experiment_id and (known := await self._known_experiment(self._default_experiment_id)):
                return known
            default = await self._bus.ask(
                GET_DEFAULT_EXPERIMENT, Nothing(), within_seconds=self._installation.ask_seconds
            )
            self._default_experiment_id = default.id
            return default

    async def _named_experiment(self, experiment_id: str) -> ExperimentState:
        """Our copy may say yes; only the owner may say no."""
        known = await self._known_experiment(experiment_id)
        return known or await self._bus.ask(
            GET_EXPERIMENT, ById(id=experiment_id), within_seconds=self._installation.ask_seconds
        )

    async def _known_experiment(self, experiment_id: str) -> ExperimentState | None:
        return await replica.find(self._database, EXPERIMENT, experiment_id, ExperimentState)

    def _draft(
        self, asked: NewRun, version: Source | None, prepared: compose.Prepared, experiment: ExperimentState
    ) -> Run:
        """The run as far as it is known before its references are; the name and the time are provisional."""
        return Run(
            id=RunId(str(uuid.uuid4())),
            name=asked.name,
            description=asked.description,
            experiment_id=experiment.id,
            namespace=self._installation.namespace,
            references=(),
            pipeline_id=asked.pipeline_id or None,
            pipeline_name=version.pipeline_name if version is not None and asked.pipeline_id else None,
            service_account=asked.service_account or prepared.service_account,
            parameters=asked.parameters,
            manifest_digest=prepared.digest,
            engine=self._installation.engine,
            workflow_name=WorkflowName(prepared.name or "run"),
            created_by=caller_subject(),
            traceparent=current_traceparent(),
            created_at=clock.now(),
        )

    async def _references(
        self, asked: NewRun, version: Source | None, experiment: ExperimentState
    ) -> tuple[Reference, ...]:
        """Section 6: in the request's order, then what the server adds."""
        references = [await self._reference(each, version, experiment) for each in asked.references]
        given = {reference.type for reference in references}
        if len(given) < len(references):
            raise InvalidInput("A run refers to at most one resource of each type.")
        if version is not None and not asked.version_id:
            if ResourceType.PIPELINE_VERSION in given:
                raise InvalidInput("A run refers to at most one resource of each type.")
            references.append(
                Reference(
                    type=ResourceType.PIPELINE_VERSION,
                    id=version.version_id,
                    name=version.version_name,
                    relationship=Relationship.CREATOR,
                )
            )
        if not asked.experiment_id:
            if ResourceType.EXPERIMENT in given:
                raise InvalidInput("A run refers to at most one resource of each type.")
            references.append(
                Reference(
                    type=ResourceType.EXPERIMENT,
                    id=experiment.id,
                    name=experiment.name,
                    relationship=Relationship.OWNER,
                )
            )
        return tuple(references)

    async def _reference(self, asked: AskedReference, version: Source | None, experiment: ExperimentState) -> Reference:
        if asked.type not in ResourceType.__members__:
            raise InvalidInput(f"Unsupported resource type: {asked.type}")
        if asked.relationship not in Relationship.__members__:
            raise InvalidInput(f"Unsupported resource relationship: {asked.relationship}")
        kind = ResourceType(asked.type)
        with layer("Failed to find the referred resource"):
            name = await self._name_of(kind, asked.id, version, experiment)
        return Reference(type=kind, id=asked.id, name=name, relationship=Relationship(asked.relationship))

    async def _name_of(
        self, kind: ResourceType, resource_id: str, version: Source | None, experiment: ExperimentState
    ) -> str:
        match kind:
            case ResourceType.EXPERIMENT:
                if resource_id == experiment.id:
                    return experiment.name
                return (await self._named_experiment(resource_id)).name
            case ResourceType.PIPELINE_VERSION:
                if version is not None and resource_id == version.version_id:
                    return version.version_name
                return (await self._version(resource_id)).version_name
            case ResourceType.NAMESPACE:
                return resource_id
            case ResourceType.JOB:
                request = ById(id=resource_id)
                return (await self._bus.ask(GET_JOB, request, within_seconds=self._installation.ask_seconds)).name

    async def _insert(
        self, draft: Run, names: tuple[WorkflowName, ...], detail: Callable[[Run], Detail], keep: Keep[Detail]
    ) -> Detail:
        for name in names:
            run = msgspec.structs.replace(draft, workflow_name=name)
            try:
                created = await self._inserted(run, detail, keep)
            except ConstraintViolated as violation:
                if violation.constraint != store.WORKFLOW_NAME_KEY:
                    raise
                continue
            await self._outbox.wake()
            return created
        raise domain.names_exhausted(names[0])

    async def _inserted(self, run: Run, detail: Callable[[Run], Detail], keep: Keep[Detail]) -> Detail:
        fact = self._outbox.entry(events.RUN_CREATED, to_state(run))
        if keep is keep_nothing:
            return detail(_created(run, await store.insert(self._database, run, fact)))
        async with self._database.transaction() as tx:
            created = detail(_created(run, await store.insert(tx, run, fact)))
            await keep(tx, created)
        return created

    async def _adopted(self, run: Run) -> Run:
        created = self._outbox.entry(events.RUN_CREATED, to_state(run))
        try:
            async with self._database.transaction() as tx:
                if await store.was_deleted(tx, run.id):
                    raise domain.unknown(run.id)
                await store.insert(tx, run, created, created_at=run.created_at)
                tx.after_commit(self._outbox.wake)
        except ConstraintViolated as violation:
            if violation.constraint == store.ID_KEY:
                return await self._get(run.id)  # Another report of it was faster.
            if violation.constraint == store.WORKFLOW_NAME_KEY:
                raise domain.workflow_name_taken(run.workflow_name) from violation
            raise
        return run

    async def _name_of_experiment(self, experiment_id: str) -> str:
        """Nothing where it is gone: nobody but the job remembers its name."""
        try:
            return (await self._named_experiment(experiment_id)).name
        except NotFound:
            return ""

    async def _reopen_nodes(self, tx: Transaction, run: Run) -> None:
        nodes = await store.list_nodes(tx, run.id)
        try:
            # In a thread: a run may have thousands of nodes, and other requests go on meanwhile.
            rewritten = await asyncio.to_thread(rewrite, run.workflow_name, nodes)
        except StillOpen as open_node:
            raise domain.not_retryable_yet(open_node.name, open_node.phase) from open_node
        except OfAnotherKind as error:
            raise domain.not_retryable_here(str(error)) from error
        await store.upsert_nodes(tx, run.id, rewritten.changed)
        await store.delete_nodes(tx, run.id, rewritten.removed)

    async def _check_slot(self, trigger: TriggerState, run: Run) -> None:
        """What may have become wrong since the job was created."""
        domain.check_workflow_name(run.workflow_name)
        text = await self._manifests.find(run.manifest_digest)
        if text is None:
            raise domain.manifest_gone(trigger.name)
        try:
            reading = await self._manifests.read(text, run.manifest_digest)
        except (compose.Malformed, compose.OfAnotherKind, OverLimit) as error:
            raise domain.not_our_kind(str(error)) from error
        self._check_parameters(reading.prepared, run.parameters)
        if reading.refusal:
            raise domain.invalid_workflow(run.name, reading.refusal)
        await self._manifests.keep(text, run.manifest_digest)

    # Reading.

    async def _get(self, run_id: str) -> Run:
        run = await store.find(self._database, run_id)
        if run is None:
            raise domain.unknown(run_id)
        return run

    async def _prepared(self, run: Run) -> compose.Prepared:
        try:
            return await self._manifests.prepared(run.manifest_digest)
        except OverLimit as limit:  # It could be read when the run was created.
            raise Unavailable("The run's workflow cannot be read at this moment.", cause=str(limit)) from limit

    async def _views(self, runs: tuple[Run, ...]) -> tuple[View, ...]:
        if not runs:
            return ()
        texts = await self._manifests.texts(run.manifest_digest for run in runs)

        async def manifest(run: Run) -> str:
            text = texts.get(run.manifest_digest, "")
            if not run.is_fired or not text:
                return text
            return compose.spec_only(await self._prepared(run), run).decode()

        metrics: dict[str, list[Metric]] = {}
        for metric in await store.list_metrics(self._database, [run.id for run in runs]):
            metrics.setdefault(metric.run_id, []).append(metric)
        return tuple(
            [View(run=run, manifest=await manifest(run), metrics=tuple(metrics.get(run.id, ()))) for run in runs]
        )

    async def _artifact_key(self, run_id: str, node_id: str, artifact_name: str) -> str:
        """Among the node's artifacts of that name and with a key, the last one counts."""
        run = await self._get(run_id)
        body = await store.find_node(self._database, run_id, node_id)
        node: dict[str, Any] = {} if body is None else msgspec.json.decode(body)
        keys = [
            artifact["s3"]["key"]
            for artifact in (node.get("outputs") or {}).get("artifacts") or ()
            if artifact.get("name") == artifact_name and (artifact.get("s3") or {}).get("key")
        ]
        if not keys:
            raise domain.artifact_unknown(run_id, node_id, artifact_name)
        if artifact_name == domain.LOG_ARTIFACT and not run.status.is_final:
            await self._until_stored(str(keys[-1]))
        return str(keys[-1])

    async def _until_stored(self, key: str) -> None:
        """A run goes on while the log of a step is on its way to where its record says; who reads it waits, bounded."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOG_STORED_WITHIN_SECONDS):
                while not await self._blobs.exists(key):  # noqa: ASYNC110 - the store signals nobody
                    await asyncio.sleep(_LOG_STORED_PAUSE_SECONDS)

    async def _object(self, key: str) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._blobs.stream(key):
                yield chunk
        except NoSuchObject:
            return

    async def _move(self, run_id: str, state: StorageState) -> None:
        """Idempotent. Nothing is stopped or started by it."""
        kind = events.RUN_ARCHIVED if state is StorageState.ARCHIVED else events.RUN_UNARCHIVED
        async with self._database.transaction() as tx:
            run = await store.set_storage_state(tx, run_id, state)
            if run is not None:
                await self._outbox.add(tx, kind, to_state(run))
            elif not await store.exists(tx, run_id):
                raise domain.unknown(run_id)


def _to_source(answer: VersionAnswer) -> Source:
    return Source(
        version_id=answer.version_id,
        version_name=answer.version_name,
        manifest_digest=answer.manifest_digest,
        pipeline_name=answer.pipeline_name,
    )


def _from_copy(version: PipelineVersionState) -> Source:
    return Source(version_id=version.id, version_name=version.name, manifest_digest=version.manifest_digest)


def _created(run: Run, created_at: datetime) -> Run:
    return msgspec.structs.replace(run, created_at=created_at)


def _fired(trigger: TriggerState) -> Run:
    """API specification, section 12.2; its time is provisional."""
    return Run(
        id=RunId(trigger.run_id),
        name=trigger.workflow_name,
        experiment_id=trigger.experiment_id,
        namespace=trigger.namespace,
        references=(
            Reference(
                type=ResourceType.EXPERIMENT,
                id=trigger.experiment_id,
                name=trigger.experiment_name,
                relationship=Relationship.OWNER,
            ),
            Reference(type=ResourceType.JOB, id=trigger.id, name=trigger.name, relationship=Relationship.CREATOR),
        ),
        job_id=trigger.id,
        service_account=trigger.service_account,
        parameters=tuple(Parameter(name=each.name, value=each.value) for each in trigger.parameters),
        manifest_digest=trigger.manifest_digest,
        engine=EngineName(trigger.engine),
        workflow_name=WorkflowName(trigger.workflow_name),
        created_by=trigger.created_by,
        traceparent=current_traceparent(),
        created_at=clock.now(),
        scheduled_at=trigger.slot,
        trigger_depth=trigger.trigger_depth,
    )


def _with_references(draft: Run, references: tuple[Reference, ...]) -> Run:
    """In storage order, and in the columns that lists filter by."""
    ids = {reference.type: reference.id for reference in references}
    return msgspec.structs.replace(
        draft,
        references=tuple(sorted(references, key=lambda reference: reference.type.value)),
        pipeline_version_id=ids.get(ResourceType.PIPELINE_VERSION),
        job_id=ids.get(ResourceType.JOB),
    )


def to_state(run: Run, *, is_deleted: bool = False) -> states.RunState:
    return states.RunState(
        id=run.id,
        version=run.version,
        name=run.name,
        status=states.RunStatus(run.status),
        # Why a run waits is no error.
        error="" if run.status is domain.Status.PENDING else run.error,
        storage_state=states.StorageState(run.storage_state),
        experiment_id=states.ExperimentId(run.experiment_id),
        pipeline_id=states.PipelineId(run.pipeline_id) if run.pipeline_id else None,
        pipeline_version_id=states.PipelineVersionId(run.pipeline_version_id) if run.pipeline_version_id else None,
        job_id=states.JobId(run.job_id) if run.job_id else None,
        workflow_name=run.workflow_name,
        attempt=run.attempt,
        created_at=run.created_at,
        created_by=run.created_by,
        scheduled_at=run.scheduled_at,
        trigger_depth=run.trigger_depth,
        started_at=run.started_at,
        finished_at=run.finished_at,
        is_deleted=is_deleted,
    )
