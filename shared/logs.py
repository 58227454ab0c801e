"""How a process writes its log: one line per event on stderr, for people (`text`) or for collectors (`json`).

Modules log through the standard library and never configure it. The ids of the request, of the trace and
of the run are added here, so that no call site passes them along.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import msgspec

from shared import trace

Format = Literal["text", "json"]


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How any process writes its log."""

    log_format: Format = "text"
    """Lines for people, or for a collector."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines that are written."""


_NOISY = ("uvicorn", "asyncio", "aiohttp.access", "urllib3", "httpx", "nats")
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


def configure(process_name: str, *, format: Format = "text", level: str = "INFO") -> None:
    """Replace whatever logging was configured before; the second call of a process wins."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process_name) if format == "json" else TextLines(process_name))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class TextLines(logging.Formatter):
    """`12:03:44.120 run-controller  resumed 3 runs`; the level is shown from WARNING on."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone()
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        line = f"{at:%H:%M:%S}.{int(record.msecs):03} {self._process_name}  {level}{record.getMessage()}"
        line += "".join(f" {name}={value}" for name, value in _extras(record).items())
        traceback = _traceback(self, record)
        return line if traceback is None else f"{line}\n{traceback}"


class JsonLines(logging.Formatter):
    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "process": self._process_name,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := trace.current_request_id():
            line["request_id"] = request_id
        if trace_id := trace.current_trace_id():
            line["trace_id"] = trace_id
        if run_id := trace.current_run_id():
            line["run_id"] = run_id
        if traceback := _traceback(self, record):
            line["traceback"] = traceback
        for name, value in _extras(record).items():
            line.setdefault(name, value)
        return self._encode(line)

    def _encode(self, line: dict[str, object]) -> str:
        try:
            return self._encoder.encode(line).decode()
        except (TypeError, ValueError):  # A key that is no string, or text with lone surrogates.
            safe = {name: repr(value) if not isinstance(value, datetime) else value for name, value in line.items()}
            return self._encoder.encode(safe).decode()


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD_FIELDS}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    return formatter.formatException(record.exc_info)
