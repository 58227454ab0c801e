"""What a subscriber outside sees of a run, with the read-only credentials that are made for it."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from pathlib import Path

import nats

from infra.embedded.data_dir import DataDir
from shared.bus import Bus, Message
from tests.support.api import Api
from tests.support.eventually import eventually
from tests.support.stack import Stack

EXAMPLE = Path(__file__).parents[2] / "infra" / "examples" / "subscribe.py"


async def test_one_trace_leads_from_the_request_through_the_facts_to_the_controller(stack: Stack) -> None:
    trace_id = secrets.token_hex(16)
    heard: asyncio.Queue[Message] = asyncio.Queue()
    bus = await Bus(DataDir(stack.data_dir).bus_url("events"), name="test").open()
    try:
        await bus.watch("kfp.event.run.>", heard.put_nowait)
        run_id = await asyncio.to_thread(_create_run, stack, trace_id)

        facts = await asyncio.wait_for(_until_succeeded(heard, run_id), timeout=60)
    finally:
        await bus.close()

    # `created` is the service's, the others are what the controller recorded.
    assert [fact.what for fact in facts] == ["created", "started", "succeeded"]
    assert {fact.traceparent.split("-")[1] for fact in facts} == {trace_id}
    assert [fact.position for fact in facts] == sorted(fact.position for fact in facts)
    assert json.loads(facts[-1].body)["status"] == "Succeeded"


async def test_the_example_of_a_subscriber_goes_on_where_it_was(stack: Stack) -> None:
    name = f"test-{secrets.token_hex(4)}"
    first = await asyncio.to_thread(_create_run, stack, secrets.token_hex(16))
    assert first in await _said_by_the_example(stack, name, until=first)
    second = await asyncio.to_thread(_create_run, stack, secrets.token_hex(16))
    said = await _said_by_the_example(stack, name, until=second)
    assert first not in said


def test_no_service_gives_up_on_what_others_tell(stack: Stack) -> None:
    _create_run(stack, secrets.token_hex(16))
    assert Api(stack.url).get("/apis/headrace/v1/dead") == {}


async def _said_by_the_example(stack: Stack, name: str, *, until: str) -> str:
    """What it prints up to the line about that run; it is killed when the broker knows that it has read it."""
    url = DataDir(stack.data_dir).bus_url("events")
    example = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), url, name, stdout=asyncio.subprocess.PIPE
    )
    assert example.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(60):
            while until not in said:
                line = await example.stdout.readline()
                assert line, "it ended"
                said += line.decode()
        await _until_acknowledged(url, name)
    finally:
        example.kill()
        await example.wait()
    return said


async def _until_acknowledged(url: str, consumer: str) -> None:
    client = await nats.connect(url)
    try:

        async def is_acknowledged() -> bool:
            info = await client.jetstream().consumer_info("KFP_EVENTS", consumer)
            return bool(info.num_ack_pending == 0)

        await eventually(is_acknowledged, within_seconds=20)
    finally:
        await client.close()


def _create_run(stack: Stack, trace_id: str) -> str:
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "traced-"},
        "spec": {
            "entrypoint": "main",
            "templates": [{"name": "main", "container": {"image": "alpine", "command": ["true"]}}],
        },
    }
    answer = Api(stack.url).call(
        "POST",
        "/apis/v1beta1/runs",
        body=json.dumps({"name": "traced", "pipeline_spec": {"workflow_manifest": json.dumps(manifest)}}),
        headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
    )
    assert answer.status == 200, answer.body
    run_id: str = answer.json["run"]["id"]
    return run_id


async def _until_succeeded(heard: asyncio.Queue[Message], run_id: str) -> list[Message]:
    facts: list[Message] = []
    while not facts or facts[-1].what != "succeeded":
        fact = await heard.get()
        if fact.resource_id == run_id:
            facts.append(fact)
    return facts
