"""`headrace status`: what the processes of an installation say of themselves, for people.

It asks each process over HTTP, as whoever watches it does, and sums up what they show. Nothing is read from the
database or the broker: what nobody can say is not known.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import msgspec

from infra.cli._here import Here, on_this_machine

_WITHIN_SECONDS = 5.0
_OLD_SECONDS = 60.0
_LATE_SECONDS = 30.0
_GATEWAY = "gateway"
_WIDE = 500
"""Columns of what is no terminal: no line is broken."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What one process said. Times and sizes are None where it did not say."""

    name: str
    url: str
    is_alive: bool
    is_ready: bool
    reason: str = ""
    """Why it is not alive or not ready."""
    up_seconds: float | None = None
    memory_bytes: int | None = None
    version: str = ""
    holds: tuple[str, ...] = ()
    """What it does that one process does at a time."""


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    waiting: int
    oldest_seconds: float


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    subscriber: str
    owner: str
    behind: int


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """What runs steps, as the gateway is told of it."""

    name: str
    runtime: str
    weaker: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    processes: tuple[Process, ...]
    outboxes: tuple[Outbox, ...]
    subscriptions: tuple[Subscription, ...]
    dead_letters: dict[str, int]
    open_runs: dict[str, int]
    steps: dict[str, int]
    slots_overdue_seconds: float
    deliveries_waiting: int
    engine: Engine | None
    complaints: tuple[str, ...]
    """What is not as it should be."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    process: Process
    samples: tuple[tuple[str, dict[str, str], float], ...] = ()


@click.command(short_help="Show which processes are ready, and what waits.")
@click.option(
    "--process",
    "named",
    multiple=True,
    metavar="NAME=URL",
    help="One that is asked instead, wherever it runs: run=http://10.0.0.7:8080. As often as there are processes.",
)
@click.option("--token", envvar="HEADRACE_TOKEN", help="Where the gateway asks for one: HEADRACE_TOKEN.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@on_this_machine
def status(here: Here, named: tuple[str, ...], token: str | None, as_json: bool) -> None:
    """Show which processes answer, whether they are ready and why not, and what waits.

    Whose they are says the data directory alone; HEADRACE_URL and HEADRACE_PORT are not heeded.

    Ends with exit code 1 where something is not as it should be.
    """
    places = _named(named) if named else _of_the_stack(here.data_dir)
    seen = look(places, token)
    if not places:
        complaint = f"no stack runs on {here.data_dir.absolute()}: `headrace up` starts it"
        seen = msgspec.structs.replace(seen, complaints=(complaint,))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(seen), indent=2).decode())
    else:
        _show(seen)
    sys.exit(1 if seen.complaints else 0)


def look(places: Sequence[tuple[str, str]], token: str | None) -> Status:
    """Ask all processes at once; `places` are names and URLs."""
    with ThreadPoolExecutor(max_workers=max(len(places), 1)) as threads:
        asked = list(threads.map(lambda place: _ask(place[0], place[1], token), places))
    figures = _Figures([sample for each in asked for sample in each.samples])
    engine = next((_engine(url, token) for name, url in places if name == _GATEWAY), None)
    outboxes = tuple(
        Outbox(
            owner=owner,
            waiting=int(waiting),
            oldest_seconds=figures.most("headrace_outbox_oldest_seconds", owner=owner),
        )
        for owner, waiting in figures.by("headrace_outbox_waiting", "owner").items()
    )
    subscriptions = tuple(
        Subscription(subscriber=subscriber, owner=owner, behind=int(behind))
        for subscriber in figures.by("headrace_subscriber_behind", "service")
        for owner, behind in figures.by("headrace_subscriber_behind", "owner", service=subscriber).items()
    )
    found = Status(
        processes=tuple(each.process for each in asked),
        outboxes=outboxes,
        subscriptions=subscriptions,
        dead_letters=figures.counts("headrace_dead_letters", "service"),
        open_runs=figures.counts("headrace_runs", "status"),
        steps=figures.counts("headrace_engine_steps", "state"),
        slots_overdue_seconds=figures.most("headrace_job_slots_overdue_seconds"),
        deliveries_waiting=int(figures.most("headrace_webhook_deliveries_waiting")),
        engine=engine,
        complaints=(),
    )
    return msgspec.structs.replace(found, complaints=tuple(_complaints(found)))


def _complaints(seen: Status) -> Iterator[str]:
    for process in seen.processes:
        if not process.is_ready:
            yield f"{process.name} {'is not ready' if process.is_alive else 'is not alive'}: {process.reason}"
    for outbox in seen.outboxes:
        if outbox.oldest_seconds > _OLD_SECONDS:
            yield f"facts of {outbox.owner} have not left for {_duration(outbox.oldest_seconds)}"
    for subscriber, letters in seen.dead_letters.items():
        if letters:
            yield f"{subscriber} has given up on {letters} facts: headrace dead list"
    if seen.slots_overdue_seconds > _LATE_SECONDS:
        yield f"a slot of a job is due since {_duration(seen.slots_overdue_seconds)}"


class _Figures:
    """Samples of all processes. What two of them show of one thing is that thing, and not twice of it."""

    def __init__(self, samples: Sequence[tuple[str, dict[str, str], float]]) -> None:
        self._samples = samples

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The largest value for each value of the label."""
        found: dict[str, float] = {}
        for sample, has, value in self._samples:
            if sample == name and labels.items() <= has.items():
                found[has[label]] = max(value, found.get(has[label], value))
        return dict(sorted(found.items()))

    def counts(self, name: str, label: str) -> dict[str, int]:
        return {key: int(value) for key, value in self.by(name, label).items()}

    def most(self, name: str, **labels: str) -> float:
        values = (value for sample, has, value in self._samples if sample == name and labels.items() <= has.items())
        return max(values, default=0.0)


