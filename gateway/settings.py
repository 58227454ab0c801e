"""What a gateway process must be told: where it listens, where the services are, and whom it lets in."""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from shared.bearer import check_sha256
from shared.identity import check_key
from shared.settings import Port


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
    notifier_upstreams: tuple[str, ...]
    """Replicas of the notifier."""
    listen_host: str = "127.0.0.1"
    """Address to bind. Loopback unless told otherwise: nothing is reachable from outside by accident."""
    listen_port: Port = 8888
    """TCP port to bind. 8888 is where clients of the API expect a server."""
    connect_timeout_seconds: float = 2.0
    """Seconds for one attempt to connect to one replica. A replica in the same house answers within milliseconds;
    a vanished host would otherwise hold the client for minutes. There is no limit on the answer: a long upload or a
    followed log is legitimate."""
    commit_sha: str = "unknown"
    """Shown by healthz; clients print it."""
    tag_name: str = "unknown"
    """Shown by healthz; the web UI prints it as the version."""
    auth: tuple[Literal["none", "tokens", "oidc"], ...] = ()
    """How clients prove who they are: `tokens`, `oidc`, or both. Empty means not at all, and is refused when bound
    wider than loopback; `none` says that it is meant."""
    auth_tokens_file: str = ""
    """Where `headrace token` keeps the static tokens. It may be made later and is read again when it changes."""
    oidc_issuer: str = ""
    """The identity provider's URL, exactly as its tokens name it."""
    oidc_audience: str = ""
    """What a token must be made out to. Without it any token of the provider, made for any other use, would do."""
    oidc_jwks_url: str = ""
    """Where the provider's keys are; empty: asked of the provider (`/.well-known/openid-configuration`)."""
    oidc_name_claim: str = "sub"
    """The claim that holds what people call somebody: `email`, `preferred_username`."""
    agent_token_sha256: str = ""
    """The SHA-256 of the token that opens the routes of the persistence agent, where clients are asked who they are."""
    identity_key: str = ""
    """What callers' identities are signed with on the way to the services, which check them by the same key."""

    @property
    def authenticates(self) -> bool:
        return "tokens" in self.auth or "oidc" in self.auth

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if name.endswith("_upstreams"):
                _check_upstreams(name, getattr(self, name))
        if self.connect_timeout_seconds <= 0:
            raise ValueError("connect_timeout_seconds must be above 0")
        check_key(self.identity_key)
        check_sha256(self.agent_token_sha256)
        self._check_auth()

    def _check_auth(self) -> None:
        if not self.authenticates:
            if not self.auth and not _is_loopback(self.listen_host):
                raise ValueError(
                    f"listening on {self.listen_host} would let everybody in: set HEADRACE_AUTH to tokens or oidc, "
                    "or to none if that is meant"
                )
            return
        if "none" in self.auth:
            raise ValueError("HEADRACE_AUTH=none cannot be combined with a way to authenticate")
        if not self.identity_key:
            raise ValueError("authentication needs HEADRACE_IDENTITY_KEY, the secret shared with the services")
        if "tokens" in self.auth and not self.auth_tokens_file:
            raise ValueError("HEADRACE_AUTH=tokens needs HEADRACE_AUTH_TOKENS_FILE")
        if "oidc" in self.auth:
            if not self.oidc_issuer or not self.oidc_audience:
                raise ValueError("HEADRACE_AUTH=oidc needs HEADRACE_OIDC_ISSUER and HEADRACE_OIDC_AUDIENCE")
            for url in filter(None, (self.oidc_issuer, self.oidc_jwks_url)):
                if not is_https_or_loopback(url):
                    raise ValueError(f"{url!r} is not an https URL: the provider's keys must not be tampered with")


def is_https_or_loopback(url: str) -> bool:
    parts = urlsplit(url)
    if not parts.hostname:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_upstreams(name: str, upstreams: tuple[str, ...]) -> None:
    if not upstreams:
        raise ValueError(f"{name} names no replica")
    for upstream in upstreams:
        parts = urlsplit(upstream)
        is_address = parts.scheme in ("http", "dns+http") and parts.hostname and parts.port
        if not is_address or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError(f"{name}: {upstream!r} is neither http://host:port nor dns+http://name:port")
