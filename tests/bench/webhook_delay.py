"""How long a committed fact takes to the receiver of a webhook, and what the notifier holds in memory meanwhile.

Facts are added as a service adds them; the clock starts when the commit is acknowledged, and stops when the receiver
has read the body. Each is about another run, so that none waits for the one before it. The floor is a body of the same
size, signed by nobody and kept nowhere, posted to the same receiver.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from infra.embedded.ports import LOOPBACK
from tests.bench import processes
from tests.bench.fact_delay import Journey, adding
from tests.bench.figures import Floor, Result, Row, Unit, median, percentile
from tests.bench.house import House, rest, standing
from tests.bench.load import Send, at_rate
from tests.bench.processes import Meter
from tests.support.api import Api

NAME = "webhook-delay"
ABOUT = "a fact from its commit to the receiver of a webhook"

PER_SECOND = 200

_REPETITIONS = 3
_SECONDS = 3.0
_NOTIFIER = "notifier"
_BODY = b"x" * 700
"""As large as an event about a run."""


class _Receiver:
    def __init__(self, url: str) -> None:
        self.url = url
        self.journey = Journey()

    async def take(self, request: web.Request) -> web.Response:
        await request.read()
        self.journey.arrived(request.headers["webhook-id"])
        return web.Response()


async def measure() -> Result:
    with standing() as house:
        async with _receiving() as receiver, adding(house) as add, aiohttp.ClientSession() as session:

            async def tell(_number: int) -> None:
                await add(receiver.journey, 1)

            async def post(_number: int) -> None:
                message_id = str(uuid.uuid4())
                receiver.journey.set_out[message_id] = time.perf_counter()
                async with session.post(receiver.url, data=_BODY, headers={"webhook-id": message_id}) as answer:
                    await answer.read()

            idle = _held(house)
            hook = {"name": "bench", "url": receiver.url, "resources": ["run"], "facts": ["created"]}
            await asyncio.to_thread(Api(house.url).post, "/apis/headrace/v1/webhooks", hook)
            figure, floor, held, meter = [], [], [], Meter()
            for send in (post, tell):
                await _delays(receiver, send, seconds=1)
            for _ in range(_REPETITIONS):
                floor.append(await _delays(receiver, post, seconds=_SECONDS))
                with meter.running():
                    figure.append(await _delays(receiver, tell, seconds=_SECONDS))
                held.append(_held(house))
    delays = [
        Row(
            quantity=f"fact, commit to the receiver of a webhook: {PER_SECOND}/s, p{percent}",
            unit=Unit.MILLISECONDS,
            figure=percentile(figure, percent),
            floors=(Floor(what="the POST alone", reading=percentile(floor, percent)),),
        )
        for percent in (50, 99)
    ]
    memory = Row(
        quantity="memory of the notifier after that",
        unit=Unit.MEBIBYTES,
        figure=median(held),
        floors=(Floor(what="before there is a webhook", reading=median([idle])),),
    )
    count = int(PER_SECOND * _SECONDS * _REPETITIONS)
    return Result(rows=(*delays, memory), notes=(f"a delivery costs {meter.each(count)}",))


async def _delays(receiver: _Receiver, send: Send, *, seconds: float) -> list[float]:
    await rest(0.3)
    journey = receiver.journey = Journey()
    await at_rate(send, per_second=PER_SECOND, seconds=seconds)
    await journey.complete(len(journey.set_out))
    return journey.milliseconds()


def _held(house: House) -> float:
    return sum(processes.pss_mebibytes(each) for each in processes.family(house.pid) if each.name == _NOTIFIER)


@asynccontextmanager
async def _receiving() -> AsyncIterator[_Receiver]:
    with socket.create_server((LOOPBACK, 0), backlog=256) as listening:
        receiver = _Receiver(f"http://{LOOPBACK}:{listening.getsockname()[1]}/")
        app = web.Application()
        app.router.add_post("/", receiver.take)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        yield receiver
        await runner.cleanup()
