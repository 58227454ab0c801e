"""What the run service is told by its environment."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec

from shared.bearer import check_sha256
from shared.settings import ServiceSettings, variable_of

from .domain import EngineName


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
    """What drives the runs that are created from now on. `external`: they wait until somebody else runs their workflows
    and an agent reports how that goes."""
    runtime: Literal["auto", "process", "docker", "podman"] = "auto"
    """What the embedded engine's steps run in, as its step runner is told. Only where it is said to be containers may a
    step leave its command to its image."""
    agent_token_sha256: str = ""
    """The SHA-256 of that agent's token. Empty: nobody reports."""
    cache_enabled: bool = True
    """What the template label `pipelines.kubeflow.org/cache_enabled` says."""
    ask_seconds: float = 2.0
    """How long creation waits for another service's answer before it is a 503."""
    fold_counts_seconds: float = 1.0
    """How often the kept counts are folded; what waits is counted row by row until then."""
    manifest_cache_bytes: int = 32 * 1024 * 1024
    """The most text of distinct manifests that a process keeps at hand."""

    def __post_init__(self) -> None:
        check_sha256(self.agent_token_sha256)


class ControllerSettings(Settings, frozen=True, kw_only=True):
    """What the run controller is told beside: where the embedded engine's steps live."""

    step_runner_socket: str
    """Path of the step runner's unix socket."""
    steps_dir: str
    """Where the step runner keeps attempts; on the same host."""
    engine_data_dir: str
    """Where claims, secrets and what is brought to and from steps are kept."""
    most_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many steps run at once; others wait as Pending, experiments in turn.

    0: as many as there are processors, and at least four, because steps often only wait.
    """
    most_runs: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many runs go on at once; others wait as Pending, experiments in turn. 0: eight for each step that may run.

    A run counts from its first step to its end, also while it only waits. Runs that have started, retried ones among
    them, never wait: there may be more of them than this.
    """
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
        for name in ("secrets_dir", "config_maps_dir"):
            path = getattr(self, name)
            if path and not os.path.isdir(path):
                raise ValueError(f"{variable_of(name)}={path!r}: there is no such directory")
