"""What the pipeline registry is told by its environment."""

from __future__ import annotations

from shared.readers import Limits
from shared.settings import ReachSettings

from .domain import LARGEST_PACKAGE_BYTES


class Settings(ReachSettings, frozen=True, kw_only=True):
    object_store_url: str
    """`http://host:port`, or https: where packages and manifests are kept. Any S3 server serves."""
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str = "mlpipeline"
    auto_update_pipeline_default_version: bool = True
    """Whether a new version becomes its pipeline's default."""
    largest_package_bytes: int = LARGEST_PACKAGE_BYTES
    """The largest package that is accepted, and the largest pipeline in one. Much larger ones need
    `package_read_memory_bytes`, too."""
    package_readers: int = 2
    """How many processes may read packages at a time."""
    package_read_cpu_seconds: float = 60.0
    """The most processor time that reading one package may take; a real one of the largest size takes about ten."""
    package_read_seconds: float = 600.0
    """The longest that it may take on a machine that has other things to do, before it is a 503."""
    package_read_memory_bytes: int = 1024 * 1024 * 1024
    """The most address space of a process that reads packages; the interpreter alone takes a tenth."""
    package_queue_seconds: float = 60.0
    """How long an upload waits for a process to read it before it is a 503."""
    fetch_seconds: float = 60.0
    """The longest that fetching one pipeline may take, redirects included."""
    fetches: int = 16
    """How many pipelines are fetched at a time; each may hold a file of the largest size on the disk."""
    upload_seconds: float = 600.0
    """The longest between storing an upload's object and its commit; afterwards the object is erased."""
    erase_poll_seconds: float = 30.0
    """How often objects to erase are looked for; a deletion is seen at once."""

    @property
    def package_limits(self) -> Limits:
        return Limits(
            processes=self.package_readers,
            queue_seconds=self.package_queue_seconds,
            cpu_seconds=self.package_read_cpu_seconds,
            seconds=self.package_read_seconds,
            memory_bytes=self.package_read_memory_bytes,
            settings="package_read",
        )

    def __post_init__(self) -> None:
        self.check_networks()
        if self.largest_package_bytes <= 0 or self.fetches <= 0:
            raise ValueError("largest_package_bytes and fetches must be above 0")
