"""The stack of somebody who is not root: that is whom it is made for, and many a test machine knows only root."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.ordinary_user import AS_NOBODY, NOBODY, PYTHON, PYTHON_PATH, why_there_is_none
from tests.support.running_stack import Started, started

pytestmark = pytest.mark.timeout(240)

_HEADRACE = (PYTHON if AS_NOBODY else sys.executable, "-m", "infra.cli")


@pytest.fixture(scope="module", autouse=True)
def there_is_one() -> None:
    if (reason := why_there_is_none()) is not None:
        pytest.skip(reason)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        if AS_NOBODY:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


@pytest.fixture
def variables(folder: Path) -> dict[str, str]:
    """The programs of the wheels lie beside our own python. The home is one that the user cannot enter."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = folder / "home"
    home.mkdir(mode=0)
    return {"PYTHONPATH": PYTHON_PATH, "PATH": path, "HOME": str(home)}


async def test_an_ordinary_user_starts_the_stack_and_runs_a_pipeline(folder: Path, variables: dict[str, str]) -> None:
    command = (*_HEADRACE, "up")
    async with started(folder / "data", command=command, variables=variables, as_user=AS_NOBODY) as stack:
        await stack.ready()
        assert await asyncio.to_thread(_status_of_a_run, stack) == "Succeeded"
        assert await stack.stop() == 0
        assert await stack.complaints() == ""
        assert stack.living() == []


@pytest.mark.skipif(not AS_NOBODY, reason="only root can make a folder of another user's")
async def test_the_folder_of_another_user_is_refused_in_one_line(folder: Path, variables: dict[str, str]) -> None:
    other = folder / "data"
    other.mkdir(mode=0o700)
    command = (*_HEADRACE, "up", "--data-dir", str(other))
    async with started(other, command=command, variables=variables, as_user=AS_NOBODY) as stack:
        assert await stack.ended() == 1
        assert await stack.complaints() == (
            f"headrace: cannot start: the data directory {other} cannot be used: Permission denied\n"
        )


def _status_of_a_run(stack: Started) -> str:
    api = Api(f"http://127.0.0.1:{stack.port}")
    container = {"image": "python:3", "command": ["sh", "-c", 'python3 -c "print(6 * 7)" > /tmp/answer']}
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "first-"},
        "spec": {"entrypoint": "main", "templates": [{"name": "main", "container": container}]},
    }
    request = {"name": "first", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}
    run_id = api.post("/apis/v1beta1/runs", request)["run"]["id"]
    status: str = api.run_when(run_id, within_seconds=60)["run"]["status"]
    return status
