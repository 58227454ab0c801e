"""Prints the end of every run, whatever becomes of the connection or of this program. Needs nats-py.

    python subscribe.py nats://events:PASSWORD@HOST:PORT [NAME]

NAME is this subscriber's place in the stream, which the broker keeps: whoever starts it again goes on where it was.
"""

import asyncio
import json
import sys

import nats
from nats.errors import TimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy

ENDS = [f"kfp.event.run.{end}.>" for end in ("succeeded", "failed", "error")]


async def main(url: str, name: str = "watch-ends") -> None:
    client = await nats.connect(url, max_reconnect_attempts=-1)
    config = ConsumerConfig(filter_subjects=ENDS, deliver_policy=DeliverPolicy.ALL)
    facts = await client.jetstream().pull_subscribe("", durable=name, stream="KFP_EVENTS", config=config)
    while True:
        try:
            batch = await facts.fetch(100, timeout=5)
        except TimeoutError:
            continue
        for message in batch:
            run = json.loads(message.data)
            # The same fact may come twice: it has the same ce-id, and the same ce-position.
            print(message.headers["ce-position"], run["id"], run["name"], run["status"], flush=True)
            await message.ack()


asyncio.run(main(*sys.argv[1:]))
