"""docker-compose.yml brought up for real, on the public images or on their stand-ins."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.containers.house import House
from tests.containers.images import PROJECT
from tests.support.api import Api, workflow_of

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]

HEALTHY_WITHIN_SECONDS = 60
RUN_WITHIN_SECONDS = 90

OF_OUR_IMAGE = (
    "gateway",
    "experiment",
    "pipeline-registry",
    "run",
    "job-scheduler",
    "metrics",
    "notifier",
    "run-controller",
    "step-runner",
)

ASK_THE_RUNNER = """
import asyncio, json, os
from services.run.engine.embedded.runner.client import RunnerClient
info = asyncio.run(RunnerClient(os.environ["HEADRACE_STEP_RUNNER_SOCKET"]).info())
print(json.dumps({"runtime": info.runtime, "weaker": info.weaker}))
"""

LOOK_AROUND = """
set -eu
echo own > /etc/mine && echo own > /usr/mine && echo own > /mine
grep -q nameserver /etc/resolv.conf
test -z "$(ls -A /headrace 2>/dev/null)" || { echo "sees the other steps"; exit 1; }
test -z "$(ls -A /opt/headrace 2>/dev/null)" || { echo "sees the server's code"; exit 1; }
python3 - <<'PYTHON'
import os, socket
assert os.getuid() != 0
secrets = [name for name in os.environ if name.startswith("HEADRACE_")]
assert not secrets, secrets
for server in ("postgres", "nats", "minio", "run"):
    try:
        socket.getaddrinfo(server, 1)
    except socket.gaierror:
        continue
    raise SystemExit(f"knows the way to {server}")
socket.create_connection(("gateway", 8888), timeout=5).close()
PYTHON
"""


@pytest.fixture(scope="module")
def load_before() -> float:
    """Of the machine: how many want a processor of it."""
    return os.getloadavg()[0]


@pytest.fixture(scope="module")
def up(house: House, load_before: float) -> float:
    return house.up()


@pytest.fixture
def api(house: House, up: float) -> Api:
    return Api(house.url)


def test_the_house_is_healthy_within_a_minute(up: float, load_before: float) -> None:
    print(f"\nhealthy after {up:.1f} s")
    if load_before > 2 * (os.cpu_count() or 1):
        pytest.skip(f"healthy after {up:.1f} s, which says nothing: the machine was busy (load {load_before:.1f})")
    assert up <= HEALTHY_WITHIN_SECONDS


def test_steps_run_in_the_full_sandbox(house: House, up: float) -> None:
    info = json.loads(house.run_in("step-runner", "python", "-c", ASK_THE_RUNNER))
    assert info == {"runtime": "bubblewrap", "weaker": None}


def test_a_real_pipeline_runs_to_its_end(api: Api) -> None:
    content = (PROJECT / "infra/examples/ml-train-deploy.yaml").read_bytes()
    pipeline = api.upload("/apis/v1beta1/pipelines/upload?name=ml-train-deploy", "ml.yaml", content)
    spec = {"pipeline_id": pipeline["id"], "parameters": [{"name": "rows", "value": "400"}]}
    created = api.post("/apis/v1beta1/runs", {"name": "in containers", "pipeline_spec": spec})
    detail = api.run_when(created["run"]["id"], within_seconds=RUN_WITHIN_SECONDS)
    assert detail["run"]["status"] == "Succeeded", _why(detail)
    assert {metric["name"] for metric in detail["run"]["metrics"]} == {"logistic-accuracy", "majority-accuracy"}


def test_a_step_may_write_anywhere_and_reaches_the_gateway_but_neither_servers_nor_secrets(api: Api) -> None:
    detail = api.run_when(_run(api, "look around", LOOK_AROUND), within_seconds=RUN_WITHIN_SECONDS)
    assert detail["run"]["status"] == "Succeeded", _why(detail)


@pytest.mark.parametrize("service", OF_OUR_IMAGE)
def test_our_processes_are_no_root_have_no_capability_and_write_to_volumes_alone(
    house: House, up: float, service: str
) -> None:
    status = house.run_in(service, "cat", "/proc/self/status")
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert told["Uid"].split()[0] == "10001"
    assert int(told["CapEff"], 16) == 0
    assert told["NoNewPrivs"] == "1"
    assert house.state_of(service)["HostConfig"]["ReadonlyRootfs"] is True


def test_what_was_recorded_is_there_after_the_house_was_taken_down_and_brought_up_again(house: House, api: Api) -> None:
    run_id = _run(api, "before", "true")
    assert api.run_when(run_id, within_seconds=RUN_WITHIN_SECONDS)["run"]["status"] == "Succeeded"
    house.compose("down", "--timeout", "20")
    house.up()
    assert api.get(f"/apis/v1beta1/runs/{run_id}")["run"]["status"] == "Succeeded"
    again = api.run_when(_run(api, "after", "true"), within_seconds=RUN_WITHIN_SECONDS)
    assert again["run"]["status"] == "Succeeded", _why(again)


def _run(api: Api, name: str, script: str) -> str:
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "containers-"},
        "spec": {
            "entrypoint": "main",
            "templates": [
                {"name": "main", "container": {"image": "any", "command": ["sh", "-c"], "args": [script]}},
            ],
        },
    }
    spec = {"workflow_manifest": json.dumps(manifest)}
    return str(api.post("/apis/v1beta1/runs", {"name": name, "pipeline_spec": spec})["run"]["id"])


def _why(detail: Any) -> str:
    """What each step said of its end."""
    workflow = workflow_of(detail)
    nodes = (workflow["status"].get("nodes") or {}).values()
    return "\n".join(f"{node['displayName']}: {node['phase']} {node.get('message', '')}" for node in nodes)
