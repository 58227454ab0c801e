"""What steps get of secrets: those their pipeline names, and of the stack's own none, however they look for them."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from tests.support.api import Api, workflow_of
from tests.support.stack import Stack

_WITHIN_SECONDS = 90
_HUNT = Path(__file__).with_name("scripts") / "hunt.py"


def test_a_step_that_hunts_finds_what_it_was_given_and_no_secret_of_the_stack(stack: Stack) -> None:
    kept = stack.data_dir / "secrets.json"
    own = list(json.loads(kept.read_text()).values())
    assert len(own) > 10
    foreign = [*own, _given(stack)]
    in_environment, in_file = secrets.token_hex(24), secrets.token_hex(24)
    digests = {_digest(each): each for each in (*foreign, in_environment, in_file)}

    report = _hunt(
        stack,
        arguments=[",".join(digests), str(kept.stat().st_mtime - 1), str(stack.data_dir)],
        env=[{"name": "IN_ENVIRONMENT", "value": in_environment}],
        file=in_file,
    )

    found = {digests[digest] for digest in report["found"]}
    assert found == {in_environment, in_file}, report["found"]
    assert report["ways"] == [], "it can speak to the step runner"
    assert report["listing"] == []
    assert report["processes"] >= 4


def test_a_step_that_names_a_secret_of_the_installation_has_it(stack: Stack) -> None:
    reference = {"secretKeyRef": {"name": "given", "key": "token"}}
    log = _log_of(
        stack,
        {
            "name": "main",
            "volumes": [{"name": "v", "secret": {"secretName": "given"}}],
            "container": {
                "image": "any",
                "command": ["sh", "-c", 'printf "%s" "$TOKEN" | sha256sum; sha256sum /v/token'],
                "env": [{"name": "TOKEN", "valueFrom": reference}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            },
        },
    )
    assert [line.split()[0] for line in log.splitlines()[1:]] == [_digest(_given(stack))] * 2


def _given(stack: Stack) -> str:
    assert stack.secrets_dir is not None
    return (stack.secrets_dir / "given" / "token").read_text()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _hunt(stack: Stack, *, arguments: list[str], env: list[dict[str, str]], file: str) -> Any:
    log = _log_of(
        stack,
        {
            "name": "main",
            "inputs": {"artifacts": [{"name": "in", "path": "/tmp/inputs/in", "raw": {"data": file}}]},
            "container": {
                "image": "any",
                "command": ["python3", "-c"],
                "args": [_HUNT.read_text(), *arguments],
                "env": env,
            },
        },
    )
    return json.loads(log.splitlines()[-1])


def _log_of(stack: Stack, template: dict[str, Any]) -> str:
    """What the one step of a workflow wrote."""
    api = Api(stack.url)
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "secrets-"},
        "spec": {"entrypoint": "main", "templates": [template]},
    }
    spec = {"workflow_manifest": json.dumps(workflow)}
    run_id = api.post("/apis/v1beta1/runs", {"name": "secrets", "pipeline_spec": spec})["run"]["id"]
    (node,) = workflow_of(api.run_when(run_id, within_seconds=_WITHIN_SECONDS))["status"]["nodes"].values()
    log = api.call("GET", f"/apis/v1beta1/runs/{run_id}/nodes/{node['id']}/log").body.decode()
    assert node["phase"] == "Succeeded", log
    return log
