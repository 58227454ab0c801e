"""What somebody who follows facts asks for, and where in their order they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from shared.errors import InvalidInput

_WORD = re.compile(r"[a-z]+(-[a-z]+)*")
_TOKEN = re.compile(r"[^\s.*>]{1,300}")
_PLACE = re.compile(r"([a-z]+(?:-[a-z]+)*):([0-9]{1,18})")

Cursor = Mapping[str, int]
"""For each owner of facts the position of the last one seen. Positions have no gaps."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Which resources a fact speaks of, beside its own."""

    experiment_id: str = ""
    pipeline_id: str = ""
    job_id: str = ""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which facts are wanted; what is left out is any. Conditions are joined by "and", the members of a set by "or"."""

    owners: frozenset[str] = frozenset()
    whats: frozenset[str] = frozenset()
    resource_id: str = ""
    about: About = About()

    def __post_init__(self) -> None:
        for word in self.owners | self.whats:
            if not _WORD.fullmatch(word):
                raise InvalidInput(f"{word!r} is no word of an event's type.")
        if self.resource_id and not _TOKEN.fullmatch(self.resource_id):
            raise InvalidInput(f"{self.resource_id!r} is no id of a resource.")

    def takes(self, owner: str, what: str, resource_id: str, about: About) -> bool:
        own = self.about
        return (
            (not self.owners or owner in self.owners)
            and (not self.whats or what in self.whats)
            and (not self.resource_id or resource_id == self.resource_id)
            and (not own.experiment_id or about.experiment_id == own.experiment_id)
            and (not own.pipeline_id or about.pipeline_id == own.pipeline_id)
            and (not own.job_id or about.job_id == own.job_id)
        )

    @property
    def subjects(self) -> list[str]:
        """What the broker is asked for; it knows nothing of what facts are about."""
        return [
            f"kfp.event.{owner}.{what}.{self.resource_id or '*'}"
            for owner in sorted(self.owners) or ["*"]
            for what in sorted(self.whats) or ["*"]
        ]


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """From the facts behind these on."""

    cursor: Cursor


class Since(msgspec.Struct, frozen=True, kw_only=True):
    """From a time on."""

    at: datetime


Start = Behind | Since | None
"""Where a stream begins; None is now."""


class Until(StrEnum):
    """What ends a stream, beside its client."""

    NOTHING = ""
    NOW = "now"
    """Everything that had happened when it was opened is told."""
    FINAL = "final"
    """The run that it is about is over."""


_OWN: Final = {"experiment": "experiment_id", "job-scheduler": "job_id", "pipeline-registry": "pipeline_id"}


def about_of(owner: str, what: str, resource_id: str, said: About) -> About:
    """`said` is what the fact's body names; a resource is also about itself."""
    own = _OWN.get(owner)
    if own is None or what.startswith("version-"):
        return said
    return msgspec.structs.replace(said, **{own: resource_id})


def read_cursor(text: str) -> Cursor:
    """Raises InvalidInput."""
    places = [_PLACE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(places):
        raise InvalidInput(f"{text!r} is no place in the stream of events: run:12,experiment:3 is one.")
    return {place[1]: int(place[2]) for place in places if place}


def write_cursor(cursor: Cursor) -> str:
    return ",".join(f"{owner}:{position}" for owner, position in sorted(cursor.items()))
