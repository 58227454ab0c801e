"""`headrace restore`: a data directory out of a backup."""

from __future__ import annotations

from pathlib import Path

import click

from infra.cli._here import Here, on_this_machine


@click.command(short_help="Read a backup into a new data directory.")
@click.argument("folder", type=click.Path(path_type=Path))
@on_this_machine
def restore(here: Here, folder: Path) -> None:
    """Read the backup in FOLDER into the data directory, which must be new or empty; `headrace up` goes on from there.

    Runs that were going on continue; a step that ran is a lost attempt. Slots of recurring runs since then count as
    missed. To subscribers outside, the positions of facts make a leap, which says that there are facts that are gone.
    """
    from infra.embedded.backup import restore as read_back

    about = here.carry_out(lambda data_dir: read_back(folder, data_dir))
    click.echo(f"restored {here.data_dir} as of {about.made_at:%Y-%m-%d %H:%M:%S} UTC: now start `headrace up`")
