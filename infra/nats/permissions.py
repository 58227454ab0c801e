"""Who may publish and hear what on the bus, as data, and the server configuration made from it.

A process logs in as a user of its own. It may state only the facts its service owns, answer only the questions asked
of it, and ask everybody; nobody but `admin` changes or deletes a stream. The same rules serve embedded, under compose
and on Kubernetes: the configuration names the listener and the users, and nothing of where the server runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

EVENTS_STREAM = "KFP_EVENTS"
DEAD_STREAM = "KFP_DEAD"


class User(msgspec.Struct, frozen=True, kw_only=True):
    """What one user may publish and subscribe to; subjects may hold wildcards."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never_publish: tuple[str, ...] = ()
    """What `publish` would allow and must not."""


_CONSUME_EVENTS = (
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    f"$JS.API.STREAM.INFO.{EVENTS_STREAM}",
    f"$JS.API.CONSUMER.CREATE.{EVENTS_STREAM}",
    f"$JS.API.CONSUMER.CREATE.{EVENTS_STREAM}.>",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{EVENTS_STREAM}.*",
    f"$JS.API.CONSUMER.INFO.{EVENTS_STREAM}.*",
    f"$JS.API.CONSUMER.NAMES.{EVENTS_STREAM}",
    f"$JS.API.CONSUMER.LIST.{EVENTS_STREAM}",
    f"$JS.API.CONSUMER.DELETE.{EVENTS_STREAM}.*",
    f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.*",
    f"$JS.ACK.{EVENTS_STREAM}.>",
    f"$JS.FC.{EVENTS_STREAM}.>",
)
# Whoever finds a stream gone declares it anew; one that exists can be neither changed nor deleted by this.
_DECLARE_STREAMS = (f"$JS.API.STREAM.CREATE.{EVENTS_STREAM}", f"$JS.API.STREAM.CREATE.{DEAD_STREAM}")
# The relay compares its own position with the last one the stream holds.
_READ_BACK_EVENTS = (
    f"$JS.API.STREAM.MSG.GET.{EVENTS_STREAM}",
    f"$JS.API.DIRECT.GET.{EVENTS_STREAM}",
    f"$JS.API.DIRECT.GET.{EVENTS_STREAM}.>",
)


_SERVICES = ("experiment", "pipeline-registry", "run", "job-scheduler", "metrics", "notifier")


def _about_consumer(durable: str) -> tuple[str, ...]:
    """What a service says of its place in the stream, and nobody else must: it would take facts away from it."""
    return (
        f"$JS.API.CONSUMER.CREATE.{EVENTS_STREAM}.{durable}",
        f"$JS.API.CONSUMER.CREATE.{EVENTS_STREAM}.{durable}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{EVENTS_STREAM}.{durable}",
        f"$JS.API.CONSUMER.DELETE.{EVENTS_STREAM}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{durable}",
        f"$JS.ACK.{EVENTS_STREAM}.{durable}.>",
    )


def _process(name: str, *, facts_of: tuple[str, ...] = ()) -> User:
    return User(
        name=name,
        publish=(
            *(f"kfp.event.{owner}.>" for owner in facts_of),
            "kfp.ask.>",
            "kfp.ping.>",
            f"kfp.dead.{name}.>",
            "_REPLY.>",
            *_DECLARE_STREAMS,
            *_CONSUME_EVENTS,
            *_READ_BACK_EVENTS,
        ),
        subscribe=(
            "kfp.event.>",
            f"kfp.ask.{name}.>",
            *(f"kfp.ask.{owner}.>" for owner in facts_of if owner != name),
            "kfp.ping.>",
            f"kfp.dead.{name}.>",
            # Answers come to inboxes of the process's own: who listens to `_INBOX.>`, where those of clients from
            # outside are, overhears nothing.
            f"_REPLY.{name}.>",
            "$SRV.>",
        ),
    )


USERS: tuple[User, ...] = (
    _process("experiment", facts_of=("experiment",)),
    _process("pipeline-registry", facts_of=("pipeline-registry",)),
    # Facts about the steps of a run have a subject of their own, and the same owner.
    _process("run", facts_of=("run", "node")),
    _process("run-controller"),
    _process("job-scheduler", facts_of=("job-scheduler",)),
    _process("metrics", facts_of=("metrics",)),
    _process("notifier", facts_of=("notifier",)),
    User(name="admin", publish=(">",), subscribe=(">",)),
    # Subscribers from outside: they follow the stream by consumers of their own, durable ones too, and state nothing.
    User(
        name="events",
        publish=(*_CONSUME_EVENTS, *_READ_BACK_EVENTS),
        never_publish=tuple(
            subject
            for subscriber in _SERVICES
            for owner in _SERVICES
            for subject in _about_consumer(f"{subscriber}--{owner}")
        ),
        # Hints that nodes of a run have changed; facts about nodes they are not.
        subscribe=("kfp.event.>", "kfp.ping.run-nodes.>", "_INBOX.>"),
    ),
)

USER_NAMES: tuple[str, ...] = tuple(user.name for user in USERS)


def server_config(*, host: str, port: int, store_dir: str, passwords: Mapping[str, str]) -> str:
    """The text of a nats-server configuration file; `passwords` has one for each of USER_NAMES."""
    users = [
        {
            "user": user.name,
            "password": passwords[user.name],
            "permissions": {
                "publish": {"allow": user.publish, "deny": user.never_publish},
                "subscribe": {"allow": user.subscribe},
            },
        }
        for user in USERS
    ]
    return json.dumps(  # JSON is a subset of the server's own notation.
        {
            "listen": f"{host}:{port}",
            "server_name": "headrace",
            "max_payload": 1_048_576,
            "jetstream": {
                "store_dir": store_dir,
                "sync_interval": "always",  # One node: an acknowledged message is on the disk, not only in its cache.
                "max_memory_store": 16_777_216,
            },
            "authorization": {"users": users},
        },
        indent=2,
        ensure_ascii=False,  # It does not know \u escapes.
    )
