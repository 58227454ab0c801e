"""Stretches of time as manifests write them: seconds, or Go's notation (specification §10)."""

from __future__ import annotations

import re

from services.run.engine.embedded.manifest import ManifestError

LONGEST_SECONDS = 100 * 365 * 86400
"""What is longer is this long: no clock counts on, and no run waits for the difference."""

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_seconds(text: str) -> float:
    """Seconds of a duration: a plain number, or Go's notation such as `1m30s`. Raises ManifestError."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return min(float(text), LONGEST_SECONDS)
    if not text or _DURATION.sub("", text):
        raise ManifestError(f"'{text}' is not a duration")
    return min(sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text)), LONGEST_SECONDS)


def whole_seconds_of(text: str | None) -> int | None:
    """A deadline; absent when empty. Raises ManifestError."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]+", text):
        raise ManifestError(f"'{text}' is not a number of seconds")
    return int(min(float(text), LONGEST_SECONDS))


def spoken_duration(seconds: int) -> str:
    """Go's notation of whole seconds."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
