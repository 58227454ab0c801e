"""What the pipeline registry is told by its environment."""

from __future__ import annotations

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    object_store_url: str
    """`http://host:port`, or https: where packages and manifests are kept. Any S3 server serves."""
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str = "mlpipeline"
    auto_update_pipeline_default_version: bool = True
    """Whether a new version becomes its pipeline's default."""
    package_readers: int = 2
    """How many processes may read packages at a time."""
    package_read_seconds: float = 20.0
    """The longest that reading one package may take; a large real one takes less than two."""
    package_read_memory_bytes: int = 1024 * 1024 * 1024
    """The most address space of a process that reads packages; the interpreter alone takes a tenth."""
    package_queue_seconds: float = 30.0
    """How long an upload waits for a process to read it before it is a 503."""
    upload_seconds: float = 600.0
    """The longest between storing an upload's object and its commit; afterwards the object is erased."""
    erase_poll_seconds: float = 30.0
    """How often objects to erase are looked for; a deletion is seen at once."""
