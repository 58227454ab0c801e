"""`headrace events`: what happens and what has happened, through the API like any other client."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from infra.cli._gateway import Failed, Gateway, through_the_gateway
from infra.cli._here import Here, on_this_machine

_EVENTS = "/apis/headrace/v1/events"
_COME_BACK_SECONDS = 2.0
_SILENT_SECONDS = 60.0
"""Heartbeats come more often than that."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Since(click.ParamType[str]):
    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As the gateway takes it: seconds back from now, or a time."""
        number, unit = value[:-1], value[-1:]
        if unit in _UNITS and number.replace(".", "", 1).isdigit():
            return f"{float(number) * _UNITS[unit]:.0f}s"
        return value


_FILTERS = (
    click.option("--resource", default="", help="Of run, node, job-scheduler, experiment, pipeline-registry, metrics."),
    click.option("--fact", default="", help="What has happened: succeeded,failed,error and so on."),
    click.option("--id", default="", help="Of one resource."),
    click.option("--run", "run_id", default="", help="Everything about one run."),
    click.option("--experiment", "experiment_id", default="", help="By the id of the experiment that it is about."),
    click.option("--pipeline", "pipeline_id", default="", help="By the id of the pipeline."),
    click.option("--job", "job_id", default="", help="By the id of the recurring run."),
    click.option("--json", "as_json", is_flag=True, help="One CloudEvent in JSON per line."),
)


def _filters(command: Any) -> Any:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group()
def events() -> None:
    """What happens to runs, jobs, experiments and pipelines."""


@events.command(short_help="Show events as they happen, until Ctrl-C.")
@_filters
@click.option("--since", type=_Since(), default="", help="From then on: 10m, 2h, or 2026-01-31T08:00:00Z.")
@click.option("--after", default="", help="Go on behind the id of an event.")
@click.option("--until-final", is_flag=True, help="With --run: end with the run.")
@through_the_gateway
def tail(gateway: Gateway, since: str, after: str, until_final: bool, **filters: Any) -> None:
    """Show events as they happen, until Ctrl-C; a broken connection is taken up where it broke."""
    if until_final and not filters["run_id"]:
        raise Failed("--until-final is about one run: --run says which")
    _Source(gateway, since=since, after=after, until="final" if until_final else "", **filters).follow()


@events.command(short_help="Show the events that are kept.")
@_filters
@click.option("--since", type=_Since(), default="1970-01-01T00:00:00Z", help="From then on; all that is kept.")
@click.option("--after", default="", help="Go on behind the id of an event.")
@through_the_gateway
def replay(gateway: Gateway, since: str, after: str, **filters: Any) -> None:
    """Show the events that are kept (eight days, two gigabytes), and end."""
    _Source(gateway, since=since, after=after, until="now", **filters).read()


@events.command(short_help="Print where subscribers find this machine's broker.")
@on_this_machine
def nats_url(here: Here) -> None:
    """Print where subscribers find the broker of this machine's stack, and as whom: they may only listen."""
    from infra.embedded.data_dir import DataDir
    from infra.embedded.failure import StartFailure

    try:
        click.echo(DataDir(here.data_dir).bus_url("events"))
    except StartFailure as failure:
        click.echo(f"headrace events nats-url: {failure}", err=True)
        sys.exit(1)


_NOT_WITH_RUN = ("resource", "id", "experiment_id", "pipeline_id", "job_id")


class _Source:
    """One stream, across the connections it takes to read it."""

    def __init__(self, gateway: Gateway, *, run_id: str, as_json: bool, after: str, **query: str) -> None:
        if run_id and (others := [name for name in _NOT_WITH_RUN if query.pop(name)]):
            raise Failed(f"--run is about one run, and cannot be narrowed down by {', '.join(others)}")
        self._gateway = gateway
        self._path = f"/apis/headrace/v1/runs/{quote(run_id, safe='')}/events" if run_id else _EVENTS
        self._query = {name: value for name, value in query.items() if value}
        self._last_id = after
        self._show = _as_line if as_json else _as_row

    def follow(self) -> None:
        """Show what comes until there can be nothing more. Raises Failed where the first connection does."""
        is_over = self.read()
        while not is_over:
            time.sleep(_COME_BACK_SECONDS)
            try:
                is_over = self.read()
            except Failed as failure:
                click.echo(f"{failure}; trying again", err=True)

    def read(self) -> bool:
        """Show what one connection brings; whether that was the end. Raises Failed."""
        headers = {"Last-Event-ID": self._last_id} if self._last_id else None
        reply = self._gateway.open(self._path, query=self._query, headers=headers, silent_seconds=_SILENT_SECONDS)
        try:
            with self._gateway.in_our_words():
                for kind, data in self._events(reply):
                    if kind == "end":
                        return True
                    (_say_gap if kind == "gap" else self._show)(data)
        finally:
            reply.close()
        return False

    def _events(self, reply: Any) -> Iterator[tuple[str, str]]:
        """The type and the data of each; ids are kept."""
        fields: dict[str, str] = {}
        for line in _lines(reply):
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            self._last_id = fields.get("id", self._last_id)
            if "data" in fields:
                yield fields.get("event", "message"), fields["data"]
            fields = {}


def _lines(reply: Any) -> Iterator[str]:
    waiting = b""
    for chunk in reply.stream(None):
        *lines, waiting = (waiting + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def _as_line(data: str) -> None:
    click.echo(data)


def _as_row(data: str) -> None:
    event = json.loads(data)
    state = event["data"]
    _, owner, what, _ = event["type"].split(".")
    row = f"{event['time'][:19]}Z  {owner + ' ' + what:<33}  {event['subject']:<36}  {state.get('name', '')}"
    click.echo(f"{row}  {state.get('error', '')}".rstrip())


def _say_gap(data: str) -> None:
    gap = json.loads(data)
    first, last = gap["after"] + 1, gap["next"] - 1
    click.echo(f"{gap['owner']}: the events {first} to {last} are kept no longer", err=True)
