"""The stack of this machine as commands use it that need no gateway: its folder, and what went wrong, in one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Here:
    data_dir: Path

    def carry_out(self, work: Callable[[Path], Coroutine[Any, Any, T]]) -> T:
        """A failure is one line, and the end."""
        from infra.embedded.backup import BackupError
        from infra.embedded.failure import StartFailure

        try:
            return asyncio.run(work(self.data_dir))
        except (BackupError, StartFailure) as failure:
            click.echo(f"{command_name()}: {failure}", err=True)
            sys.exit(1)


def on_this_machine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command `--data-dir`, and a `Here` as its first argument."""

    @click.option(
        "--data-dir", type=click.Path(readable=False), help="Of `headrace up`: HEADRACE_DATA_DIR, else ./.headrace."
    )
    @wraps(command)
    def with_folder(data_dir: str | None, **given: Any) -> None:
        command(Here(data_dir=Path(data_dir) if data_dir else _told()), **given)

    return with_folder


def _told() -> Path:
    from infra.embedded.settings import Settings
    from shared.settings import SettingsError, load

    try:
        return Path(load(Settings).data_dir)
    except SettingsError as error:
        click.echo(f"{command_name()}: {error}", err=True)
        sys.exit(1)


def command_name() -> str:
    _, *words = click.get_current_context().command_path.split()
    return " ".join(["headrace", *words])
