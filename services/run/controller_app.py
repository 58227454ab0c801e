"""The composition root of the run service's second process, the controller. Nothing imports it.

Its HTTP is for those who watch it, and for nobody else; the relay of the schema's facts it leaves to the service's
first process. Of the engines it imports the one that it drives: the other's drivers are no part of the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared.blobs import Blobs
from shared.contracts.events import NODE_STARTED
from shared.leases import Lease
from shared.outbox import Outbox
from shared.plumbing import Plumbing
from shared.readers import Readers
from shared.shards import Holding, Shards, Whole
from shared.web import Service
from shared.web import create_app as create_service

from . import reading, store
from .compose import Rules
from .controller import SHARDS_PING, Controller
from .domain import EngineName
from .engine.shards import SHARDS
from .manifests import Manifests
from .records import Records
from .settings import ControllerSettings
from .step_cache import StepCache
from .step_metrics import StepMetrics

if TYPE_CHECKING:
    from .engine.argo import ArgoEngine
    from .engine.embedded.driver import EmbeddedEngine

_MIGRATIONS = Path(__file__).parent / "migrations"


def create_app(settings: ControllerSettings) -> Service:
    """It controls for as long as it serves; the steps are left to the step runner."""
    plumbing = Plumbing(settings, owner="run", process="run-controller")
    blobs = Blobs(
        settings.object_store_url,
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
        bucket=settings.object_store_bucket,
    )
    rules = Rules(default_service_account=settings.default_service_account, cache_enabled=settings.cache_enabled)
    readers = Readers(reading.WORK, settings.manifest_limits)
    manifests = Manifests(
        plumbing.database,
        blobs,
        rules,
        readers,
        settings.runner,
        cache_bytes=settings.manifest_cache_bytes,
        large_bytes=settings.large_manifest_bytes,
    )
    holding: Holding
    argo: ArgoEngine | None = None
    if settings.engine is EngineName.ARGO:
        holding = Shards(plumbing.database, settings.engine.value, SHARDS, tell=lambda: plumbing.bus.ping(SHARDS_PING))
        argo = _argo(settings, holding)
    else:
        lease = Lease(plumbing.database, "run-controller")
        holding = Whole(lease, SHARDS, confirm_seconds=settings.poll_seconds)
    engine = argo or _embedded(settings, plumbing, blobs)
    controller = Controller(
        Records(
            plumbing.database,
            plumbing.outbox,
            manifests,
            nodes=Outbox(NODE_STARTED.owner, plumbing.bus) if settings.node_facts else None,
            engine=EngineName.EMBEDDED if argo is None else EngineName.ARGO,
        ),
        engine,
        plumbing.bus,
        StepMetrics(blobs, plumbing.bus, plumbing.database),
        holding,
        poll_seconds=settings.poll_seconds,
        compare_seconds=settings.compare_seconds,
        metrics_wait_seconds=settings.metrics_wait_seconds,
        tasks=plumbing.tasks,
    )

    async def start() -> None:
        await plumbing.open(migrations=_MIGRATIONS)
        await blobs.ensure_bucket()
        if argo is not None:
            argo.installation = await store.find_installation(plumbing.database)
        plumbing.tasks.spawn("controller", lambda: controller.run(engine.run))

    async def stop() -> None:
        await plumbing.close()
        if argo is not None:
            await argo.close()
        await readers.close()
        blobs.close()

    return create_service(
        service="run-controller",
        routes=(),
        on_startup=[start],
        on_shutdown=[stop],
        # Who holds nothing is as ready as who does.
        ready=(*plumbing.checks, engine.check),
        tasks=plumbing.tasks,
    )


def _argo(settings: ControllerSettings, holding: Holding) -> ArgoEngine:
    from .engine.argo import ArgoEngine
    from .engine.argo.cluster import Cluster
    from .engine.argo.submitting import Submitting

    return ArgoEngine(
        Cluster.from_settings(kubeconfig=settings.kubeconfig, context=settings.kube_context),
        namespaces=() if settings.argo_cluster_wide else (settings.namespace,),
        limits=Submitting(
            rate_per_second=settings.submissions_per_second,
            burst=settings.submissions_burst,
            in_flight=settings.most_runs,
        ),
        ttl_seconds=settings.workflow_ttl_seconds,
        most_workflow_bytes=settings.most_workflow_bytes,
        holds=holding.holds,
    )


def _embedded(settings: ControllerSettings, plumbing: Plumbing, blobs: Blobs) -> EmbeddedEngine:
    from .engine.embedded.driver import EmbeddedEngine
    from .engine.embedded.objects import Objects
    from .engine.embedded.reconcile import Limits
    from .engine.embedded.runner.client import RunnerClient

    data_dir = Path(settings.engine_data_dir)
    return EmbeddedEngine(
        RunnerClient(settings.step_runner_socket),
        blobs,
        steps_dir=Path(settings.steps_dir),
        data_dir=data_dir,
        most_steps=settings.most_steps or None,
        most_runs=settings.most_runs or None,
        machine=settings.runner.machine,
        limits=Limits(depth=settings.most_levels, nodes=settings.most_nodes),
        objects=Objects(
            data_dir,
            secrets_dir=_directory(settings.secrets_dir),
            config_maps_dir=_directory(settings.config_maps_dir),
        ),
        cache=StepCache(plumbing.database) if settings.step_cache else None,
    )


def _directory(setting: str) -> Path | None:
    return Path(setting) if setting else None
