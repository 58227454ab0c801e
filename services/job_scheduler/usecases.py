"""The verbs of the jobs API. Knows rules and rows; knows neither HTTP nor how a run is made.

Everything a job will need is resolved when it is created: what its runs do, where they belong, and whether the
manifest can run at all. Everything remote is fetched before the one transaction opens.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec

from shared import clock, replica
from shared.bus import Bus
from shared.contracts import events, states
from shared.contracts.questions import (
    CHECK_MANIFEST,
    GET_DEFAULT_EXPERIMENT,
    GET_DEFAULT_VERSION,
    GET_EXPERIMENT,
    GET_VERSION,
    ById,
    ManifestAnswer,
    ManifestRequest,
    Nothing,
    VersionAnswer,
    VersionRequest,
)
from shared.contracts.states import ExperimentState, JobState
from shared.database import ConstraintViolated, Database, Transaction
from shared.errors import InvalidInput, layer
from shared.idempotency import Keep, keep_nothing
from shared.identity import caller_subject
from shared.listing import ListRequest, Page
from shared.outbox import Outbox
from shared.subscriptions import until_published_and_applied

from . import cron, domain, firing, schedule, store
from .causes import Link, find_loop, wanted_by
from .domain import (
    AskedReference,
    CronTrigger,
    EngineName,
    Job,
    JobId,
    NewJob,
    ObjectName,
    OneOff,
    Parameter,
    PeriodicTrigger,
    Reference,
    Relationship,
    Report,
    ResourceType,
    RunTrigger,
    Status,
    Trigger,
    View,
)
from .manifests import Manifests

EXPERIMENT = "experiment"
"""The kind of the replicas that tell which experiments there are."""

FOLLOWERS = ("run",)
"""Who shows to a client that a job is gone."""


_TICKERS = "kfp.ping.slots"


async def wake_tickers(bus: Bus) -> None:
    """Something may be due earlier than they think."""
    await bus.ping(_TICKERS)


async def on_wake(bus: Bus, callback: Callable[[], None]) -> None:
    await bus.on_ping(_TICKERS, callback)


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for every job here."""

    namespace: str
    engine: EngineName
    time_zone: str
    shortest_interval_seconds: int
    ask_seconds: float
    check_seconds: float
    applied_wait_seconds: float


