"""`headrace demo`: from nothing to a finished pipeline, on a stack of its own that is gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")

_EXAMPLE = Path(__file__).parents[1] / "examples" / "ml-train-deploy.yaml"
_API = "/apis/v1beta1"
_START_WITHIN_SECONDS = 90
_RUN_WITHIN_SECONDS = 120
_STOP_WITHIN_SECONDS = 60
_REMOVE_WITHIN_SECONDS = 10
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FINAL = {"Succeeded", "Failed", "Error", "Skipped"}
_SIGNS = {
    "Succeeded": "[green]✔[/]",
    "Running": "[yellow]●[/]",
    "Pending": "[dim]○[/]",
    "Failed": "[red]✘[/]",
    "Error": "[red]✘[/]",
    "Skipped": "[dim]–[/]",
    "Omitted": "[dim]–[/]",
}


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the gateway; a free one by default.")
def demo(port: int | None) -> None:
    """Run a real pipeline from nothing to its result, then stop.

    Starts everything in a temporary folder, uploads a pipeline compiled by the kfp SDK 1.8.22 (two models are trained,
    evaluated, and deployed if good), runs it, shows its steps as they happen, and then its metrics, an artifact and the
    facts that subscribers see. Leaves nothing behind.
    """
    try:
        asyncio.run(_demo(port))
    except DemoFailed as failure:
        _say(str(failure))
        sys.exit(1)
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
    except OSError as error:
        _say(f"cannot go on: {error}")
        sys.exit(1)


class DemoFailed(Exception):
    """What went wrong, in a sentence."""


class Stopped(Exception):
    """Somebody wants no more of it."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # The terminal may be gone.
        click.echo(f"headrace demo: {line}", err=True)


async def _demo(port: int | None) -> None:
    from rich.console import Console

    from infra.embedded.ports import free_ports

    told = _first_signal()
    console = Console(highlight=False, soft_wrap=True)
    begun = time.monotonic()
    port = port or free_ports(1)[0]
    console.print("[bold]Headrace[/]: the Kubeflow Pipelines API v1beta1, on this machine\n")
    with _folder() as folder:
        async with _stack(folder / "data", port) as process:
            succeeded = await _unless(told, _show_it_all(console, process, folder / "data"))
    console.print(f"done in {time.monotonic() - begun:.0f} s\n")
    _show_what_next(console)
    if not succeeded:
        raise DemoFailed("the run did not succeed")


def _first_signal() -> asyncio.Future[signal.Signals]:
    """Later ones change nothing: what ends ends by itself, within a bound."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[signal.Signals] = loop.create_future()

    def tell(number: signal.Signals) -> None:
        if not told.done():
            told.set_result(number)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup leaves it.
            loop.add_signal_handler(number, tell, number)
    return told


async def _unless(told: asyncio.Future[signal.Signals], work: Coroutine[Any, Any, T]) -> T:
    """What the work returns, or Stopped at the first signal. Whoever tidies up stands outside, and is not cut short."""
    working = asyncio.create_task(work)
    both: list[asyncio.Future[Any]] = [told, working]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        # Handlers end with the loop; what comes after that must not change how the process ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        _say(f"{told.result().name}: stopping …")
        raise Stopped(told.result())
    return await working


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A short path: the step runner's socket lies in it. Gone afterwards."""
    folder = tempfile.TemporaryDirectory(prefix="headrace-demo-", ignore_cleanup_errors=True)
    path = Path(folder.name)
    try:
        yield path
    finally:
        deadline = time.monotonic() + _REMOVE_WITHIN_SECONDS
        folder.cleanup()
        while path.exists():  # Servers that had to be killed may write for a moment longer.
            if time.monotonic() > deadline:
                raise DemoFailed(f"{path} could not be removed")
            time.sleep(0.05)
            folder.cleanup()


