from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from shared import logs, telemetry


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def _line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    parsed = json.loads(lines[0])
    assert isinstance(parsed, dict)
    return parsed


def test_a_json_line_carries_the_ids_of_the_request_the_trace_and_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("run", format="json", level="info")
    with telemetry.in_request("r-1"), telemetry.for_run("run-1"), telemetry.continue_trace(None) as traceparent:
        logging.getLogger("shared.outbox").info("sent %d facts", 3, extra={"owner": "run"})
    line = _line(capsys)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "info",
        "process": "run",
        "logger": "shared.outbox",
        "message": "sent 3 facts",
        "request_id": "r-1",
        "trace_id": traceparent[3:35],
        "run_id": "run-1",
        "owner": "run",
    }


def test_a_traceback_stays_on_its_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("run", format="json", level="info")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("x").exception("failed")
    assert "KeyError: 'lost'" in _line(capsys)["traceback"]


@pytest.mark.parametrize(("extra", "shown"), [({"odd": object}, "<class 'object'>"), ({"odd": {(1, 2): 3}}, "(1, 2)")])
def test_no_value_is_too_odd_for_a_json_line(
    capsys: pytest.CaptureFixture[str], extra: dict[str, Any], shown: str
) -> None:
    logs.configure("run", format="json", level="info")
    logging.getLogger("x").info("odd \ud800", extra=extra)
    assert shown in str(_line(capsys)["odd"])


def test_text_is_one_calm_line_until_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", format="text", level="INFO")
    logging.getLogger("x").info("listening on %s", "127.0.0.1:8888")
    logging.getLogger("x").warning("slow", extra={"upstream": "run"})
    calm, wrong = capsys.readouterr().err.splitlines()
    assert calm.split(" ", 1)[1] == "gateway  listening on 127.0.0.1:8888"
    assert wrong.split(" ", 1)[1] == "gateway  WARNING slow upstream=run"


def test_libraries_do_not_chat_and_the_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", level="info")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("x").debug("detail")
    assert capsys.readouterr().err == ""


def test_warnings_are_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", format="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", UserWarning, stacklevel=1)
    assert "UserWarning: old" in _line(capsys)["message"]


def test_the_second_configuration_wins(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("one")
    logs.configure("two")
    logging.getLogger("x").warning("hello")
    assert capsys.readouterr().err.count("hello") == 1
    assert sys.stderr is not None
