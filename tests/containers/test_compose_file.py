"""docker-compose.yml read beside the code that it starts; no container engine is needed."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import msgspec
import pytest
import yaml

from infra.docker import nats_config
from infra.embedded import prepare
from infra.embedded.preflight import variables_of
from infra.nats.permissions import USER_NAMES
from infra.postgres.roles import ROLES
from shared.settings import load, variable_of
from tests.containers.images import PROJECT
from tests.support.servers import MINIO_IMAGE, NATS_IMAGE, POSTGRES_IMAGE

_COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
_SERVICES: dict[str, Any] = _COMPOSE["services"]
_EXAMPLE = dict(
    line.split("=", 1)
    for line in (PROJECT / ".env.example").read_text().splitlines()
    if not line.startswith("#") and line
)

_SETTINGS_FILE = "infra/docker/settings.env"
_SETTINGS = {
    "gateway": "gateway.settings:Settings",
    "experiment": "services.experiment.settings:Settings",
    "pipeline-registry": "services.pipeline_registry.settings:Settings",
    "run": "services.run.settings:Settings",
    "job-scheduler": "services.job_scheduler.settings:Settings",
    "metrics": "services.metrics.settings:Settings",
    "notifier": "services.notifier.settings:Settings",
    "run-controller": "services.run.settings:ControllerSettings",
    "step-runner": "services.run.engine.embedded.runner.settings:RunnerSettings",
}


def test_what_is_no_secret_is_told_by_a_file_of_the_operators() -> None:
    assert _EXAMPLE["HEADRACE_SETTINGS_FILE"] == _SETTINGS_FILE
    for name in _SETTINGS:
        assert _SERVICES[name]["env_file"] == [f"${{HEADRACE_SETTINGS_FILE:-{_SETTINGS_FILE}}}"]


def test_the_file_of_settings_tells_defaults_of_settings_that_take_effect() -> None:
    shown = [line for line in (PROJECT / _SETTINGS_FILE).read_text().splitlines() if line.startswith("#HEADRACE_")]
    for variable, _, default in (line.removeprefix("#").partition("=") for line in shown):
        knowing = [
            (name, field)
            for name, place in {**_SETTINGS, "any": "shared.logs:LogSettings"}.items()
            for field in _fields(place)
            if variable_of(field.name) == variable
        ]
        assert knowing, f"no process knows {variable}"
        for name, field in knowing:
            assert variable not in _SERVICES.get(name, {"environment": {}})["environment"]
            is_made = field.default_factory is not msgspec.NODEFAULT
            value = field.default_factory() if is_made else field.default
            alone = msgspec.defstruct("Alone", [(field.name, field.type, value)], kw_only=True)
            assert load(alone, {variable: default}) == alone(), f"{name} has another {variable}"


@pytest.mark.parametrize("name", _SETTINGS)
def test_every_process_is_told_what_it_must_be_told_and_nothing_it_does_not_know(name: str) -> None:
    place = _SETTINGS[name]
    fields = _fields(place)
    told = set(_SERVICES[name]["environment"])
    assert {variable_of(field.name) for field in fields if field.required} - told == set()
    # As every process does, it also knows how to log, and as every service, whom to believe.
    assert told - variables_of(place, "shared.logs:LogSettings", "shared.identity:Settings") == set()


@pytest.mark.parametrize("name", _SETTINGS)
def test_every_process_is_asked_whether_it_is_ready_and_answers_no_one_outside_but_the_gateway(name: str) -> None:
    told = _SERVICES[name]
    assert told["healthcheck"]["test"][-1].endswith("infra/docker/ready.py")
    assert "HEADRACE_LISTEN_PORT" in told["environment"]
    assert ("ports" in told) == (name == "gateway")


def test_the_step_runner_alone_is_confined_less_and_nobody_is_privileged() -> None:
    for name, service in _SERVICES.items():
        relaxed = [option for option in service["security_opt"] if option.endswith("unconfined")]
        assert bool(relaxed) == (name == "step-runner"), name
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert "privileged" not in service


def test_data_is_kept_in_named_volumes_alone() -> None:
    mounted = {mount.split(":")[0] for service in _SERVICES.values() for mount in service.get("volumes", ())}
    assert mounted == {*_COMPOSE["volumes"], "./infra"}
    assert _SERVICES["roles"]["volumes"] == ["./infra:/infra:ro"]


def test_preparation_is_told_all_it_needs() -> None:
    needed = {variable_of(field.name) for field in msgspec.structs.fields(prepare.Settings) if field.required}
    assert needed - set(_SERVICES["prepare"]["environment"]) == set()


def test_every_user_of_the_bus_has_a_password_and_a_place_to_say_it() -> None:
    variables = {f"HEADRACE_NATS_{user.replace('-', '_').upper()}_PASSWORD" for user in USER_NAMES}
    assert variables <= set(_SERVICES["nats-config"]["environment"])
    assert variables <= set(_EXAMPLE)


def test_every_role_of_the_database_has_a_password_and_a_place_to_say_it() -> None:
    variables = {f"HEADRACE_{role.upper()}_DATABASE_PASSWORD" for role in ROLES}
    assert variables <= set(_SERVICES["roles"]["environment"])
    assert variables <= set(_EXAMPLE)
    script = (PROJECT / "infra/docker/roles.sql").read_text()
    assert {f"\\getenv {role}_password HEADRACE_{role.upper()}_DATABASE_PASSWORD" for role in ROLES} <= set(
        script.splitlines()
    )


def test_the_example_names_every_secret_and_nothing_else() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (PROJECT / "docker-compose.yml").read_text()))
    assert asked == set(_EXAMPLE)


def test_no_process_is_told_the_password_of_another() -> None:
    for name in _SETTINGS:
        # The controller is the run service's second process, and logs in to its schema.
        own = {"run-controller": {"RUN_CONTROLLER_NATS", "RUN_DATABASE"}}.get(name, {name.replace("-", "_").upper()})
        text = yaml.safe_dump(_SERVICES[name]["environment"])
        for variable in re.findall(r"\$\{(\w+_PASSWORD)", text):
            owner, kind = _owner_of(variable)
            assert owner in own or f"{owner}_{kind}" in own, f"{name} is told {variable}"


def test_the_configuration_of_the_bus_is_for_its_server_alone_and_holds_the_passwords_given(tmp_path: Any) -> None:
    passwords = {f"HEADRACE_NATS_{user.replace('-', '_').upper()}_PASSWORD": f"{user}-x" for user in USER_NAMES}
    assert nats_config.main({"HEADRACE_NATS_DIR": str(tmp_path), **passwords}) == 0
    file = tmp_path / "nats.conf"
    assert file.stat().st_mode & 0o777 == 0o600
    config = msgspec.json.decode(file.read_bytes())
    assert {user["user"]: user["password"] for user in config["authorization"]["users"]} == {
        user: f"{user}-x" for user in USER_NAMES
    }
    assert config["http"] == "127.0.0.1:8222"


@pytest.mark.parametrize("password", ["", "with space", "p@ss", 'qu"ote'])
def test_a_password_that_would_break_a_url_is_refused_by_name(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], password: str
) -> None:
    passwords = {f"HEADRACE_NATS_{user.replace('-', '_').upper()}_PASSWORD": "fine" for user in USER_NAMES}
    told = {"HEADRACE_NATS_DIR": str(tmp_path), **passwords, "HEADRACE_NATS_RUN_PASSWORD": password}
    assert nats_config.main(told) == 2
    assert capsys.readouterr().err.startswith("HEADRACE_NATS_RUN_PASSWORD ")
    assert list(tmp_path.iterdir()) == []


def test_tests_in_containers_use_the_images_of_the_house() -> None:
    assert {_SERVICES["postgres"]["image"], _SERVICES["nats"]["image"], _SERVICES["minio"]["image"]} == {
        POSTGRES_IMAGE,
        NATS_IMAGE,
        MINIO_IMAGE,
    }


def _fields(place: str) -> tuple[msgspec.structs.FieldInfo, ...]:
    module, _, struct = place.partition(":")
    return msgspec.structs.fields(getattr(import_module(module), struct))


def _owner_of(variable: str) -> tuple[str, str]:
    if found := re.fullmatch(r"HEADRACE_NATS_(\w+)_PASSWORD", variable):
        return found[1], "NATS"
    found = re.fullmatch(r"HEADRACE_(\w+)_DATABASE_PASSWORD", variable)
    assert found, variable
    return found[1], "DATABASE"
