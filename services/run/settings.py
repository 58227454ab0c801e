"""What the run service is told by its environment."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec

from shared.bearer import check_sha256
from shared.readers import Limits
from shared.settings import ServiceSettings, variable_of

from .domain import EngineName
from .engine.embedded.machine import Entrypoints, Machine
from .reading import MOST_WORKFLOW_BYTES, Runner


class Settings(ServiceSettings, frozen=True, kw_only=True):
    object_store_url: str
    """`http://host:port`, or https: where manifests, artifacts and logs are kept. Any S3 server serves."""
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str = "mlpipeline"
    default_service_account: str = "pipeline-runner"
    """The account of runs that name none."""
    namespace: str = "kubeflow"
    """Where workflows run."""
    engine: EngineName = EngineName.EMBEDDED
    """What drives the runs that are created from now on. `argo`: Argo Workflows on a Kubernetes cluster. `external`:
    they wait until somebody else runs their workflows and an agent reports how that goes."""
    runtime: Literal["auto", "process", "docker", "podman"] = "auto"
    """What the embedded engine's steps run in, as its step runner is told. Only where it is said to be containers may a
    step leave its command to its image."""
    image_entrypoints: Entrypoints = msgspec.field(default_factory=dict)
    """What a step whose manifest gives no command runs instead of its image, where steps are processes: in JSON,
    `{"docker/whalesay": ["cowsay"]}`. An image without a tag stands for each of its tags."""
    host_paths: tuple[str, ...] = ()
    """Directories of this machine that pipelines may mount as hostPath volumes, with all that is in them, to read and
    to write. None, unless named: whoever may create a run gets at them."""
    agent_token_sha256: str = ""
    """The SHA-256 of that agent's token. Empty: nobody reports."""
    cache_enabled: bool = True
    """What the template label `pipelines.kubeflow.org/cache_enabled` says. An engine has its own switch beside:
    the embedded one's is the controller's `step_cache`."""
    node_facts: bool = True
    """Whether what becomes of each step is told, beside what becomes of runs."""
    node_facts_kept_days: float = 1
    """As `facts_kept_days`, of these: there are many, and of use while a run goes on."""
    node_facts_gather_seconds: float = 0.25
    """How long one of them waits to be published together with others."""
    ask_seconds: float = 2.0
    """How long creation waits for another service's answer before it is a 503."""
    fold_counts_seconds: float = 1.0
    """How often the kept counts are folded; what waits is counted row by row until then."""
    manifest_cache_bytes: int = 32 * 1024 * 1024
    """The most text of distinct manifests that a process keeps at hand."""
    large_manifest_bytes: int = 128 * 1024
    """From this size on a manifest is read in a process of its own.

    One of this size takes the event loop two milliseconds, and a thread beside it thirty; both grow with it. Below it
    the process, which takes a hundred to start, would be what its creator waits for.
    """
    most_workflow_bytes: Annotated[int, msgspec.Meta(ge=65536)] = MOST_WORKFLOW_BYTES
    """The largest workflow that the engine `argo` is given, in JSON; creation refuses larger ones. etcd takes a
    megabyte and a half, and Argo, which writes the state of a workflow into it, gives one up that is larger than a
    megabyte."""
    manifest_readers: int = 2
    """How many processes may read manifests at a time."""
    manifest_read_cpu_seconds: float = 60.0
    """The most processor time that reading one manifest may take; a real one of 32 MiB takes about ten."""
    manifest_read_seconds: float = 600.0
    """The longest that it may take on a machine that has other things to do, before it is a 503."""
    manifest_read_memory_bytes: int = 1024 * 1024 * 1024
    """The most address space of a process that reads manifests; the interpreter alone takes a tenth."""
    manifest_queue_seconds: float = 60.0
    """How long a manifest waits for a process to read it before it is a 503."""

    @property
    def manifest_limits(self) -> Limits:
        return Limits(
            processes=self.manifest_readers,
            queue_seconds=self.manifest_queue_seconds,
            cpu_seconds=self.manifest_read_cpu_seconds,
            seconds=self.manifest_read_seconds,
            memory_bytes=self.manifest_read_memory_bytes,
            settings="manifest_read",
        )

    @property
    def runner(self) -> Runner:
        # Under `auto` nobody knows here what steps will run in, and what is accepted must not depend on the machine.
        runs_images = self.runtime in ("docker", "podman")
        machine = Machine(runs_images=runs_images, entrypoints=self.image_entrypoints, host_paths=self.host_paths)
        return Runner(engine=self.engine, machine=machine, most_workflow_bytes=self.most_workflow_bytes)

    def __post_init__(self) -> None:
        check_sha256(self.agent_token_sha256)
        for path in self.host_paths:
            if not os.path.isabs(path) or os.path.normpath(path) != path:
                raise ValueError(f"{variable_of('host_paths')}: {path} is not the whole path of a directory")


