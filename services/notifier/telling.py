"""A fact as those outside are told of it."""

from __future__ import annotations

from datetime import UTC

import msgspec

from shared.bus import Message

from .domain import About, about_of

ENDS = frozenset({"succeeded", "failed", "error", "skipped", "deleted"})

_about = msgspec.json.Decoder(About).decode


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One fact, ready to be sent."""

    owner: str
    what: str
    resource_id: str
    position: int
    about: About
    event: bytes
    """A CloudEvent in JSON, with the owner's position as an extension attribute."""

    @property
    def is_final(self) -> bool:
        return self.owner == "run" and self.what in ENDS


def told(message: Message) -> Told:
    try:
        said = _about(message.body)
    except msgspec.MsgspecError:
        said = About()
    return Told(
        owner=message.owner,
        what=message.what,
        resource_id=message.resource_id,
        position=message.position,
        about=about_of(message.owner, message.what, message.resource_id, said),
        event=_cloud_event(message),
    )


def _cloud_event(message: Message) -> bytes:
    """CloudEvents 1.0, JSON format."""
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": message.id,
            "type": message.type,
            "source": f"/headrace/{message.owner}",
            "subject": message.resource_id,
            "time": message.time.astimezone(UTC),
            "datacontenttype": "application/json",
            "traceparent": message.traceparent,
            "position": message.position,
            "data": msgspec.Raw(message.body),
        }
    )
