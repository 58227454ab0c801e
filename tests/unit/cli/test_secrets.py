"""What `headrace secrets` prints."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from infra.cli import main


def _secrets(*arguments: str, **environment: str) -> dict[tuple[str, str], Any]:
    result = CliRunner().invoke(main, ["secrets", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    items = json.loads(result.stdout)["items"]
    assert {(each["apiVersion"], each["kind"]) for each in items} == {("v1", "Secret")}
    return {(each["metadata"]["namespace"], each["metadata"]["name"]): each["stringData"] for each in items}


def test_no_two_passwords_are_the_same_and_none_is_made_twice() -> None:
    first, second = _secrets(), _secrets()
    passwords = [value for at in (("headrace", "postgres"), ("headrace", "nats")) for value in first[at].values()]
    assert len(set(passwords)) == len(passwords)
    assert not {*passwords} & {
        value for at in (("headrace", "postgres"), ("headrace", "nats")) for value in second[at].values()
    }


def test_processes_log_in_with_what_the_servers_are_told() -> None:
    made = _secrets("--postgres", "pg.example:6432/kfp?sslmode=require", "--nats", "nats.example:4223")
    role = made["headrace", "postgres"]["HEADRACE_JOB_SCHEDULER_DATABASE_PASSWORD"]
    user = made["headrace", "nats"]["HEADRACE_NATS_JOB_SCHEDULER_PASSWORD"]
    own = made["headrace", "job-scheduler"]
    assert own["HEADRACE_DATABASE_URL"] == f"postgresql://job_scheduler:{role}@pg.example:6432/kfp?sslmode=require"
    assert own["HEADRACE_NATS_URL"] == f"nats://job-scheduler:{user}@nats.example:4223"


def test_what_is_there_already_is_taken_over_and_steps_get_the_object_stores_keys_in_their_own_namespace() -> None:
    made = _secrets(
        "--namespace",
        "here",
        "--runs-namespace",
        "there",
        POSTGRES_PASSWORD="superuser",
        HEADRACE_OBJECT_STORE_ACCESS_KEY="key",
        HEADRACE_OBJECT_STORE_SECRET_KEY="secret",
    )
    assert made["here", "postgres"]["POSTGRES_PASSWORD"] == "superuser"
    assert made["here", "run"]["HEADRACE_OBJECT_STORE_ACCESS_KEY"] == "key"
    in_there = {name: values for (namespace, name), values in made.items() if namespace == "there"}
    assert in_there == {"mlpipeline-minio-artifact": {"accesskey": "key", "secretkey": "secret"}}
