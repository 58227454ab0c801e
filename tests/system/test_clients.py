"""Unmodified clients of the API, each in an environment of its own, against the whole stack."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.recorder import recording
from tests.support.stack import Stack

_ROOT = Path(__file__).parents[2]
_SCRIPTS = Path(__file__).parent / "scripts"
_PACKAGE = _ROOT / "infra" / "examples" / "ml-train-deploy.yaml"
_WITHIN_SECONDS = 110


def test_the_sdk_creates_uploads_runs_waits_and_reads_metrics(stack: Stack) -> None:
    seen = _run_script("kfp-1.8.22", "kfp_first_run.py", stack)

    assert seen["healthz"] is False
    assert seen["experiment"]
    assert seen["pipeline"]
    assert {"Default", "sdk experiment"} <= set(seen["experiments"])
    assert "sdk pipeline" in seen["pipelines"]
    assert set(seen["parameters"]) == {"rows", "seed", "epochs"}
    assert (seen["status"], seen["second status"], seen["workflow phase"]) == ("Succeeded",) * 3
    assert seen["created"] <= seen["finished"]
    assert set(seen["metrics"]) == {"logistic-accuracy", "majority-accuracy"}
    assert sorted(seen["runs"]) == ["from a package", "sdk run"]
    assert set(seen["references"]) == {"EXPERIMENT", "PIPELINE_VERSION"}


def test_the_sdk_has_a_recurring_run_fire_every_two_seconds(stack: Stack) -> None:
    seen = _run_script("kfp-1.8.22", "kfp_recurring.py", stack)

    assert seen["status"] == [[True, "every two seconds", "Enabled", True]]
    slots = [int(seen["created"]) + 2 * nth for nth in (1, 2, 3)]
    assert seen["slots"] == slots
    assert seen["runs"] == ["Succeeded"] * 3
    bases = {base for base, _ in seen["names"]}
    assert len(bases) == 1
    assert bases.pop().startswith("everytwoseconds")
    assert [index for _, index in seen["names"]] == ["1", "2", "3"]
    assert seen["parameters"] == [
        {"slot": datetime.fromtimestamp(slot, UTC).strftime("%Y%m%d%H%M%S"), "index": str(nth)}
        for nth, slot in enumerate(slots, start=1)
    ]
    assert seen["references"] == [[["EXPERIMENT", "recurring", "OWNER"], ["JOB", "every two seconds", "CREATOR"]]] * 3
    assert seen["among all"]
    assert seen["references afterwards"] == ["EXPERIMENT"]
    assert seen["jobs afterwards"] is None


def test_the_cli_lists_runs_pipelines_and_experiments(stack: Stack) -> None:
    created = _kfp(stack, "experiment", "create", "cli experiment")
    uploaded = _kfp(stack, "pipeline", "upload", "-p", "cli pipeline", str(_PACKAGE))
    submitted = _kfp(stack, "run", "submit", "-e", "cli experiment", "-r", "cli run", "-f", str(_PACKAGE), "rows=100")

    assert "cli experiment" in created
    assert "cli pipeline" in uploaded
    assert "cli run" in submitted
    assert "cli run" in _kfp(stack, "run", "list")
    assert "cli pipeline" in _kfp(stack, "pipeline", "list")
    assert "cli experiment" in _kfp(stack, "experiment", "list")


def test_the_generated_client_follows_a_run_from_upload_to_deletion(stack: Stack) -> None:
    seen = _run_script("kfp-server-api-1.8.5", "kfp_server_api_tour.py", stack)

    assert seen["status"] == "Succeeded"
    assert seen["template"]
    assert seen["artifact is a tgz"]
    assert seen["reported"] == ["OK", "INVALID_ARGUMENT"]
    assert seen["metrics"]["by-hand"] == 0.5
    assert seen["listed"]
    assert seen["total"] == 1
    assert "generated client" in seen["experiments"]
    assert seen["after deletion"] == 404


def _run_script(client: str, script: str, stack: Stack) -> Any:
    python = str(_environment(client) / "python")
    with recording(stack.url) as recorder:
        output = _run([python, str(_SCRIPTS / script), recorder.url, str(_PACKAGE)], stack)
    return json.loads(output.splitlines()[-1])


def _kfp(stack: Stack, *arguments: str) -> str:
    command = str(_environment("kfp-1.8.22") / "kfp")
    with recording(stack.url) as recorder:
        return _run([command, "--endpoint", recorder.url, *arguments], stack)


def _environment(client: str) -> Path:
    folder = _ROOT / ".clients" / client / "bin"
    if not folder.is_dir():
        pytest.fail(f"{folder} is missing; `make clients` installs it")
    return folder


def _run(command: list[str], stack: Stack) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_WITHIN_SECONDS,
        env={"PATH": os.environ["PATH"], "HOME": str(stack.data_dir), "LANG": "C.UTF-8"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{stack.logs()}"
    return done.stdout
