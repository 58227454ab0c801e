"""Settings come from the environment, once, at the start of a process.

A settings struct is a frozen `msgspec.Struct`; the field `listen_port` of any struct is read from
`HEADRACE_LISTEN_PORT`. The unit ends the name (`_seconds`, `_bytes`). A value that does not fit is one clear
line and a non-zero exit, never a traceback.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from shared.addresses import Reach

S = TypeVar("S", bound=msgspec.Struct)

Port = Annotated[int, msgspec.Meta(ge=1, le=65535, title="port")]
"""The title is the word by which a value that is none is refused."""


class SettingsError(Exception):
    """The environment does not describe a process that could run."""


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service process is told. A service's own settings extend it."""

    database_url: str
    """`postgresql://role:password@host:port/database`; the role owns the service's schema and sees no other."""
    nats_url: str
    """`nats://user:password@host:port`; the user may publish its owner's facts alone."""
    listen_host: str = "127.0.0.1"
    listen_port: Port = 8080
    database_connections: int = 10
    """The most connections one process opens; ten keep two cores busy."""
    facts_kept_days: float = 7
    """How long facts that were published are kept, so that a broker that lost its store gets them again, and a
    subscriber that missed some. The stream keeps them a day longer. The same for all services."""
    facts_kept_bytes: int = 1024**3
    """How much of them is kept at most, of each service; the oldest go first."""
    stream_kept_bytes: int = 2 * 1024**3
    """How much the stream of facts holds at most, those of all services together; the oldest go first. This and the age
    are what a missing stream is declared with; one that is there is changed with the broker's own tools, or, where
    `headrace up` looks after it, at the next start."""
    stream_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    """On how many servers of the broker the stream is kept, where it is a cluster: three outlive the loss of one."""
    applied_wait_seconds: float = 1.0
    """How long a route waits for other services to apply its change before it answers all the same."""


class ReachSettings(ServiceSettings, frozen=True, kw_only=True):
    """For the services that connect to where others say."""

    fetch_allowed_networks: tuple[str, ...] = ()
    """Networks (`10.0.0.0/8`, comma separated) that pipelines may be fetched from and webhooks sent to beside public
    addresses: where a cluster keeps its own. Whoever may create a pipeline or a webhook can make a process of ours
    connect there."""
    fetch_any_network: bool = False
    """Whether pipelines may be fetched from anywhere, and webhooks sent to it, this machine included. For an API that
    only this machine reaches."""

    def check_networks(self) -> None:
        """Raises ValueError, in words that name the one that is none."""
        _ = self.reach

    @property
    def reach(self) -> Reach:
        return Reach(self.fetch_allowed_networks, any_network=self.fetch_any_network)


class ObjectStoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """For the services that hold objects. Any S3 server serves."""

    object_store_url: str
    """`http://host:port`, or https."""
    object_store_access_key: str
    object_store_secret_key: str
    object_store_bucket: str = "mlpipeline"


def load(kind: type[S], environment: Mapping[str, str] | None = None) -> S:
    """Build `kind` from HEADRACE_… variables; absent and empty ones take the field's default.

    Raises SettingsError, naming the variable, where one is missing or does not parse. Lists are comma separated,
    mappings are JSON.
    """
    environment = os.environ if environment is None else environment
    given: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        variable = variable_of(field.name)
        text = environment.get(variable)
        if not text:
            if field.required:
                raise SettingsError(f"{variable} is not set")
            continue
        try:
            given[field.name] = _value_of(field.type, text)
        except msgspec.DecodeError as error:
            title = _title_of(field.type)
            reason = f"{variable}: {text!r} is not a {title}" if title else f"{variable}={text!r}: {error}"
            raise SettingsError(reason) from error
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:  # a rule over several fields
        raise SettingsError(str(error)) from error


def _value_of(kind: Any, text: str) -> object:
    match getattr(kind, "__origin__", kind):
        case builtins.dict:
            return msgspec.json.decode(text, type=kind)
        case builtins.list | builtins.tuple:
            raw: object = [part.strip() for part in text.split(",") if part.strip()]
        case _:
            raw = text
    return msgspec.convert(raw, kind, strict=False)


def variable_of(field_name: str) -> str:
    return f"HEADRACE_{field_name.upper()}"


def _title_of(kind: Any) -> str | None:
    return next((meta.title for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)), None)
