"""`headrace up`: the whole stack on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import click


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the gateway: HEADRACE_PORT, else 8888.")
@click.option(
    "--data-dir", type=click.Path(readable=False), help="Where to keep data: HEADRACE_DATA_DIR, else ./.headrace."
)
@click.option(
    "--replicas",
    metavar="[COUNT,]NAME=COUNT,…",
    help="How many processes share a service's work, as run=4,metrics=2, or 2 of each: HEADRACE_REPLICAS, else 1.",
)
def up(port: int | None, data_dir: str | None, replicas: str | None) -> None:
    """Start everything on this machine and run it until Ctrl-C.

    Postgres, NATS and an object store from the wheels of the extra `headrace[embedded]`, the services, the engine and
    the gateway. No Docker, no cluster, no root. All data stays in one folder: starting again continues from there.

    Ctrl-C lets steps that run end, for HEADRACE_STOP_WAIT_SECONDS (30) at most, and starts no others; Ctrl-C again
    interrupts them. With HEADRACE_STOP_STEPS=interrupt nothing is waited for. A terminal that closes counts as one
    Ctrl-C; under nohup it does not.

    Every service may have replicas, each with a log of its own (run.log, run-2.log); one that ends is started again
    while the others go on. There is one gateway, one run-controller and one step-runner.

    Prints one line, `headrace ready http://127.0.0.1:PORT`, once requests are answered. Logs are in DATA_DIR/logs.
    """
    import os

    from infra.embedded.failure import StartFailure
    from infra.embedded.settings import Settings
    from infra.embedded.stack import run
    from shared.settings import SettingsError, load, variable_of

    given = {"port": port, "data_dir": data_dir, "replicas": replicas}
    options = {variable_of(name): str(value) for name, value in given.items() if value is not None}
    try:
        settings = load(Settings, {**os.environ, **options})
        asyncio.run(run(settings, ready=ready, say=say))
    except (SettingsError, StartFailure) as failure:
        say(f"cannot start: {failure}")
        sys.exit(1)


def ready(url: str) -> None:
    click.echo(f"headrace ready {url}")


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # The terminal may be gone, and the stack is still to be ended in order.
        click.echo(f"headrace: {line}", err=True)
