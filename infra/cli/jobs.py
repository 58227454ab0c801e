"""`headrace jobs`: recurring runs, with what they have beyond the original API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import click

from infra.cli._gateway import Failed, Gateway, through_the_gateway

_JOBS = "/apis/v1beta1/jobs"
_ENDINGS = ["succeeded", "failed", "error", "skipped", "ended"]

_WHEN_AND_HOW = (
    click.option("--description"),
    click.option("--cron", metavar="EXPRESSION", help="A schedule; six fields, seconds first."),
    click.option("--every", type=int, metavar="SECONDS", help="A schedule."),
    click.option("--start", metavar="TIME", help="When the schedule begins, such as 2026-01-01T00:00:00Z."),
    click.option("--end", metavar="TIME", help="When the schedule ends."),
    click.option(
        *("--on", "endings"),
        multiple=True,
        type=click.Choice(_ENDINGS),
        help="The end of a run, instead of a schedule; may be repeated.",
    ),
    click.option("--of-pipeline", metavar="ID", help="Whose runs' ends."),
    click.option("--of-experiment", metavar="ID", help="Whose runs' ends."),
    click.option("--of-job", metavar="ID", help="Whose runs' ends."),
    click.option("--time-zone", metavar="ZONE", help="In which the expression is read, such as Europe/Berlin."),
    click.option("--missed", type=click.Choice(["all", "latest", "none"]), help="What becomes of missed slots."),
    click.option("--window", type=int, metavar="SECONDS", help="How old a missed slot may be; 0 for any age."),
    click.option(
        "--overlap", type=click.Choice(["queue", "skip", "replace"]), help="What becomes of slots without room."
    ),
    click.option("--max-concurrency", type=int, help="How many runs may be alive; 1 to 10."),
    click.option(
        "--pause-on-failures", type=int, metavar="NUMBER", help="Failures in a row to disable it after; 0 never."
    ),
    click.option(
        "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="All of them; may be repeated."
    ),
)


def _when_and_how(command: Any) -> Any:
    for option in reversed(_WHEN_AND_HOW):
        command = option(command)
    return command


@click.group(short_help="Make, look at and change recurring runs.")
def jobs() -> None:
    """Make recurring runs, look at them, ahead and back, and change them. JOB is the id of one.

    \b
    headrace jobs create nightly --package ml.yaml --cron '0 30 2 * * *'
    headrace jobs create often --pipeline ID --every 600 --parameter rows=400
    headrace jobs create report --pipeline ID --on succeeded --of-job JOB
    headrace jobs preview JOB -n 3
    headrace jobs update JOB --cron '0 0 3 * * *'
    """


@jobs.command(short_help="Make a recurring run, and print its id.")
@click.argument("name")
@click.option("--pipeline", metavar="ID", help="What it runs: the version that is the default one now.")
@click.option("--version", metavar="ID", help="What it runs: one version of a pipeline.")
@click.option(
    "--package",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What it runs: a compiled pipeline, as it is now.",
)
@click.option("--experiment", metavar="ID", help="Where its runs belong; the default one, unless it is given.")
@click.option("--service-account", metavar="ACCOUNT", help="Of its runs.")
@click.option("--disabled", is_flag=True, help="It fires once it is enabled.")
@_when_and_how
@through_the_gateway
def create(
    gateway: Gateway,
    name: str,
    pipeline: str | None,
    version: str | None,
    package: Path | None,
    experiment: str | None,
    service_account: str | None,
    disabled: bool,
    max_concurrency: int | None,
    **when_and_how: Any,
) -> None:
    """Make a recurring run called NAME, and print its id.

    It runs one of --pipeline, --version and --package, whenever one of --cron, --every and --on says. One run of it may
    be alive at a time, unless --max-concurrency says more.
    """
    if sum(source is not None for source in (pipeline, version, package)) != 1:
        raise click.UsageError("a job runs one of --pipeline, --version and --package")
    said = _said(**when_and_how)
    if not said.keys() & {"trigger", "on"}:
        raise click.UsageError("a job has one of --cron, --every and --on")
    spec = _given(
        pipeline_id=pipeline,
        workflow_manifest=None if package is None else _manifest(package),
        parameters=said.pop("parameters", None),
    )
    belongs = [("EXPERIMENT", experiment, "OWNER"), ("PIPELINE_VERSION", version, "CREATOR")]
    references = [
        {"key": {"type": kind, "id": identity}, "relationship": relationship}
        for kind, identity, relationship in belongs
        if identity is not None
    ]
    asked = {
        "name": name,
        "enabled": not disabled,
        "max_concurrency": str(1 if max_concurrency is None else max_concurrency),
        "pipeline_spec": spec,
        "resource_references": references,
        **_given(service_account=service_account),
        **said,
    }
    click.echo(gateway.ask(_JOBS, method="POST", document=asked)["id"])


@jobs.command("list")
@click.option("--experiment", metavar="ID", help="Of one experiment.")
@through_the_gateway
def list_(gateway: Gateway, experiment: str | None) -> None:
    """List recurring runs, with when they fire."""
    query = {"page_size": "200"}
    if experiment is not None:
        query |= {"resource_reference_key.type": "EXPERIMENT", "resource_reference_key.id": experiment}
    for each in gateway.pages(_JOBS, "jobs", query):
        state = "enabled" if each.get("enabled") else "disabled"
        row = f"{each['id']}  {state:<8}  {each['name']}  {_schedule(each.get('trigger', {}))}  {each.get('error', '')}"
        click.echo(row.rstrip())


@jobs.command()
@click.argument("job")
@through_the_gateway
def enable(gateway: Gateway, job: str) -> None:
    """Let JOB fire."""
    gateway.ask(f"{_original(job)}/enable", method="POST")


@jobs.command(short_help="Keep JOB from firing.")
@click.argument("job")
@through_the_gateway
def disable(gateway: Gateway, job: str) -> None:
    """Keep JOB from firing; its runs that are alive go on."""
    gateway.ask(f"{_original(job)}/disable", method="POST")


@jobs.command()
@click.argument("job")
@through_the_gateway
def delete(gateway: Gateway, job: str) -> None:
    """Delete JOB; the runs that it made stay."""
    gateway.ask(_original(job), method="DELETE")


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
@_when_and_how
@through_the_gateway
def update(gateway: Gateway, job: str, name: str | None, max_concurrency: int | None, **when_and_how: Any) -> None:
    """Change JOB in place. What is not named stays as it is, and so do runs that are alive."""
    change = _given(name=name, max_concurrency=max_concurrency) | _said(**when_and_how)
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


def _said(
    *,
    cron: str | None,
    every: int | None,
    start: str | None,
    end: str | None,
    endings: tuple[str, ...],
    of_pipeline: str | None,
    of_experiment: str | None,
    of_job: str | None,
    window: int | None,
    parameters: tuple[str, ...],
    **fields: Any,
) -> dict[str, Any]:
    """What the options say, in the fields of a job."""
    said = _given(**fields, missed_window_seconds=window)
    if parameters:
        pairs = (parameter.partition("=") for parameter in parameters)
        said["parameters"] = [{"name": name, "value": value} for name, _, value in pairs]
    times = _given(start_time=start, end_time=end)
    if sum((cron is not None, every is not None, bool(endings))) > 1:
        raise click.UsageError("a job has one of --cron, --every and --on")
    runs = _given(pipeline_id=of_pipeline, experiment_id=of_experiment, job_id=of_job)
    if bool(endings) is not bool(runs):
        raise click.UsageError("--on goes with --of-pipeline, --of-experiment or --of-job")
    if endings:
        said["on"] = {"facts": list(endings), **runs}
    if cron is not None:
        said["trigger"] = {"cron_schedule": {"cron": cron, **times}}
    elif every is not None:
        said["trigger"] = {"periodic_schedule": {"interval_second": str(every), **times}}
    elif times:
        raise click.UsageError("--start and --end go with --cron or --every")
    return said


def _manifest(package: Path) -> str:
    """As the API takes it. Raises Failed."""
    from services.pipeline_registry.packages import read_package
    from services.pipeline_registry.templates import read_template
    from shared.errors import Refusal

    try:
        return read_template(read_package(package.name, package.read_bytes()), package.stem).manifest
    except OSError as error:
        raise Failed(f"{package}: {error.strerror}") from error
    except Refusal as refusal:
        raise Failed(f"{package}: {refusal}") from refusal


def _schedule(trigger: Mapping[str, Any]) -> str:
    if "cron_schedule" in trigger:
        return str(trigger["cron_schedule"].get("cron", ""))
    if "periodic_schedule" in trigger:
        return f"every {trigger['periodic_schedule'].get('interval_second', 0)} s"
    return ""


def _original(job_id: str) -> str:
    return f"{_JOBS}/{quote(job_id, safe='')}"


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
