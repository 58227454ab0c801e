"""Every method of every client that people still have, against the whole stack, through a recorder."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.coverage.plugin import Collector
from tests.support.package_server import serving_packages
from tests.support.recorder import Recorder, recording
from tests.support.stack import Stack

_ROOT = Path(__file__).parents[2]
_SCRIPTS = Path(__file__).parent / "scripts"
_PACKAGE = _ROOT / "infra" / "examples" / "ml-train-deploy.yaml"
_WITHIN_SECONDS = 110
_NEED_AN_OLDER_PYTHON = frozenset({"kfp-0.1.38", "kfp-0.5.1", "kfp-1.0.4"})


def _workflow(command: str) -> str:
    step = {"name": "step", "container": {"image": "busybox", "command": ["sh", "-c", command]}}
    return json.dumps(
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "all-clients-"},
            "spec": {"entrypoint": "step", "templates": [step]},
        }
    )


@pytest.fixture(scope="module")
def package_url() -> Iterator[str]:
    with serving_packages(_PACKAGE.parent) as folder:
        yield folder + _PACKAGE.name


@pytest.mark.parametrize("client", ["kfp-server-api-0.1.37", "kfp-server-api-0.1.40", "kfp-server-api-1.8.5"])
def test_a_generated_client_gets_through_all_its_methods(
    stack: Stack, client: str, package_url: str, evidence: Collector
) -> None:
    manifests = (_workflow("exit 1"), _workflow("exec sleep 100"))
    with recording(stack.url) as recorder:
        command: list[str | Path] = [
            _environment(client) / "python",
            _SCRIPTS / "generated_everything.py",
            recorder.url,
        ]
        seen = json.loads(_run([*command, _PACKAGE, package_url, *manifests, client], stack).splitlines()[-1])

    is_newest = client.endswith("1.8.5")
    later = {
        "archived": "STORAGESTATE_ARCHIVED",
        "unarchived": "STORAGESTATE_AVAILABLE",
        "default set back": True,
        "multi-user": False,
    }
    assert seen == {
        **(later if is_newest else {}),
        "experiment": "of a generated client",
        "experiments": True,
        "default version": True,
        "template": True,
        "version template": True,
        "version": "second",
        "versions": [f"{client} by URL", "second"],
        "pipelines": True,
        "status": "Succeeded",
        "artifact": True,
        "reported": ["OK", "DUPLICATE_REPORTING"],
        "metric": 0.5,
        "run archived": "STORAGESTATE_ARCHIVED",
        "run unarchived": None,
        "retried": "Failed",
        "terminated": "Failed",
        "runs": ["done", "fails", "waits"],
        "deleted run": 404,
        "cron": "0 0 0 1 1 *",
        "enabled": True,
        "disabled": True,
        "jobs": True,
        "deleted job": 404,
        "deleted version": 404,
        "deleted pipeline": 404,
        "deleted experiment": 404,
        "never called": [],
    }
    _keep(evidence, client, recorder)


@pytest.mark.parametrize("client", ["kfp-0.1.38", "kfp-0.5.1", "kfp-1.0.4", "kfp-1.8.22"])
def test_the_sdk_gets_through_all_its_methods(stack: Stack, client: str, evidence: Collector) -> None:
    with recording(stack.url) as recorder:
        python = _environment(client) / "python"
        command: list[str | Path] = [python, _SCRIPTS / "sdk_everything.py", recorder.url, _PACKAGE, client]
        seen = json.loads(_run(command, stack).splitlines()[-1])

    always = {
        "same experiment": True,
        "experiment": True,
        "experiments": True,
        "pipeline": True,
        "status": "Succeeded",
        "runs": ["by package", "by pipeline"],
        "run": "by pipeline",
        "paged": ["by package", "by pipeline"],
        "never called": [],
    }
    assert {name: seen[name] for name in always} == always
    if client != "kfp-0.1.38":
        assert (seen["job"], seen["jobs"]) == ("0 0 0 1 1 *", True)
    if client == "kfp-1.8.22":
        assert (seen["jobs left"], seen["by name"], seen["multi-user"]) == (None, True, False)
        assert (seen["versions"], seen["archived"]) == (["kfp-1.8.22", "second"], "STORAGESTATE_ARCHIVED")
    _keep(evidence, client, recorder)


def test_the_command_gets_through_all_its_verbs(stack: Stack, evidence: Collector) -> None:
    with recording(stack.url) as recorder:

        def kfp(*words: str | Path) -> Any:
            output = _run(
                [_environment("kfp-1.8.22") / "kfp", "--endpoint", recorder.url, "--output", "json", *words], stack
            )
            return _last_document(output)

        experiment = kfp("experiment", "create", "by command")["ID"]
        kfp("experiment", "get", experiment)
        kfp("experiment", "list", "-m", "100")
        pipeline = kfp("pipeline", "upload", "-p", "by command", _PACKAGE)["Pipeline Details"]["Pipeline ID"]
        version = kfp("pipeline", "upload-version", "-p", pipeline, "-v", "second", _PACKAGE)["Version ID"]
        assert kfp("pipeline", "get", pipeline)["Pipeline Details"]["Name"] == "by command"
        kfp("pipeline", "list", "-m", "100")
        # Left out: `pipeline list-versions` of 1.8.22 fails before it asks, for its client does not know its arguments.
        run = kfp("run", "submit", "-e", "by command", "-r", "by command", "-p", pipeline, "rows=100")
        run_id = (run[0] if isinstance(run, list) else run)["run id"]
        kfp("run", "get", run_id)
        assert "by command" in json.dumps(kfp("run", "list", "-e", experiment))
        job = kfp(
            *("recurring-run", "create", "--experiment-id", experiment, "--job-name", "by command"),
            *("--cron-expression", "0 0 0 1 1 *", "--max-concurrency", "1", "--disabled", "--pipeline-id", pipeline),
        )["Recurring Run ID"]
        kfp("recurring-run", "get", job)
        kfp("recurring-run", "list", "-e", experiment)
        kfp("recurring-run", "delete", job)
        kfp("pipeline", "delete-version", version)
        kfp("pipeline", "delete", pipeline)

    assert recorder.succeeded() >= {
        "E1",
        "E2",
        "E3",
        "P2",
        "P3",
        "P4",
        "P6",
        "P7",
        "V4",
        "R1",
        "R2",
        "R3",
        "J1",
        "J2",
        "J3",
        "J4",
    }
    _keep(evidence, "kfp command-1.8.22", recorder)


def _keep(evidence: Collector, client: str, recorder: Recorder) -> None:
    assert [each for each in recorder.exchanges if each.status >= 500] == []
    for operation in recorder.succeeded():
        evidence.driven_by(client, operation)


def _last_document(output: str) -> Any:
    """The JSON that the command ends with; lines for people may stand before it."""
    for at, character in enumerate(output):
        if character in "[{" and (at == 0 or output[at - 1] == "\n"):
            try:
                return json.loads(output[at:])
            except ValueError:
                continue
    return None


def _environment(client: str) -> Path:
    folder = _ROOT / ".clients" / client / "bin"
    if not folder.is_dir():
        missing = f"{client} is not installed; `make clients` does it"
        if client in _NEED_AN_OLDER_PYTHON:
            pytest.skip(f"{missing} where there is a Python 3.7")
        pytest.fail(missing)
    return folder


def _run(command: Sequence[str | Path], stack: Stack) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=_WITHIN_SECONDS,
        env={"PATH": os.environ["PATH"], "HOME": str(stack.data_dir), "LANG": "C.UTF-8"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{stack.logs()}"
    return done.stdout