def _named(named: Sequence[str]) -> list[tuple[str, str]]:
    places = [text.partition("=")[::2] for text in named]
    for name, url in places:
        if not name or not url.startswith(("http://", "https://")):
            raise click.UsageError(f"--process {name}={url}: say NAME=URL, as run=http://10.0.0.7:8080")
    return [(name, url.rstrip("/")) for name, url in places]


def _of_the_stack(data_dir: Path) -> list[tuple[str, str]]:
    """Whom to ask; nobody where the stack does not run."""
    from infra.embedded.backing import PORT_NAMES
    from infra.embedded.data_dir import DataDir
    from infra.embedded.failure import StartFailure
    from infra.embedded.ports import LOOPBACK

    try:
        ports = DataDir(data_dir).running_ports()
    except StartFailure as error:
        raise click.UsageError(f"{error}; name another --data-dir, or each --process") from error
    ours = sorted(ports.keys() - set(PORT_NAMES), key=lambda name: (name != _GATEWAY, name))
    return [(name, f"http://{LOOPBACK}:{ports[name]}") for name in ours]


def _ask(name: str, url: str, token: str | None) -> _Asked:
    import urllib3

    # Only the gateway is shown the token.
    headers = {"Authorization": f"Bearer {token}"} if token and name == _GATEWAY else {}
    http = urllib3.PoolManager(retries=False, timeout=_WITHIN_SECONDS)
    try:
        alive = http.request("GET", f"{url}/livez", headers=headers)
        ready = http.request("GET", f"{url}/readyz", headers=headers)
        metrics = http.request("GET", f"{url}/metrics", headers=headers)
    except urllib3.exceptions.HTTPError as error:
        return _Asked(process=Process(name=name, url=url, is_alive=False, is_ready=False, reason=_why(error)))
    samples = tuple(_samples(metrics.data.decode())) if metrics.status == 200 else ()
    own = {sample: value for sample, labels, value in samples if not labels}
    started_at = own.get("process_start_time_seconds")
    memory = own.get("process_resident_memory_bytes")
    not_well = alive if alive.status != 200 else ready
    return _Asked(
        samples=samples,
        process=Process(
            name=name,
            url=url,
            is_alive=alive.status == 200,
            is_ready=not_well.status == 200,
            reason="" if not_well.status == 200 else _words(not_well.status, not_well.data),
            up_seconds=None if started_at is None else max(time.time() - started_at, 0),
            memory_bytes=None if memory is None else int(memory),
            version=next((has["version"] for sample, has, _ in samples if sample == "headrace_build_info"), ""),
            holds=tuple(sorted(has["lease"] for sample, has, value in samples if sample == _HELD and value)),
        ),
    )


