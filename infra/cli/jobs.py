"""`headrace jobs`: what recurring runs have beyond the original API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import click

from infra.cli._gateway import Gateway, through_the_gateway


@click.group()
def jobs() -> None:
    """Look at recurring runs, ahead and back, and change them. JOB is the id of one."""


@jobs.command()
@click.argument("job")
@through_the_gateway
def show(gateway: Gateway, job: str) -> None:
    """Print all that is known of JOB, in JSON."""
    _print(gateway.ask(_path(job)))


@jobs.command(short_help="Print the next slots of JOB, as if it were enabled.")
@click.argument("job")
@click.option("-n", "--count", default=10, show_default=True, help="How many slots; 100 at most.")
@through_the_gateway
def preview(gateway: Gateway, job: str, count: int) -> None:
    """Print the next slots of JOB, as if it were enabled, on the clock of its zone."""
    _print_slots(gateway.ask(f"{_path(job)}:preview", query={"count": str(count)}))


@jobs.command()
@click.argument("job")
@click.option("--from", "start", metavar="TIME", help="The first moment, such as 2026-01-01T00:00:00Z.")
@click.option("--to", "end", metavar="TIME", help="The last one; now, unless it is given.")
@click.option("--dry-run", is_flag=True, help="Make no run.")
@click.option("--give-up", is_flag=True, help="Drop what still waits for room, instead.")
@through_the_gateway
def backfill(gateway: Gateway, job: str, start: str | None, end: str | None, dry_run: bool, give_up: bool) -> None:
    """Make runs for slots of JOB in a time that has passed. Prints the slots that will have one."""
    if give_up:
        gateway.ask(f"{_path(job)}:backfill", method="DELETE")
        return
    asked = _given(start_time=start, end_time=end) | {"dry_run": dry_run}
    _print_slots(gateway.ask(f"{_path(job)}:backfill", method="POST", document=asked))


@jobs.command()
@click.argument("job")
@click.option("--name")
@click.option("--description")
@click.option("--cron", metavar="EXPRESSION", help="A new schedule; six fields, seconds first.")
@click.option("--every", type=int, metavar="SECONDS", help="A new schedule.")
@click.option("--start", metavar="TIME", help="When the new schedule begins.")
@click.option("--end", metavar="TIME", help="When the new schedule ends.")
@click.option(
    "--on",
    multiple=True,
    type=click.Choice(["succeeded", "failed", "error", "skipped", "ended"]),
    help="The end of a run, instead of a schedule; may be repeated.",
)
@click.option("--of-pipeline", metavar="ID", help="Whose runs' ends.")
@click.option("--of-experiment", metavar="ID", help="Whose runs' ends.")
@click.option("--of-job", metavar="ID", help="Whose runs' ends.")
@click.option("--time-zone", metavar="ZONE", help="In which the expression is read, such as Europe/Berlin.")
@click.option("--missed", type=click.Choice(["all", "latest", "none"]), help="What becomes of missed slots.")
@click.option("--window", type=int, metavar="SECONDS", help="How old a missed slot may be; 0 for any age.")
@click.option("--overlap", type=click.Choice(["queue", "skip", "replace"]), help="What becomes of slots without room.")
@click.option("--max-concurrency", type=int, help="How many runs may be alive; 1 to 10.")
@click.option("--pause-on-failures", type=int, metavar="NUMBER", help="Failures in a row to disable it after; 0 never.")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="All of them; may be repeated.")
@through_the_gateway
def update(
    gateway: Gateway,
    job: str,
    cron: str | None,
    every: int | None,
    start: str | None,
    end: str | None,
    on: tuple[str, ...],
    of_pipeline: str | None,
    of_experiment: str | None,
    of_job: str | None,
    window: int | None,
    parameters: tuple[str, ...],
    **fields: Any,
) -> None:
    """Change JOB in place. What is not named stays as it is, and so do runs that are alive."""
    change = _given(**fields, missed_window_seconds=window)
    if parameters:
        pairs = (parameter.partition("=") for parameter in parameters)
        change["parameters"] = [{"name": name, "value": value} for name, _, value in pairs]
    times = _given(start_time=start, end_time=end)
    if sum((cron is not None, every is not None, bool(on))) > 1:
        raise click.UsageError("a job has one of --cron, --every and --on")
    runs = _given(pipeline_id=of_pipeline, experiment_id=of_experiment, job_id=of_job)
    if bool(on) is not bool(runs):
        raise click.UsageError("--on goes with --of-pipeline, --of-experiment or --of-job")
    if on:
        change["on"] = {"facts": list(on), **runs}
    if cron is not None:
        change["trigger"] = {"cron_schedule": {"cron": cron, **times}}
    elif every is not None:
        change["trigger"] = {"periodic_schedule": {"interval_second": str(every), **times}}
    elif times:
        raise click.UsageError("--start and --end go with --cron or --every")
    _print(gateway.ask(_path(job), method="PATCH", document=change))


@jobs.command()
@click.argument("job")
@through_the_gateway
def history(gateway: Gateway, job: str) -> None:
    """Print who changed what of JOB and when, the newest change first."""
    for revision in gateway.ask(f"{_path(job)}/history").get("revisions", []):
        who = f" by {revision['changed_by']}" if "changed_by" in revision else ""
        click.echo(f"{revision['changed_at']}{who}")
        for each in revision["fields"]:
            click.echo(f"  {each['field']}: {each.get('before', '')} -> {each.get('after', '')}")


def _path(job_id: str) -> str:
    return f"/apis/headrace/v1/jobs/{quote(job_id, safe='')}"


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _print(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _print_slots(answer: Mapping[str, Any]) -> None:
    zone = ZoneInfo(answer["time_zone"])
    for slot in answer.get("slots", []):
        click.echo(datetime.fromisoformat(slot).astimezone(zone).isoformat())
