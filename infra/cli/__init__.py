"""The `headrace` command.

A subcommand is a module of this package that holds a click command of the module's own name; adding the file is all it
takes. Modules import what they run inside the command, so that `headrace --help` stays quick.
"""

from __future__ import annotations

import importlib
import pkgutil

import click


class _Subcommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def main() -> None:
    """The Kubeflow Pipelines API v1beta1, as event-driven services.

    `headrace up` starts everything on this machine. Each process can also be started alone by `headrace serve`, which
    reads HEADRACE_… variables: that is what containers do.

    Commands that take --url ask a gateway. It is, by what is said first: the --url, or HEADRACE_URL; the port
    HEADRACE_PORT of this machine; that of the stack which runs on the data directory (HEADRACE_DATA_DIR, else
    ./.headrace); http://127.0.0.1:8888. A variable that is empty says nothing.
    """
