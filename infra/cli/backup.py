"""`headrace backup`: what a stack on this machine keeps, into a folder."""

from __future__ import annotations

from pathlib import Path

import click

from infra.cli._here import Here, on_this_machine


@click.command(short_help="Write what the stack of this machine keeps into a folder.")
@click.argument("folder", type=click.Path(path_type=Path))
@on_this_machine
def backup(here: Here, folder: Path) -> None:
    """Write everything that the stack of this machine keeps into FOLDER, which must not exist yet.

    The stack may run meanwhile, and go on working: what was committed before the command began is in the backup. What
    is deleted while it works may lack its files. `headrace restore FOLDER` makes a data directory of it again.

    The folder holds passwords.
    """
    from infra.embedded.backup import back_up

    about = here.carry_out(lambda data_dir: back_up(data_dir, folder))
    click.echo(f"backed up {here.data_dir} to {folder}: the database and {about.objects} objects")
