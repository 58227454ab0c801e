"""A whole stack that lets in holders of tokens alone: as the SDK sees it, and as its services see it."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.support.running_stack import REAL, started

_ROOT = Path(__file__).parents[2]
_SDK = _ROOT / ".clients" / "kfp-1.8.22" / "bin" / "python"
_SCRIPT = Path(__file__).parent / "scripts" / "kfp_with_token.py"


async def test_a_token_opens_the_stack_to_the_sdk_and_its_services_to_nobody(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    variables = {
        "HEADRACE_AUTH": "tokens",
        "HEADRACE_AUTH_TOKENS_FILE": str(file),
        "HEADRACE_IDENTITY_KEY": secrets.token_hex(32),
    }
    async with started(tmp_path / "data", command=REAL, variables=variables) as stack:
        await stack.ready()
        url = f"http://127.0.0.1:{stack.port}"
        token = await _run(sys.executable, "-m", "infra.cli", "token", "--file", str(file), "create", "ci")
        await _until_known(url, token.strip())

        seen = json.loads(await _run(str(_SDK), str(_SCRIPT), url, token.strip()))
        directly = await _asked_directly(tmp_path / "data")
        await stack.stop()

    assert seen["healthz"] is False
    assert seen["experiment"] == "with a token"
    assert set(seen["listed"]) == {"Default", "with a token"}
    assert seen["without"] == [401, 'Bearer realm="headrace"', 16]
    assert seen["wrong"] == [401, 'Bearer realm="headrace", error="invalid_token"', 16]
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
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client,
        asyncio.timeout(5),
    ):
        while (await client.get("/apis/v1beta1/runs")).status_code != 200:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.05)


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
    async with httpx.AsyncClient() as client:
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