_HELD = "headrace_leases_held"


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _engine(url: str, token: str | None) -> Engine | None:
    from infra.cli._gateway import Failed, Gateway

    try:
        answer: Mapping[str, Any] = Gateway(url, token).ask("/apis/headrace/v1/engine")
    except Failed:
        return None
    known = {name: str(answer[name]) for name in Engine.__struct_fields__ if answer.get(name)}
    return Engine(**{"name": "", "runtime": ""} | known)


def _why(error: Exception) -> str:
    text = str(error)
    return "nobody answers" if "refused" in text else text.rpartition(": ")[2] or type(error).__name__


def _words(status: int, body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{status}: {text[:200]}" if status != 503 else text[:200]


def _show(seen: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDE
    table = Table(box=None, pad_edge=False)
    for heading in ("process", "at", "state", "up", "memory"):
        table.add_column(heading, no_wrap=True)
    table.add_column("does alone")
    for process in seen.processes:
        table.add_row(
            process.name,
            process.url.removeprefix("http://"),
            "[green]ready[/]" if process.is_ready else f"[red]{'not ready' if process.is_alive else 'not alive'}[/]",
            _duration(process.up_seconds),
            "" if process.memory_bytes is None else f"{process.memory_bytes // 2**20} MiB",
            _what_it_does_alone(process.holds),
        )
    if seen.processes:
        console.print(table)
        console.print()
        for title, line in _lines(seen):
            console.print(f"{title:<12} {line}", markup=False, highlight=False)
        if seen.complaints:
            console.print()
    for complaint in seen.complaints:
        console.print(complaint, style="red", markup=False, highlight=False)


def _what_it_does_alone(holds: Sequence[str]) -> str:
    """Leases by their kinds: `relay:node` and `relay:run` are two of one kind."""
    kinds = Counter(lease.partition(":")[0] for lease in holds)
    return ", ".join(kind if count == 1 else f"{kind} x{count}" for kind, count in kinds.items())


def _lines(seen: Status) -> Iterator[tuple[str, str]]:
    yield "version", _by_version(seen.processes)
    if seen.engine is not None:
        yield "engine", f"{seen.engine.name}, steps run in: {seen.engine.runtime}"
        if seen.engine.weaker:
            yield "", f"weaker: {seen.engine.weaker}"
    yield "open runs", _counted(seen.open_runs)
    if seen.steps:
        yield "steps", _counted(seen.steps)
    waiting = {outbox.owner: outbox.waiting for outbox in seen.outboxes}
    yield "outboxes", _counted(waiting, nothing="every fact has left")
    behind = {f"{each.subscriber} of {each.owner}": each.behind for each in seen.subscriptions}
    yield "behind", _counted(behind, nothing="every subscriber has applied all facts")
    yield "dead letters", _counted(seen.dead_letters)
    yield "deliveries", f"{seen.deliveries_waiting} waiting"


def _by_version(processes: Sequence[Process]) -> str:
    """Who runs which is said where not all run the same, as in an upgrade."""
    names: dict[str, list[str]] = {}
    for process in processes:
        if process.version:
            names.setdefault(process.version, []).append(process.name)
    if len(names) <= 1:
        return "".join(names) or "not known"
    return "; ".join(f"{version} {', '.join(who)}" for version, who in sorted(names.items()))


def _counted(counts: Mapping[str, int], *, nothing: str = "none") -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or (
        nothing if counts else "not known"
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