class Jobs:
    def __init__(
        self, database: Database, outbox: Outbox, bus: Bus, manifests: Manifests, installation: Installation
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._manifests = manifests
        self._installation = installation

    async def create(self, asked: NewJob, keep: Keep[View] = keep_nothing) -> View:
        """API specification, section 10.2, in the order of its checks."""
        with layer("Validate create job request failed."):
            domain.check_name(asked.name)
            domain.check_lengths(asked)
            version = await self._check_source(asked)
            domain.check_parameters_size(asked.parameters)
            domain.check_max_concurrency(asked.max_concurrency)
            check_trigger(asked.trigger, self._installation.shortest_interval_seconds)
            check_handover(asked.trigger, asked.parameters)
            if isinstance(asked.trigger, RunTrigger) and self._installation.engine is EngineName.EXTERNAL:
                raise domain.triggered_here_alone()
            if asked.time_zone:
                check_zone(asked.time_zone)
            domain.check_missed_window(asked.missed_window_seconds)
            domain.check_pause_on_failures(asked.pause_on_failures)
        with layer("Create job failed"):
            text, digest = await self._manifest(asked, version)
            checked = await self.check_parameters(asked.parameters, digest)
            experiment = await self._experiment(asked.experiment_id)
            with layer("Unable to convert resource references."):
                references = await self._references(asked, version, experiment)
            if checked.refusal:
                raise domain.invalid_workflow(asked.name, checked.refusal)
            await self._manifests.keep(text, digest)
            draft = self._draft(asked, version, digest, checked, experiment, references)
            await self.check_loop(draft)

            def view(job: Job) -> View:
                # Only later does anybody look at its schedule. The reply keeps the order of the request; what is read
                # later stands in storage order.
                shown = msgspec.structs.replace(job, references=references)
                return View(job=shown, status=Status.NO_STATUS, manifest=text)

            return await self._insert(draft, view, keep)

    async def get(self, job_id: str) -> View:
        (view,) = await self._views((await self._get(job_id),))
        return view

    async def get_state(self, job_id: str) -> JobState:
        return to_state(await self._get(job_id))

    async def list(self, asked: ListRequest) -> Page[View]:
        page = await store.LISTING.page(self._database, store.LISTING.query(asked), store.to_job)
        return Page(rows=await self._views(page.rows), total_size=page.total_size, next_page_token=page.next_page_token)

    async def enable(self, job_id: str) -> None:
        await self._set_enabled(job_id, is_enabled=True)

    async def disable(self, job_id: str) -> None:
        """Runs that are alive go on."""
        await self._set_enabled(job_id, is_enabled=False)

    async def disable_of_experiment(self, tx: Transaction, experiment_id: str) -> None:
        """Its jobs rest when an experiment is archived (API specification, section 7, E5)."""
        for job in await store.disable_of_experiment(tx, experiment_id):
            await self._outbox.add(tx, events.JOB_DISABLED, to_state(job))

    async def follow(self, report: Report) -> None:
        """What the scheduler of an external engine says of a job is so (section 12.4); of other jobs it is refused."""
        check_trigger(report.trigger, 0)
        try:
            async with self._database.transaction() as tx:
                before = await store.lock(tx, report.job_id)
                if before is None:
                    raise domain.no_job_reported(report)
                if before.engine is not EngineName.EXTERNAL:
                    raise domain.fired_here(before.id)
                job = await store.follow(tx, report)
                if job.is_enabled is not before.is_enabled:
                    kind = events.JOB_ENABLED if job.is_enabled else events.JOB_DISABLED
                    await self._outbox.add(tx, kind, to_state(job))
        except ConstraintViolated as violation:
            if violation.constraint != store.OBJECT_NAME_KEY:
                raise
            raise domain.object_name_taken(report.object_name) from violation

    async def delete(self, job_id: str) -> None:
        """Its runs stay and forget it. Answers after they have, or after a bounded wait."""
        async with self._database.transaction() as tx:
            job = await store.delete(tx, job_id)
            if job is None:
                raise domain.unknown(job_id)
            last = msgspec.structs.replace(job, version=job.version + 1)
            fact_id = await self._outbox.add(tx, events.JOB_DELETED, to_state(last, is_deleted=True))
        await until_published_and_applied(
            self._bus,
            self._database,
            fact_id,
            FOLLOWERS,
            self._outbox.owner,
            within_seconds=self._installation.applied_wait_seconds,
        )

    # Creation.

    async def _check_source(self, asked: NewJob) -> VersionAnswer | None:
        """Section 9.3. The version to run, or None where the manifest came along."""
        domain.check_source(asked)
        if asked.version_id:
            with layer("Get pipelineVersionId failed."):
                return await self._version(asked.version_id, asked.pipeline_id)
        if asked.pipeline_id:
            with layer("Get pipelineId failed."):
                return await self._bus.ask(
                    GET_DEFAULT_VERSION, ById(id=asked.pipeline_id), within_seconds=self._installation.ask_seconds
                )
        domain.check_is_workflow(asked.manifest)
        return None

    async def _version(self, version_id: str, pipeline_id: str = "") -> VersionAnswer:
        request = VersionRequest(
            version_id=states.PipelineVersionId(version_id),
            pipeline_id=states.PipelineId(pipeline_id) if pipeline_id else None,
        )
        return await self._bus.ask(GET_VERSION, request, within_seconds=self._installation.ask_seconds)

    async def _manifest(self, asked: NewJob, version: VersionAnswer | None) -> tuple[str, str]:
        """Text and digest. What came along is published even where it is refused later: it is only a text."""
        if version is None:
            return asked.manifest, await self._manifests.publish(asked.manifest)
        with layer("Failed to fetch workflow spec."):
            text = await self._manifests.find(version.manifest_digest)
            if text is None:
                raise domain.manifest_gone(asked.name)
        return text, version.manifest_digest

    async def check_parameters(self, parameters: tuple[Parameter, ...], digest: str) -> ManifestAnswer:
        """What the run service says about the manifest; whether it can run is told by a later check."""
        request = ManifestRequest(manifest_digest=digest, parameters=tuple(each.name for each in parameters))
        checked = await self._bus.ask(CHECK_MANIFEST, request, within_seconds=self._installation.check_seconds)
        if checked.malformation:
            raise domain.not_our_kind(checked.malformation)
        if checked.unrecognized is not None:
            raise domain.unrecognized_parameter(checked.unrecognized).inside("Failed to verify parameters.")
        return checked

    async def check_loop(self, job: Job) -> None:
        """Raises InvalidInput where the job's own runs would trigger it, directly or by way of other jobs."""
        if not isinstance(job.trigger, RunTrigger):
            return
        link = Link(
            id=job.id,
            name=job.name,
            pipeline_id=job.version_pipeline_id,
            experiment_id=job.experiment_id,
            trigger=job.trigger,
        )
        if loop := find_loop(link, await store.list_links(self._database)):
            raise domain.triggers_itself(loop)

    async def _experiment(self, experiment_id: str) -> ExperimentState:
        with layer("Failed to get experiment."):
            if experiment_id:
                return await self._named_experiment(experiment_id)
            return await self._bus.ask(GET_DEFAULT_EXPERIMENT, Nothing(), within_seconds=self._installation.ask_seconds)

    async def _named_experiment(self, experiment_id: str) -> ExperimentState:
        """Our copy may say yes; only the owner may say no."""
        known = await replica.find(self._database, EXPERIMENT, experiment_id, ExperimentState)
        return known or await self._bus.ask(
            GET_EXPERIMENT, ById(id=experiment_id), within_seconds=self._installation.ask_seconds
        )

    async def _references(
        self, asked: NewJob, version: VersionAnswer | None, experiment: ExperimentState
    ) -> tuple[Reference, ...]:
        """Section 6: in the request's order, then what the server adds."""
        references = [await self._reference(each, version, experiment) for each in asked.references]
        if version is not None and not asked.version_id:
            references.append(
                Reference(
                    type=ResourceType.PIPELINE_VERSION,
                    id=version.version_id,
                    name=version.version_name,
                    relationship=Relationship.CREATOR,
                )
            )
        if not asked.experiment_id:
            references.append(
                Reference(
                    type=ResourceType.EXPERIMENT,
                    id=experiment.id,
                    name=experiment.name,
                    relationship=Relationship.OWNER,
                )
            )
        domain.check_references(tuple(references))
        return tuple(references)

    async def _reference(
        self, asked: AskedReference, version: VersionAnswer | None, experiment: ExperimentState
    ) -> Reference:
        if asked.type not in ResourceType.__members__:
            raise InvalidInput(f"Unsupported resource type: {asked.type}")
        if asked.relationship not in Relationship.__members__:
            raise InvalidInput(f"Unsupported resource relationship: {asked.relationship}")
        kind = ResourceType(asked.type)
        with layer("Failed to find the referred resource"):
            name = await self._name_of(kind, asked.id, version, experiment)
        return Reference(type=kind, id=asked.id, name=name, relationship=Relationship(asked.relationship))

    async def _name_of(
        self, kind: ResourceType, resource_id: str, version: VersionAnswer | None, experiment: ExperimentState
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
                return (await self._get(resource_id)).name

    def _draft(
        self,
        asked: NewJob,
        version: VersionAnswer | None,
        digest: str,
        checked: ManifestAnswer,
        experiment: ExperimentState,
        references: tuple[Reference, ...],
    ) -> Job:
        """The job, but for what the database decides: its times and its object's name are provisional."""
        now = clock.now()
        ids = {reference.type: reference.id for reference in references}
        return Job(
            id=JobId(str(uuid.uuid4())),
            object_name=ObjectName(asked.name),
            name=asked.name,
            description=asked.description,
            is_enabled=asked.is_enabled,
            no_catchup=asked.no_catchup,
            max_concurrency=asked.max_concurrency,
            trigger=asked.trigger,
            time_zone=asked.time_zone or self._installation.time_zone,
            missed=asked.missed,
            missed_window_seconds=asked.missed_window_seconds or None,
            pause_on_failures=asked.pause_on_failures,
            overlap=asked.overlap,
            experiment_id=experiment.id,
            namespace=self._installation.namespace,
            references=tuple(sorted(references, key=lambda reference: reference.type.value)),
            pipeline_id=asked.pipeline_id or None,
            pipeline_name=version.pipeline_name if version is not None and asked.pipeline_id else None,
            pipeline_version_id=ids.get(ResourceType.PIPELINE_VERSION),
            version_pipeline_id=version.pipeline_id if version is not None else None,
            referred_job_id=ids.get(ResourceType.JOB),
            service_account=asked.service_account or checked.service_account,
            parameters=asked.parameters,
            manifest_digest=digest,
            engine=self._installation.engine,
            created_by=caller_subject(),
            created_at=now,
            updated_at=now,
        )

    async def _insert(self, draft: Job, view: Callable[[Job], View], keep: Keep[View]) -> View:
        for name in domain.object_names(draft.name):
            try:
                async with self._database.transaction() as tx:
                    job = await store.insert(tx, msgspec.structs.replace(draft, object_name=name))
                    if job.engine.is_told:
                        await store.set_next_slot(tx, job.id, firing.first_slot(job))
                        tx.after_commit(self._wake_tickers)
                    await self._outbox.add(tx, events.JOB_CREATED, to_state(job))
                    created = view(job)
                    await keep(tx, created)
            except ConstraintViolated as violation:
                if violation.constraint != store.OBJECT_NAME_KEY:
                    raise
                continue
            return created
        raise domain.names_exhausted(draft.name)

    # Reading and changing.

    async def _get(self, job_id: str) -> Job:
        job = await store.find(self._database, job_id)
        if job is None:
            raise domain.unknown(job_id)
        return job

    async def _views(self, jobs: tuple[Job, ...]) -> tuple[View, ...]:
        texts = await self._manifests.texts(job.manifest_digest for job in jobs)
        return tuple(View(job=job, status=job.status, manifest=texts.get(job.manifest_digest, "")) for job in jobs)

    async def _set_enabled(self, job_id: str, *, is_enabled: bool) -> None:
        """Idempotent: what is so already keeps its `updated_at` and makes no fact."""
        kind = events.JOB_ENABLED if is_enabled else events.JOB_DISABLED
        async with self._database.transaction() as tx:
            job = await store.set_enabled(tx, job_id, is_enabled=is_enabled)
            if job is not None:
                await self._outbox.add(tx, kind, to_state(job))
                tx.after_commit(self._wake_tickers)
            elif not await store.exists(tx, job_id):
                raise domain.unknown(job_id)

    async def _wake_tickers(self) -> None:
        await wake_tickers(self._bus)


def check_trigger(trigger: Trigger, shortest_interval_seconds: int) -> None:
    match trigger:
        case CronTrigger(cron=text):
            try:
                cron.parse(text)
            except cron.CronError as error:
                raise domain.unsupported_cron(error.reason) from error
        case PeriodicTrigger(interval_seconds=seconds):
            domain.check_interval(seconds)
        case RunTrigger():
            domain.check_run_trigger(trigger)
        case OneOff():
            pass
    if shortest_interval_seconds > 1:
        domain.check_interval_floor(schedule.shortest_interval_seconds(trigger), shortest_interval_seconds)


def check_handover(trigger: Trigger, parameters: tuple[Parameter, ...]) -> None:
    """What the job wants of runs that trigger it is something that runs have."""
    if isinstance(trigger, RunTrigger):
        wanted_by(parameters)


def check_zone(name: str) -> None:
    try:
        cron.find_zone(name)
    except cron.UnknownZone as error:
        raise domain.unknown_zone(name) from error


def to_state(job: Job, *, is_deleted: bool = False) -> JobState:
    return JobState(
        id=job.id,
        version=job.version,
        name=job.name,
        is_enabled=job.is_enabled,
        experiment_id=states.ExperimentId(job.experiment_id),
        pipeline_id=states.PipelineId(job.pipeline_id) if job.pipeline_id else None,
        pipeline_version_id=states.PipelineVersionId(job.pipeline_version_id) if job.pipeline_version_id else None,
        created_at=job.created_at,
        created_by=job.created_by,
        updated_at=job.updated_at,
        is_deleted=is_deleted,
    )
