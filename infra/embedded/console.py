"""What a person at the terminal hears of the processes' logs: a line when something is wrong, and otherwise nothing.

The logs themselves are files, which the processes write without us; this reads along. Of a process that complains a
lot, one line in a while is said, with the number of those left out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 1.0
_QUIET_SECONDS = 15.0
_LARGEST_READ_BYTES = 64 * 1024
_COMPLAINT = re.compile(r'^\S+ \S+  (WARNING|ERROR|CRITICAL) |"level":"(warning|error|critical)"')
"""Either of the two ways a process writes its log (`shared.logs`)."""


@dataclass(kw_only=True)
class _Followed:
    file: Path
    offset: int
    quiet_until: float = 0.0
    left_out: int = 0


class Console:
    def __init__(self, logs: Sequence[Path], *, say: Callable[[str], None]) -> None:
        """What the logs hold already is not said: it was another stack's."""
        self._followed = [_Followed(file=file, offset=_size(file)) for file in logs]
        self._say = say

    async def follow(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            self.read_on()

    def read_on(self) -> None:
        """Say what was complained of since the last time."""
        now = time.monotonic()
        for log in self._followed:
            complaints = [line for line in _new_lines(log) if _COMPLAINT.search(line)]
            if not complaints:
                continue
            if now < log.quiet_until:
                log.left_out += len(complaints)
                continue
            others = log.left_out + len(complaints) - 1
            log.quiet_until, log.left_out = now + _QUIET_SECONDS, 0
            more = f" (and {others} more)" if others else ""
            self._say(f"{complaints[-1][:300]}{more} [{log.file}]")


def _new_lines(log: _Followed) -> list[str]:
    """Whole lines added since the last read; of a flood, the end."""
    size = _size(log.file)
    if size < log.offset:  # The file was put aside and begun anew.
        log.offset = 0
    if size == log.offset:
        return []
    with log.file.open("rb") as file:
        file.seek(max(log.offset, size - _LARGEST_READ_BYTES))
        start = file.tell()
        text = file.read(_LARGEST_READ_BYTES)
    whole = text.rfind(b"\n") + 1
    log.offset = start + whole
    return text[:whole].decode("utf-8", "replace").splitlines()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
