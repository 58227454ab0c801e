"""What the controller process is told, as it shows in runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from services.run import controller_app
from services.run.settings import ControllerSettings
from tests.component.run.conftest import World, until
from tests.component.run.test_refusals import manifest
from tests.contract.engine.engines import RunnerProcess, runner_process
from tests.support.service import serving


@contextlib.asynccontextmanager
async def controlled(world: World, nats_url: str, **further: Any) -> AsyncIterator[None]:
    """The real controller at work, on a step runner of its own."""
    with runner_process() as runner:
        settings = controller_settings(world, nats_url, runner, **further)
        async with controller_app.create_app(settings).lifespan():
            yield


def controller_settings(world: World, nats_url: str, runner: RunnerProcess, **further: Any) -> ControllerSettings:
    return ControllerSettings(
        **msgspec.structs.asdict(world.settings) | {"nats_url": nats_url} | further,
        step_runner_socket=str(runner.socket),
        steps_dir=str(runner.steps_dir),
        engine_data_dir=str(runner.data_dir),
    )


async def test_a_run_that_calls_itself_without_end_stops_where_the_setting_says(
    world: World, nats_urls: dict[str, str]
) -> None:
    itself = {"name": "main", "dag": {"tasks": [{"name": "down", "template": "main"}]}}
    spec = manifest(spec={"entrypoint": "main", "templates": [itself]})
    run_id = (await world.client.create(pipeline_spec=spec))["id"]

    async def is_over() -> bool:
        return str((await world.row(run_id))["status"]) == "Error"

    async with controlled(world, nats_urls["run-controller"], most_levels=7):
        await until(is_over, within_seconds=30)
    nodes = (await world.client.workflow(run_id))["status"]["nodes"].values()
    deepest = max(nodes, key=lambda node: len(node["name"]))
    assert deepest["message"] == "templates are nested deeper than 7 levels (HEADRACE_MOST_LEVELS)"


async def test_a_step_runs_what_its_image_is_said_to_run_and_writes_where_it_is_said_to_be_allowed(
    world: World, nats_urls: dict[str, str], open_folder: Path
) -> None:
    image = {
        "image": "example.org/scribe:3",
        "args": ["written"],
        "volumeMounts": [{"name": "shared", "mountPath": "/out"}],
    }
    volume = {"name": "shared", "hostPath": {"path": f"{open_folder}/of-steps"}}
    template = {"name": "main", "container": image, "volumes": [volume]}
    spec = manifest(spec={"entrypoint": "main", "templates": [template]})
    refused = await world.client.call("POST", "/runs", {"name": "n", "pipeline_spec": spec})
    assert refused.status == 400
    told = {
        "image_entrypoints": {"example.org/scribe": ("sh", "-c", 'echo "$0" > /out/note')},
        "host_paths": (str(open_folder),),
    }
    client = await world.start_replica(**told)
    run_id = (await client.create(pipeline_spec=spec))["id"]

    async def is_over() -> bool:
        return bool((await world.row(run_id))["finished_at"])

    async with controlled(world, nats_urls["run-controller"], **told):
        await until(is_over, within_seconds=30)
    assert (await world.row(run_id))["status"] == "Succeeded"
    assert (open_folder / "of-steps" / "note").read_text() == "written\n"


async def test_who_watches_the_controller_sees_whether_it_can_work_and_one_in_waiting_can_as_well(
    world: World, nats_urls: dict[str, str]
) -> None:
    async def both_say(path: str, status: int) -> bool:
        return [(await each.call("GET", path)).status for each in (active, waiting)] == [status, status]

    with runner_process() as runner:
        settings = controller_settings(world, nats_urls["run-controller"], runner)
        replicas = (controller_app.create_app(settings) for _ in range(2))
        async with serving(next(replicas)) as active, serving(next(replicas)) as waiting:
            await until(partial(both_say, "/readyz", 200), within_seconds=30)
            for path in ("/livez", "/startupz", "/metrics"):
                assert await both_say(path, 200)
            runner.kill()
            await until(partial(both_say, "/readyz", 503), within_seconds=30)
            assert await both_say("/livez", 200)
