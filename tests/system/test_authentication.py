"""A whole stack that lets in holders of tokens alone: as the SDK sees it, and as its services see it."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from shared.bearer import digest_of
from tests.support.hooks import httpx_client
from tests.support.recorder import recording
from tests.support.running_stack import REAL, started

AGENTS_TOKEN = "the agent's token"
_ROOT = Path(__file__).parents[2]
_SDK = _ROOT / ".clients" / "kfp-1.8.22" / "bin" / "python"
_V1 = "/apis/v1beta1"
_MANIFEST = json.dumps(
    {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "hello-"},
        "spec": {
            "entrypoint": "hello",
            "templates": [{"name": "hello", "container": {"image": "busybox", "command": ["echo", "hello"]}}],
        },
    }
)
_SCRIPT = Path(__file__).parent / "scripts" / "kfp_with_token.py"


async def test_a_token_opens_the_stack_and_names_its_holder_while_the_services_stay_closed(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    variables = {
        "HEADRACE_AUTH": "tokens",
        "HEADRACE_AUTH_TOKENS_FILE": str(file),
        "HEADRACE_IDENTITY_KEY": secrets.token_hex(32),
        "HEADRACE_AGENT_TOKEN_SHA256": digest_of(AGENTS_TOKEN),
    }
    async with started(tmp_path / "data", command=REAL, variables=variables) as stack:
        await stack.ready()
        url = f"http://127.0.0.1:{stack.port}"
        tokens = {
            name: (await _run(sys.executable, "-m", "infra.cli", "token", "--file", str(file), "create", name)).strip()
            for name in ("ci", "anna")
        }
        for token in tokens.values():
            await _until_known(url, token)

        with recording(url) as recorder:
            seen = json.loads(await _run(str(_SDK), str(_SCRIPT), recorder.url, tokens["ci"]))
        made = {name: await _made_by(url, name, token) for name, token in tokens.items()}
        found = {name: await _found_by_maker(url, f"token:{name}", tokens["ci"]) for name in tokens}
        reported = [await _reported(url, made["ci"], token) for token in (tokens["ci"], AGENTS_TOKEN)]
        directly = await _asked_directly(tmp_path / "data")
        await stack.stop()

    assert seen["healthz"] is False
    assert seen["experiment"] == "with a token"
    assert set(seen["listed"]) == {"Default", "with a token"}
    assert seen["without"] == [401, 'Bearer realm="headrace"', 16]
    assert seen["wrong"] == [401, 'Bearer realm="headrace", error="invalid_token"', 16]
    assert found == {name: {"runs": [name], "jobs": [name]} for name in tokens}
    assert reported[0] == (403, "Reports are accepted from the persistence agent alone.")
    assert reported[1][0] == 400
    assert reported[1][1].startswith(f"Run {made['ci']} is driven by the engine of this installation")
    assert directly == {
        "experiment": 403,
        "pipeline-registry": 403,
        "run": 403,
        "job-scheduler": 403,
        "metrics": 403,
    }


async def _until_known(url: str, token: str) -> None:
    """A running gateway sees the file a moment after it was written."""
    async with (
        httpx_client(base_url=url, headers=_bearer(token)) as client,
        asyncio.timeout(20),
    ):
        while (await client.get("/apis/v1beta1/runs")).status_code != 200:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.05)


async def _made_by(url: str, name: str, token: str) -> str:
    """A run and a job called as the holder of the token. Returns the run's id."""
    spec = {"workflow_manifest": _MANIFEST}
    async with httpx_client(base_url=f"{url}{_V1}", headers=_bearer(token), timeout=30) as client:
        job = {"name": name, "pipeline_spec": spec, "max_concurrency": "1"}
        made = await client.post("/jobs", json=job)
        assert made.status_code == 200, made.text
        made = await client.post("/runs", json={"name": name, "pipeline_spec": spec})
        assert made.status_code == 200, made.text
        return str(made.json()["run"]["id"])


async def _found_by_maker(url: str, subject: str, token: str) -> dict[str, list[str]]:
    """The names of the runs and jobs that the filter finds."""
    predicates = [{"key": "created_by", "op": "EQUALS", "string_value": subject}]
    query = {"filter": json.dumps({"predicates": predicates})}
    async with httpx_client(base_url=f"{url}{_V1}", headers=_bearer(token), timeout=30) as client:
        return {
            kind: [each["name"] for each in (await client.get(f"/{kind}", params=query)).json().get(kind, ())]
            for kind in ("runs", "jobs")
        }


async def _reported(url: str, run_id: str, token: str) -> tuple[int, str]:
    """How an agent with this token is answered."""
    metadata = {"name": "hello", "namespace": "kubeflow", "uid": "u", "labels": {"pipeline/runid": run_id}}
    async with httpx_client(base_url=f"{url}{_V1}", headers=_bearer(token), timeout=30) as client:
        answer = await client.post("/workflows", json=json.dumps({"metadata": metadata}))
        return answer.status_code, answer.json()["details"][0]["error_message"]


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def _asked_directly(data_dir: Path) -> dict[str, int]:
    """What each service answers to somebody who goes around the gateway."""
    paths = {
        "experiment": "experiments",
        "pipeline-registry": "pipelines",
        "run": "runs",
        "job-scheduler": "jobs",
        "metrics": "runs/a:reportMetrics",
    }
    ports: dict[str, Any] = json.loads((data_dir / "ports.json").read_text())
    async with httpx_client() as client:
        return {
            service: (await client.get(f"http://127.0.0.1:{ports[service]}/apis/v1beta1/{path}")).status_code
            for service, path in paths.items()
        }


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=_ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, error.decode()
    return out.decode()
