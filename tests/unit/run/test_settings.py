"""What the processes of the run service are told, and what they are not told in so many words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.run.domain import EngineName
from services.run.engine.embedded.reconcile import Limits
from services.run.settings import ControllerSettings
from shared.settings import SettingsError, load

NEEDED = {
    f"HEADRACE_{name}": "x"
    for name in (
        *("DATABASE_URL", "NATS_URL", "OBJECT_STORE_URL", "OBJECT_STORE_ACCESS_KEY", "OBJECT_STORE_SECRET_KEY"),
        *("STEP_RUNNER_SOCKET", "STEPS_DIR", "ENGINE_DATA_DIR"),
    )
}


def controller(**variables: str) -> ControllerSettings:
    return load(ControllerSettings, NEEDED | {f"HEADRACE_{name}": value for name, value in variables.items()})


def test_runs_stop_where_the_engine_stops_them_unless_told_otherwise() -> None:
    settings = controller()
    assert Limits(depth=settings.most_levels, nodes=settings.most_nodes) == Limits()


@pytest.mark.parametrize("variable", ["MOST_LEVELS", "MOST_NODES"])
def test_a_run_of_nothing_is_refused_as_a_limit(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^HEADRACE_{variable}='0': "):
        controller(**{variable: "0"})


def test_what_images_run_is_told_in_json() -> None:
    settings = controller(IMAGE_ENTRYPOINTS='{"docker/whalesay": ["cowsay", "-d"]}')
    assert settings.runner.machine.entrypoint("docker/whalesay:latest") == ("cowsay", "-d")
    for wrong in ("cowsay", '{"docker/whalesay": []}', '{"docker/whalesay": "cowsay"}'):
        with pytest.raises(SettingsError, match=r"^HEADRACE_IMAGE_ENTRYPOINTS="):
            controller(IMAGE_ENTRYPOINTS=wrong)


def test_paths_that_show_what_the_server_keeps_are_not_for_steps(tmp_path: Path) -> None:
    for name in ("engine", "steps", "shared"):
        (tmp_path / name).mkdir()
    ours = {"ENGINE_DATA_DIR": str(tmp_path / "engine"), "STEPS_DIR": str(tmp_path / "steps")}
    shared = f"{tmp_path}/shared"
    assert controller(**ours, HOST_PATHS=shared).runner.machine.host_directory(f"{shared}/x") == (shared, "x")
    for path, reason in (
        (str(tmp_path), "would show steps what is kept in"),
        (f"{tmp_path}/engine", "would show steps what is kept in"),
        (f"{tmp_path}/absent", "there is no directory"),
        ("shared", "is not the whole path of a directory"),
        (f"{shared}/../engine", "is not the whole path of a directory"),
    ):
        with pytest.raises(SettingsError, match=reason):
            controller(**ours, HOST_PATHS=path)


def test_argo_needs_no_place_for_steps_and_the_embedded_engine_does() -> None:
    steps = ("HEADRACE_STEP_RUNNER_SOCKET", "HEADRACE_STEPS_DIR", "HEADRACE_ENGINE_DATA_DIR")
    backing = {name: value for name, value in NEEDED.items() if name not in steps}
    settings = load(ControllerSettings, backing | {"HEADRACE_ENGINE": "argo"})
    assert settings.engine is EngineName.ARGO
    for engine in ("embedded", "external"):
        for missing in steps:
            told = {name: value for name, value in NEEDED.items() if name != missing} | {"HEADRACE_ENGINE": engine}
            with pytest.raises(SettingsError, match=f"^{missing} is not set$"):
                load(ControllerSettings, told)


def test_a_controller_is_made_of_no_engine_before_it_is_told_of_which() -> None:
    check = "import sys, services.run.controller_app; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, check=True, text=True, timeout=60
    ).stdout.split()
    assert "services.run.controller" in modules
    engines = ("services.run.engine.argo", "services.run.engine.embedded.driver", "kubernetes_asyncio")
    assert not {module for module in modules if module.startswith(engines)}
