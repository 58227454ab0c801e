"""What `headrace --help` says of the commands."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from infra.cli import main


def groups(command: click.Command, name: str) -> Iterator[tuple[str, click.Group]]:
    if isinstance(command, click.Group):
        yield name, command
        context = click.Context(command)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from groups(below, f"{name} {each}")


@pytest.mark.parametrize(("name", "group"), list(groups(main, "headrace")))
def test_each_command_is_described_to_the_end_of_its_line(name: str, group: click.Group) -> None:
    _, _, commands = group.get_help(click.Context(group, info_name=name, terminal_width=80)).rpartition("Commands:\n")
    assert commands
    assert [line for line in commands.splitlines() if line.endswith("...")] == []
