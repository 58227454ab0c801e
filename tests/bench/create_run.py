"""Creating a run with a real 50 KB manifest, from the client to the committed row, and back.

The relay and every subscriber work; the engine is paused, so that only the recording is measured. The reply carries
the manifest twice, as the API has it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from tests.bench.creation import Budgets, client, compare, poster, renamed
from tests.bench.figures import Result
from tests.bench.house import House, standing

NAME = "create-run"
ABOUT = "create a run through the gateway: 50 KB manifest, relay and subscribers on, engine paused"

_MANIFEST = Path(__file__).parents[1] / "pipelines" / "sdk-1.8.22" / "own-ml-train-deploy.yaml"
_BUDGETS = Budgets(p50_ms=5, p99_ms=25, per_second=1000)


async def measure() -> Result:
    with standing() as house, house.engine_paused():
        async with client() as session:
            by_manifest, by_version = await _bodies(house, session)
            url = f"{house.url}/apis/v1beta1/runs"
            ways = {
                "create run by manifest": poster(session, url, by_manifest),
                "create run by version": poster(session, url, by_version),
            }
            for send in ways.values():
                await send(0)
            rows, notes = await compare(
                house,
                session,
                ways=ways,
                floor_body=by_manifest,
                table="run.runs",
                unique=("id", "workflow_name"),
                budgets=_BUDGETS,
            )
    sizes = f"requests of {len(by_manifest()) / 1024:.0f} KiB by manifest, {len(by_version())} bytes by version"
    return Result(rows=tuple(rows), notes=tuple(f"create run: {note}" for note in (sizes, *notes)))


async def _bodies(house: House, session: aiohttp.ClientSession) -> tuple[Callable[[], bytes], Callable[[], bytes]]:
    """Two requests for the same run, as the SDK and the UI send them."""
    experiment = await _post(session, f"{house.url}/apis/v1beta1/experiments", json={"name": "bench"})
    form = aiohttp.FormData()
    form.add_field("uploadfile", _MANIFEST.read_bytes(), filename=_MANIFEST.name)
    pipeline = await _post(session, f"{house.url}/apis/v1beta1/pipelines/upload?name=bench", data=form)
    owner = {"key": {"type": "EXPERIMENT", "id": experiment["id"]}, "relationship": "OWNER"}
    creator = {
        "key": {"type": "PIPELINE_VERSION", "id": pipeline["default_version"]["id"]},
        "relationship": "CREATOR",
    }
    manifest = msgspec.json.encode(yaml.safe_load(_MANIFEST.read_text())).decode()
    return (
        renamed({"pipeline_spec": {"workflow_manifest": manifest}, "resource_references": [owner]}),
        renamed({"resource_references": [owner, creator]}),
    )


async def _post(session: aiohttp.ClientSession, url: str, **body: Any) -> Any:
    async with session.post(url, **body) as answer:
        said = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {said[:300]!r}")
        return msgspec.json.decode(said)
