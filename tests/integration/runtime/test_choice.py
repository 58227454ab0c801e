"""Which runtime a step runner chooses, which interpreter it gives to steps, and what tests demand of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.embedded.console import Console
from services.run.engine.embedded.runner.protocol import End
from tests.integration.runtime.conftest import Runner
from tests.support.step_sandbox import demand_full_sandbox


@pytest.fixture
def virtual_environment(mortal_runner: Runner) -> Path:
    """With a package that no other interpreter has, and without pip."""
    made = mortal_runner.room / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    (site_packages,) = made.glob("lib/python*/site-packages")
    (site_packages / "only_here.py").write_text("here = 'only here'\n")
    return made


async def test_the_python_of_a_virtual_environment_is_what_steps_run_with_its_packages(
    mortal_runner: Runner, virtual_environment: Path
) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STEP_PYTHON=str(virtual_environment / "bin" / "python"))
    info = await mortal_runner.client.info()
    assert info.weaker is not None
    assert info.weaker.startswith("steps cannot install packages: ")
    code = "import only_here, sys; print(only_here.here, sys.prefix)"
    of_a_child = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    _, log = await mortal_runner.shell(
        f"python -c '{code}'; python3 -c '{code}'; python3 -c '{of_a_child}' -c '{code}'"
    )
    assert log.splitlines() == [f"only here {virtual_environment}"] * 3


async def test_every_step_has_the_variables_of_the_setting_unless_its_pipeline_says_otherwise(
    mortal_runner: Runner,
) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STEP_ENVIRONMENT="NO_PROXY=a,b WHO='the setting'")
    _, log = await mortal_runner.shell('echo "$NO_PROXY $WHO"', env={"WHO": "the pipeline"})
    assert log == "a,b the pipeline\n"


async def test_a_python_is_found_by_its_name_too(mortal_runner: Runner, virtual_environment: Path) -> None:
    mortal_runner.stop()
    path = f"{virtual_environment / 'bin'}:{os.environ['PATH']}"
    mortal_runner.start(HEADRACE_STEP_PYTHON="python3", PATH=path)
    _, log = await mortal_runner.shell("python3 -c 'import only_here; print(only_here.here)'")
    assert log == "only here\n"


@pytest.mark.parametrize("python", ["/no/python3", "/no/such/place/python3", "no-python-has-this-name"])
async def test_where_the_chosen_python_is_none_other_steps_run_and_the_reason_is_said(
    mortal_runner: Runner, python: str
) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STEP_PYTHON=python)
    info = await mortal_runner.client.info()
    assert info.runtime == "bubblewrap"
    assert info.weaker == f"no python for steps: there is no program {python}; set HEADRACE_STEP_PYTHON"
    ended, log = await mortal_runner.shell("echo ran")
    assert (ended.exit_code, log) == (0, "ran\n")


@pytest.mark.parametrize("engine", ["docker", "podman"])
async def test_where_containers_are_wanted_and_none_can_be_had_no_step_runs_in_anything_else(
    mortal_runner: Runner, engine: str
) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_RUNTIME=engine, PATH=str(mortal_runner.room))
    info = await mortal_runner.client.info()
    assert info.runtime == "none"
    assert info.weaker == (
        f"no {engine}: there is no command {engine}; "
        "start the engine and let this user reach it, or set HEADRACE_RUNTIME=process"
    )
    ended = await mortal_runner.run(mortal_runner.spec("true", image="alpine"))
    assert (ended.end, ended.reason) == (End.COULD_NOT_START, info.weaker)


async def test_with_neither_a_sandbox_nor_an_engine_no_step_runs(mortal_runner: Runner) -> None:
    mortal_runner.stop()
    mortal_runner.start(HEADRACE_STEP_BUBBLEWRAP="/bin/false", PATH=str(mortal_runner.room))
    info = await mortal_runner.client.info()
    assert info.runtime == "none"
    assert info.weaker is not None
    assert info.weaker.startswith("no sandbox: ")
    assert info.weaker.endswith("; or start docker or podman")


async def test_what_a_runner_complains_of_is_said_by_the_console_of_a_stack(mortal_runner: Runner) -> None:
    mortal_runner.stop()
    said: list[str] = []
    console = Console([mortal_runner.room / "runner.log"], say=said.append)
    mortal_runner.start(HEADRACE_STEP_PYTHON="/no/python3")
    await mortal_runner.client.info()
    console.read_on()
    assert len(said) == 1
    assert " step-runner  WARNING weaker: no python for steps" in said[0]


def test_what_demands_the_full_sandbox_passes_in_it(shared_runner: Runner) -> None:
    demand_full_sandbox(shared_runner.room / "runner.sock")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            {"HEADRACE_RUNTIME": "process", "HEADRACE_STEP_BUBBLEWRAP": "/bin/false"},
            "less than the full sandbox: none; no sandbox: ",
        ),
        ({"HEADRACE_STEP_PYTHON": "/no/python3"}, "less than the full sandbox: bubblewrap; no python for steps"),
    ],
)
def test_what_demands_the_full_sandbox_fails_in_less(mortal_runner: Runner, setting: dict[str, str], said: str) -> None:
    mortal_runner.stop()
    mortal_runner.start(**setting)
    with pytest.raises(pytest.fail.Exception, match=said):
        demand_full_sandbox(mortal_runner.room / "runner.sock")