def overlap(one: str, other: str) -> bool:
    """Whether one of two directories lies in the other, or is it."""
    paths = os.path.realpath(one), os.path.realpath(other)
    return os.path.commonpath(paths) in paths


class ControllerSettings(Settings, frozen=True, kw_only=True):
    """What the run controller is told beside: where the embedded engine's steps live, or where Argo Workflows is. It
    drives the runs of the engine `argo` where that is its engine, else those of the embedded one."""

    step_runner_socket: str = ""
    """Path of the step runner's unix socket. The embedded engine must be told this and the two directories."""
    steps_dir: str = ""
    """Where the step runner keeps attempts; on the same host."""
    engine_data_dir: str = ""
    """Where claims, secrets and what is brought to and from steps are kept."""
    kubeconfig: str = ""
    """The file that says where the cluster is and who we are there. Empty: a pod's service account where there is one,
    else what `KUBECONFIG` names, else `~/.kube/config`."""
    kube_context: str = ""
    """Which of its contexts; empty: the current one."""
    argo_cluster_wide: bool = False
    """Whether workflows are looked for in all namespaces of the cluster, for who has changed `namespace` while runs
    were open. It takes rights in all of them."""
    submissions_per_second: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    """How many workflows each controller gives to the cluster in a second; others wait as Pending."""
    submissions_burst: Annotated[int, msgspec.Meta(ge=1)] = 50
    """How many it may give at once after a time without any."""
    workflow_ttl_seconds: Annotated[float, msgspec.Meta(ge=0)] = 86_400.0
    """How long a workflow stays on the cluster after its end is on record. Logs of its pods go with it, unless Argo
    archives them."""
    most_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many steps run at once; others wait as Pending, experiments in turn.

    0: as many as there are processors, and at least four, because steps often only wait.
    """
    most_runs: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many runs go on at once; others wait as Pending, experiments in turn. 0: eight for each step that may run; on
    Argo, where it is the number of all controllers together (but each may have one), as many as there are.

    A run counts from its first step to its end, also while it only waits. Runs that have started, retried ones among
    them, never wait: there may be more of them than this.
    """
    most_levels: Annotated[int, msgspec.Meta(ge=1)] = 1000
    """How deep the templates of one run may be nested: one that calls itself without end stops there as an Error."""
    most_nodes: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    """How many nodes one run may have, before it stops in the same way. A node takes a row, and some of the memory."""
    step_cache: bool = False
    """Whether a step of the embedded engine takes over what the same step left before (same image, command, inputs,
    outputs) instead of running. Off: whoever runs a pipeline again on one machine mostly wants to see it run."""
    secrets_dir: str = ""
    """Secrets that pipelines may use without having made them: a directory for each, and in it a file for each key."""
    config_maps_dir: str = ""
    """The same for config maps."""
    poll_seconds: float = 1.0
    """How often the records are looked at without being told; what a lost ping costs at most."""
    compare_seconds: float = 10.0
    """How often records and engine are compared both ways."""
    metrics_wait_seconds: float = 5.0
    """How long after the end of a step its run's end waits for its metrics to be recorded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine is not EngineName.ARGO:
            for name in ("step_runner_socket", "steps_dir", "engine_data_dir"):
                if not getattr(self, name):
                    raise ValueError(f"{variable_of(name)} is not set")
        for name in ("secrets_dir", "config_maps_dir"):
            path = getattr(self, name)
            if path and not os.path.isdir(path):
                raise ValueError(f"{variable_of(name)}={path!r}: there is no such directory")
        for path in self.host_paths:
            if not os.path.isdir(path):
                raise ValueError(f"{variable_of('host_paths')}: there is no directory {path}")
            for kept in filter(None, (self.engine_data_dir, self.steps_dir, self.secrets_dir, self.config_maps_dir)):
                if overlap(path, kept):
                    raise ValueError(f"{variable_of('host_paths')}: {path} would show steps what is kept in {kept}")
