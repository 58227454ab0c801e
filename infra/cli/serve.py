"""`headrace serve NAME`: one process, told everything by its environment.

What the embedded supervisor, a compose file and a Kubernetes manifest all start.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

SERVICES = ("experiment", "pipeline-registry", "run", "job-scheduler", "metrics", "notifier")


@click.command()
@click.argument("name", type=click.Choice([*SERVICES, "run-controller", "step-runner", "gateway"]), metavar="NAME")
def serve(name: str) -> None:
    """Run one process in the foreground, until SIGTERM.

    \b
    NAME is one of
      experiment, pipeline-registry, run, job-scheduler, metrics,
      notifier                                                     a service
      run-controller                                               drives the engine
      step-runner                                                  parent of the embedded engine's steps
      gateway                                                      the door for clients

    Settings are HEADRACE_… variables. Where one is missing or wrong, a line says which.
    """
    from shared import logs, tracing
    from shared.settings import SettingsError, load

    try:
        log = load(logs.LogSettings)
        logs.configure(name, format=log.log_format, level=log.log_level)
        with tracing.exporting(name):
            _serve(name)
    except SettingsError as error:
        click.echo(f"headrace serve {name}: {error}", err=True)
        sys.exit(2)


def _serve(name: str) -> None:
    match name:
        case "gateway":
            _serve_http("gateway")
        case "run-controller":
            _serve_controller()
        case "step-runner":
            # It replaces this process: whatever was imported here would stay in the memory of a process kept small.
            os.execv(sys.executable, [sys.executable, "-m", "services.run.engine.embedded.runner"])  # noqa: S606
        case service:
            _serve_http(f"services.{service.replace('-', '_')}")


def _serve_http(package: str) -> None:
    from shared.settings import load
    from shared.web import run_server

    settings = load(_found(f"{package}.settings:Settings"))
    app = _found(f"{package}.app:create_app")(settings)
    run_server(app, host=settings.listen_host, port=settings.listen_port)


def _serve_controller() -> None:
    from shared.settings import load
    from shared.web import run_server

    settings = load(_found("services.run.settings:ControllerSettings"))
    app = _found("services.run.controller_app:create_app")(settings)
    # Only those who watch it come here, and none of them is to go elsewhere first.
    run_server(app, host=settings.listen_host, port=settings.listen_port, notice_seconds=0)


def _found(place: str) -> Any:
    """What `module:name` names; imported only now, so that a process holds no other process's modules."""
    import importlib

    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