@contextlib.asynccontextmanager
async def _stack(data_dir: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`headrace up` as a child, in a process group of its own: Ctrl-C reaches us, and we stop it in order."""
    from infra.embedded.process import die_with_parent

    parent = os.getpid()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.cli", "up", "--port", str(port), "--data-dir", str(data_dir)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Nobody will see what becomes of a step that runs when the demo is called off.
        env={**os.environ, "HEADRACE_STOP_STEPS": "interrupt"},
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_WITHIN_SECONDS)
        except TimeoutError:
            process.kill()  # The kernel ends what it leaves.
            await process.wait()


async def _show_it_all(console: Any, process: asyncio.subprocess.Process, data_dir: Path) -> bool:
    begun = time.monotonic()
    try:
        console.print("Starting Postgres, NATS, an object store, six services, the engine and the gateway …")
        url = await _ready(process)
        console.print(f"ready at [bold]{url}[/] after {time.monotonic() - begun:.1f} s\n")
        succeeded = await _show(console, _Client(url), data_dir)
        console.print("\nStopping …")
    except SystemExit as error:  # Rich ends the program by itself where a pipe is broken.
        raise DemoFailed("nobody reads what there is to see") from error
    return succeeded


async def _ready(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(_START_WITHIN_SECONDS):
            async for line in process.stdout:
                text = line.decode(errors="replace").strip()
                if text.startswith("headrace ready "):
                    return text.rpartition(" ")[2]
                said.append(text)
    except TimeoutError as error:
        raise DemoFailed(f"nothing was ready within {_START_WITHIN_SECONDS} s") from error
    raise DemoFailed(said[-1] if said else "the stack ended without a word")


class _Client:
    """The few calls of the API that the demo makes, as any HTTP client would."""

    def __init__(self, url: str) -> None:
        import urllib3

        self._url = url
        self._http = urllib3.PoolManager(timeout=30, retries=False)

    async def get(self, path: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._call, "GET", path)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(self._call, "POST", path, body=json.dumps(body))

    async def upload(self, path: str, file: Path) -> dict[str, Any]:
        return await asyncio.to_thread(self._upload, path, file)

    def _upload(self, path: str, file: Path) -> dict[str, Any]:
        return self._call("POST", path, fields={"uploadfile": (file.name, file.read_bytes())})

    def _call(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        try:
            reply = self._http.request(method, self._url + path, **how)
        except HTTPError as error:
            raise DemoFailed(f"{method} {path} was not answered: {error}") from error
        if reply.status != 200:
            raise DemoFailed(f"{method} {path} was answered with {reply.status}: {reply.data.decode()[:300]}")
        answer: dict[str, Any] = json.loads(reply.data)
        return answer


async def _show(console: Any, client: _Client, data_dir: Path) -> bool:
    """Upload, run, watch, and show what came of it. Returns whether the run succeeded."""
    pipeline = await client.upload(f"{_API}/pipelines/upload?name=ml-train-deploy", _EXAMPLE)
    console.print(f"uploaded pipeline [bold]{pipeline['name']}[/]  {pipeline['id']}")
    experiment = await client.post(f"{_API}/experiments", {"name": "demo"})
    console.print(f"created experiment [bold]{experiment['name']}[/]  {experiment['id']}")
    async with _Facts(data_dir) as facts:
        created = await client.post(f"{_API}/runs", _run_request(pipeline, experiment))
        run_id = created["run"]["id"]
        console.print(f"created run [bold]{created['run']['name']}[/]  {run_id}\n")
        detail = await _watch(console, client, run_id, facts)
        await facts.until_final(run_id)
    workflow = json.loads(detail["pipeline_runtime"]["workflow_manifest"])
    console.print(f"\nthe run [bold]{detail['run']['status']}[/]\n")
    _show_metrics(console, detail["run"], workflow)
    await _show_artifact(console, client, run_id, workflow)
    facts.show(console)
    return bool(detail["run"]["status"] == "Succeeded")


def _run_request(pipeline: dict[str, Any], experiment: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "first run",
        "pipeline_spec": {"pipeline_id": pipeline["id"], "parameters": [{"name": "rows", "value": "400"}]},
        "resource_references": [{"key": {"type": "EXPERIMENT", "id": experiment["id"]}, "relationship": "OWNER"}],
    }


class _Facts:
    """What a subscriber hears of the run, with the read-only credentials of outside subscribers."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._heard: list[tuple[float, str]] = []
        self._begun = time.monotonic()
        self.changed = asyncio.Event()

    async def __aenter__(self) -> _Facts:
        from infra.embedded.data_dir import DataDir
        from shared.bus import Bus

        self._bus = await Bus(DataDir(self._data_dir).bus_url("events"), name="demo").open()
        await self._bus.watch("kfp.event.>", lambda fact: self._hear(fact.subject))
        await self._bus.on_ping("kfp.ping.run-nodes.>", self.changed.set)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bus.close()

    def _hear(self, subject: str) -> None:
        self._heard.append((time.monotonic() - self._begun, subject))
        self.changed.set()

    async def until_final(self, run_id: str) -> None:
        """The fact of the end follows the record of it by a moment."""
        ends = {f"kfp.event.run.{what}.{run_id}" for what in ("succeeded", "failed", "error", "skipped")}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while not any(subject in ends for _, subject in self._heard):
                    self.changed.clear()
                    await self.changed.wait()

    def show(self, console: Any) -> None:
        console.print("\n[bold]facts[/] (NATS JetStream, CloudEvents)")
        for seconds, subject in self._heard:
            console.print(f"  {seconds:6.2f} s  {subject}")


async def _watch(console: Any, client: _Client, run_id: str, facts: _Facts) -> dict[str, Any]:
    """Follow the run to its end: a live tree on a terminal, a line per change elsewhere."""
    from rich.live import Live

    shown: dict[str, str] = {}
    deadline = time.monotonic() + _RUN_WITHIN_SECONDS
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            facts.changed.clear()
            detail = await client.get(f"{_API}/runs/{run_id}")
            workflow = json.loads(detail["pipeline_runtime"]["workflow_manifest"])
            if live is not None:
                live.update(_tree(workflow), refresh=True)
            else:
                _print_changes(console, workflow, shown)
            if detail["run"].get("status") in _FINAL:
                return detail
            if time.monotonic() > deadline:
                raise DemoFailed(f"the run was not over within {_RUN_WITHIN_SECONDS} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(facts.changed.wait(), timeout=1)


def _tree(workflow: dict[str, Any]) -> Any:
    from rich.tree import Tree

    nodes = workflow["status"].get("nodes") or {}
    root = nodes.get(workflow["metadata"]["name"])
    tree = Tree(_label(root, workflow) if root else "waiting for the first step")
    branches = {root["id"]: tree} if root else {}
    for node in sorted(nodes.values(), key=lambda each: (each["name"].count("."), each["startedAt"], each["name"])):
        parent = branches.get(node.get("boundaryID", ""))
        if parent is not None:
            branches[node["id"]] = parent.add(_label(node, workflow))
    return tree


def _label(node: dict[str, Any], workflow: dict[str, Any]) -> str:
    return f"{_SIGNS.get(node['phase'], '?')} {_title(node, workflow)} [dim]{node['phase'].lower()}[/]"


def _title(node: dict[str, Any], workflow: dict[str, Any]) -> str:
    """The name that the pipeline's author gave the step, where there is one."""
    for template in workflow["spec"]["templates"]:
        if template["name"] == node.get("templateName"):
            annotations = template.get("metadata", {}).get("annotations", {})
            return str(annotations.get("pipelines.kubeflow.org/task_display_name", node["displayName"]))
    return str(node["displayName"])


def _print_changes(console: Any, workflow: dict[str, Any], shown: dict[str, str]) -> None:
    nodes = workflow["status"].get("nodes") or {}
    for node in sorted(nodes.values(), key=lambda each: (each.get("finishedAt") or "~", each["name"])):
        if shown.get(node["id"]) != node["phase"] and node["type"] in ("Pod", "Skipped"):
            shown[node["id"]] = node["phase"]
            console.print(f"  {node['phase']:<10} {_title(node, workflow)}")


def _show_metrics(console: Any, run: dict[str, Any], workflow: dict[str, Any]) -> None:
    nodes = workflow["status"]["nodes"]
    console.print("[bold]metrics[/]")
    for metric in run.get("metrics", []):
        value = f"{metric['number_value']:.1%}" if metric.get("format") == "PERCENTAGE" else metric["number_value"]
        step = nodes.get(metric["node_id"])
        console.print(
            f"  {metric['name']:<24} {value:>8}   from {_title(step, workflow) if step else metric['node_id']}"
        )


async def _show_artifact(console: Any, client: _Client, run_id: str, workflow: dict[str, Any]) -> None:
    """One artifact, read through the API as the UI reads it: a gzipped tar in base64."""
    import base64
    import io
    import tarfile

    for node in workflow["status"]["nodes"].values():
        if node["displayName"] != "train":
            continue
        name = next(each["name"] for each in node["outputs"]["artifacts"] if each["name"] != "main-logs")
        answer = await client.get(f"{_API}/runs/{run_id}/nodes/{node['id']}/artifacts/{name}:read")
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(answer["data"]))) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            text = file.read().decode() if file else ""
        console.print(f"\n[bold]artifact[/] {name} of {_title(node, workflow)}\n  {text[:100]}")


def _show_what_next(console: Any) -> None:
    console.print(
        "[bold]what next[/]\n"
        "  make up                       keep it running: the API at http://127.0.0.1:8888\n"
        "  pip install kfp==1.8.22       and point the SDK at it, unchanged:\n"
        "      client = kfp.Client(host='http://127.0.0.1:8888')\n"
        "      client.create_run_from_pipeline_package('infra/examples/ml-train-deploy.yaml', arguments={})\n"
        "  infra/examples                the pipeline you just saw, with its source\n"
        "  README.md, ARCHITECTURE.md    what is promised, and how it works",
        markup=True,
    )
