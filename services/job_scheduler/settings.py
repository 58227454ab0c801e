"""What the job scheduler is told by its environment."""

from __future__ import annotations

from shared.bearer import check_sha256
from shared.settings import ServiceSettings

from .cron import UnknownZone, find_zone
from .domain import EngineName


class Settings(ServiceSettings, frozen=True, kw_only=True):
    object_store_url: str
    """`http://host:port`, or https: where manifests are kept. Any S3 server serves."""
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str = "mlpipeline"
    namespace: str = "kubeflow"
    """Where the workflows of jobs run."""
    engine: EngineName = EngineName.EMBEDDED
    """What executes the runs of the jobs that are created from now on, as the run service is told. `external`: not this
    service fires them, but somebody else's scheduler, of which an agent reports."""
    cron_schedule_timezone: str = "UTC"
    """In which cron expressions of new jobs are read that name no zone themselves; the original's
    `CRON_SCHEDULE_TIMEZONE`. Jobs keep theirs when this changes."""
    shortest_interval_seconds: int = 1
    """How close the slots of a job may be to one another, for jobs that are created or changed from now on."""
    longest_chain: int = 10
    """How many runs may trigger one another in a row, the first one included: what ends a loop that no check of the
    jobs has seen."""
    agent_token_sha256: str = ""
    """The SHA-256 of that agent's token. Empty: nobody reports."""
    ask_seconds: float = 2.0
    """How long creation waits for another service's answer before it is a 503."""
    check_seconds: float = 120.0
    """How long creation waits for the check of its manifest: a large one takes the run service many seconds."""
    poll_seconds: float = 1.0
    """How often slots that have come are looked for without being told; what a killed replica's work waits at most."""
    check_slots_seconds: float = 60.0
    """How often the runs of open slots are asked about, and how old such a slot is at least: their ends are told, and
    this is for what was not."""
    applied_wait_seconds: float = 1.0
    """How long a deletion waits until runs have forgotten the job."""

    def __post_init__(self) -> None:
        check_sha256(self.agent_token_sha256)
        try:
            find_zone(self.cron_schedule_timezone)
        except UnknownZone as error:
            raise ValueError(f"cron_schedule_timezone: {error} is no time zone") from error
