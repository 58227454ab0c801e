"""What a gateway process must be told: where it listens and where the services are."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from HEADRACE_… variables by `shared.settings.load`; upstreams are comma separated.

    An upstream is `http://host:port`, one replica, or `dns+http://name:port`, one replica for every address the name
    has, asked again every second (a headless Service, a scaled compose service). Plain HTTP only: a readable idle
    TLS connection may be alive, and the proxy takes readable to mean closed.
    """

    experiment_upstreams: tuple[str, ...]
    """Replicas of the experiment service."""
    pipeline_registry_upstreams: tuple[str, ...]
    """Replicas of the pipeline registry."""
    run_upstreams: tuple[str, ...]
    """Replicas of the run service."""
    job_scheduler_upstreams: tuple[str, ...]
    """Replicas of the job scheduler."""
    metrics_upstreams: tuple[str, ...]
    """Replicas of the metrics service."""
    listen_host: str = "127.0.0.1"
    """Address to bind. Loopback unless told otherwise: nothing is reachable from outside by accident."""
    listen_port: int = 8888
    """TCP port to bind. 8888 is where clients of the API expect a server."""
    connect_timeout_seconds: float = 2.0
    """Seconds for one attempt to connect to one replica. A replica in the same house answers within milliseconds;
    a vanished host would otherwise hold the client for minutes. There is no limit on the answer: a long upload or a
    followed log is legitimate."""
    commit_sha: str = "unknown"
    """Shown by healthz; clients print it."""
    tag_name: str = "unknown"
    """Shown by healthz; the web UI prints it as the version."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if name.endswith("_upstreams"):
                _check_upstreams(name, getattr(self, name))
        if self.connect_timeout_seconds <= 0:
            raise ValueError("connect_timeout_seconds must be above 0")


def _check_upstreams(name: str, upstreams: tuple[str, ...]) -> None:
    if not upstreams:
        raise ValueError(f"{name} names no replica")
    for upstream in upstreams:
        parts = urlsplit(upstream)
        is_address = parts.scheme in ("http", "dns+http") and parts.hostname and parts.port
        if not is_address or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError(f"{name}: {upstream!r} is neither http://host:port nor dns+http://name:port")
