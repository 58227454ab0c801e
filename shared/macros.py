"""The macros in the values of parameters (API specification, section 11.6).

A run that somebody created and one that a job fires know them alike, and differ in what there is to say: only a fired
one has a slot and an index. Pure; knows neither runs nor jobs. All times are written in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import msgspec


class Occasion(msgspec.Struct, frozen=True, kw_only=True):
    """What the macros of one run stand for."""

    run_id: str
    now: datetime
    slot: datetime | None = None
    """The scheduled time of a run that a job fires."""
    index: int | None = None
    """Which run of its job it is, counted from one."""


_BRACKETS: Final = re.compile(r"\[\[(.*?)\]\]")
_CALL: Final = re.compile(r"\{\{\s*\$\.(scheduledTime|currentTime)\.strftime\(\s*'(.*?)'\s*\)\s*\}\}")
_STAMP: Final = "%Y%m%d%H%M%S"


def expand(text: str, occasion: Occasion) -> str:
    """Unknown macros stay, and so do those of which the occasion has nothing to say."""

    def bracket(found: re.Match[str]) -> str:
        match found[1].partition("."):
            case ("RunUUID", "", ""):
                return occasion.run_id
            case ("Index", "", "") if occasion.index is not None:
                return str(occasion.index)
            case ("CurrentTime" | "ScheduledTime" as which, dot, layout):
                at = occasion.now if which == "CurrentTime" else occasion.slot
                if at is None:
                    return found[0]
                return format_go(layout, at) if dot else at.astimezone(UTC).strftime(_STAMP)
            case _:
                return found[0]

    def call(found: re.Match[str]) -> str:
        at = occasion.now if found[1] == "currentTime" else occasion.slot
        return found[0] if at is None else _strftime(found[2], at)

    return _CALL.sub(call, _BRACKETS.sub(bracket, text))


_GO_TOKENS = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|2006|Z07:00|Z0700|-07:00|-0700|_2(?!006)|[.,](?:0+|9+)(?![0-9])"
    r"|01|02|03|04|05|06|15|PM|pm|1|2|3|4|5"
)
_GO_DIRECTIVES = {
    "January": "%B", "Jan": "%b", "Monday": "%A", "Mon": "%a", "2006": "%Y", "06": "%y", "01": "%m", "02": "%d",
    "15": "%H", "03": "%I", "04": "%M", "05": "%S", "PM": "%p",
}  # fmt: skip
_GO_UNPADDED = {"1": "%m", "2": "%d", "3": "%I", "4": "%M", "5": "%S"}
_GO_FIXED = {"MST": "UTC", "Z07:00": "Z", "Z0700": "Z", "-07:00": "+00:00", "-0700": "+0000"}


def format_go(layout: str, at: datetime) -> str:
    """A time in UTC, in a Go time layout; what is no token is literal."""
    at = at.astimezone(UTC)

    def token(found: re.Match[str]) -> str:
        word = found[0]
        if word in _GO_DIRECTIVES:
            return at.strftime(_GO_DIRECTIVES[word])
        if word in _GO_UNPADDED:
            return str(int(at.strftime(_GO_UNPADDED[word])))
        if word in _GO_FIXED:
            return _GO_FIXED[word]
        if word == "_2":
            return f"{at.day:2}"
        if word == "pm":
            return at.strftime("%p").lower()
        digits = f"{at.microsecond:06}000"[: len(word) - 1].ljust(len(word) - 1, "0")
        if word[1] == "9":
            digits = digits.rstrip("0")
        return word[0] + digits if digits else ""

    return _GO_TOKENS.sub(token, layout)


def _strftime(layout: str, at: datetime) -> str:
    at = at.astimezone(UTC)

    def directive(found: re.Match[str]) -> str:
        # Python leaves %s to the C library, which reads the time as local.
        return str(int(at.timestamp())) if found[1] == "s" else at.strftime(found[0])

    # One directive at a time: the C library would also take a width, of any size.
    return re.sub(r"%([A-Za-z%])", directive, layout)
