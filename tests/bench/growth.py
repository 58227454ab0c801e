"""What ten thousand requests of every kind leave behind in the memory of each process.

Caches, pools and compiled statements fill in the first part, which is why it is shown and not judged; what a process
gains in the second half, it would go on gaining.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from tests.bench.creation import SMALLEST_MANIFEST, client
from tests.bench.figures import Floor, Result, Row, Unit, median
from tests.bench.house import House, rest, standing
from tests.bench.load import Send, by_connections
from tests.bench.memory import held

NAME = "growth"
ABOUT = "memory of each process before and after 10,000 mixed requests (PSS)"

REQUESTS = 10_000
CONNECTIONS = 16

_WARM_UP_REQUESTS = 500
_PART_WITHIN_SECONDS = 60
_SETTLE_SECONDS = 2
_MOST_GROWTH_MEBIBYTES = 2.0
"""In the second half, for a process of ours. Allocators round up; a leak of half a KiB a request shows."""
_SERVERS = ("postgres", "nats", "object-store")
"""They keep what they are told to keep, up to a size of their own."""


async def measure() -> Result:
    with standing() as house, house.engine_paused():
        async with client() as session:
            asker = _Asker(house, session)
            await asker.create_experiment()
            await asker.create_run()
            send = _mixed(asker)
            before = held(house.pid)
            readings = []
            rates = []
            for requests in (_WARM_UP_REQUESTS, REQUESTS // 2, REQUESTS // 2):
                course = await by_connections(
                    send, connections=CONNECTIONS, seconds=_PART_WITHIN_SECONDS, at_most=requests
                )
                if course.answered < requests:
                    raise RuntimeError(f"only {course.answered} of {requests} requests were answered in time")
                rates.append(course.per_second)
                await rest(_SETTLE_SECONDS)
                readings.append(held(house.pid))
    _, half, after = readings
    return Result(
        rows=tuple(_row(name, before, half, after) for name in sorted(after, key=lambda name: -after[name])),
        notes=(
            "growth: a figure is what is held after all requests, its floor what was held after half of them",
            f"growth: {' and '.join(f'{rate:.0f}' for rate in rates[1:])} mixed requests a second in the two halves",
        ),
    )


def _row(name: str, before: Mapping[str, float], half: Mapping[str, float], after: Mapping[str, float]) -> Row:
    floor = half.get(name, 0.0)
    return Row(
        quantity=f"{name} after {REQUESTS:,} requests",
        unit=Unit.MEBIBYTES,
        figure=median([after[name]]),
        floors=(
            Floor(what="after half of them", reading=median([floor])),
            Floor(what="before the first", reading=median([before.get(name, 0.0)])),
        ),
        budget=None if name in _SERVERS else floor + _MOST_GROWTH_MEBIBYTES,
    )


class _Asker:
    """What clients ask, each question about something that is there."""

    def __init__(self, house: House, session: aiohttp.ClientSession) -> None:
        self._url = f"{house.url}/apis/v1beta1"
        self._session = session
        self._experiments: list[str] = []
        self._runs: list[str] = []

    async def create_experiment(self) -> None:
        made = await self._ask("POST", "experiments", body={"name": f"growth {uuid.uuid4()}"})
        self._experiments.append(made["id"])

    async def create_run(self) -> None:
        made = await self._ask(
            "POST", "runs", body={"name": "growth", "pipeline_spec": {"workflow_manifest": SMALLEST_MANIFEST}}
        )
        self._runs.append(made["run"]["id"])

    async def upload_pipeline(self) -> None:
        form = aiohttp.FormData()
        form.add_field("uploadfile", SMALLEST_MANIFEST.encode(), filename="pipeline.yaml")
        made = await self._ask("POST", "pipelines/upload", form=form, name=f"growth {uuid.uuid4()}")
        await self._ask("GET", f"pipelines/{made['id']}")
        await self._ask("DELETE", f"pipelines/{made['id']}")

    async def create_job(self) -> None:
        trigger = {"cron_schedule": {"cron": "0 0 0 1 1 *"}}
        body = {"name": "growth", "pipeline_spec": {"workflow_manifest": SMALLEST_MANIFEST}, "trigger": trigger}
        made = await self._ask("POST", "jobs", body={**body, "max_concurrency": "1"})
        await self._ask("DELETE", f"jobs/{made['id']}")

    async def report_metrics(self) -> None:
        metric = {"name": "accuracy", "node_id": uuid.uuid4().hex, "number_value": 0.5, "format": "RAW"}
        await self._ask("POST", f"runs/{self._runs[-1]}:reportMetrics", body={"metrics": [metric]})

    async def get_experiment(self) -> None:
        await self._ask("GET", f"experiments/{self._experiments[-1]}")

    async def get_run(self) -> None:
        await self._ask("GET", f"runs/{self._runs[-1]}")

    async def list_runs(self) -> None:
        await self._ask("GET", "runs", page_size="20", sort_by="created_at desc")

    async def list_experiments(self) -> None:
        await self._ask("GET", "experiments", page_size="20", sort_by="name")

    async def list_pipelines(self) -> None:
        await self._ask("GET", "pipelines", page_size="20")

    async def list_jobs(self) -> None:
        await self._ask("GET", "jobs", page_size="20")

    async def ask_for_nothing(self) -> None:
        """Refusals take ways of their own."""
        await self._ask("GET", f"runs/{uuid.uuid4()}", wanted=404)

    async def _ask(
        self, method: str, path: str, *, body: Any = None, form: Any = None, wanted: int = 200, **parameters: str
    ) -> Any:
        data = form if body is None else msgspec.json.encode(body)
        url = f"{self._url}/{path}"
        async with self._session.request(method, url, data=data, params=parameters) as answer:
            said = await answer.read()
        if answer.status != wanted:
            raise RuntimeError(f"{method} {url} answered {answer.status}: {said[:300]!r}")
        return msgspec.json.decode(said)


def _mixed(asker: _Asker) -> Send:
    """Requests by their number, about as many of each kind as a busy team sends: reading outnumbers writing."""
    often = (
        *(asker.list_runs, asker.get_run, asker.list_experiments, asker.get_experiment, asker.list_pipelines),
        *(asker.list_jobs, asker.ask_for_nothing),
    )
    seldom = (asker.create_run, asker.report_metrics, asker.create_experiment, asker.create_job, asker.upload_pipeline)

    async def send(number: int) -> None:
        nth, turn = divmod(number, len(often) + 1)
        await (often[turn] if turn < len(often) else seldom[nth % len(seldom)])()

    return send
