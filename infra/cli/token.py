"""`headrace token`: who may use the gateway by a static token."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from gateway.tokens import Token

T = TypeVar("T")


@click.group()
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The gateway's file of tokens: HEADRACE_AUTH_TOKENS_FILE, else tokens.json in the data directory.",
)
@click.pass_context
def token(context: click.Context, file: Path | None) -> None:
    """Create, list and revoke tokens for the gateway.

    A running gateway started with HEADRACE_AUTH=tokens sees a change within a second. Clients send a token as
    `Authorization: Bearer TOKEN`; with the kfp SDK: kfp.Client(host=…, existing_token=TOKEN).
    """
    context.obj = file or _default_file()


@token.command()
@click.argument("name")
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), help="How long it is valid; for ever if not given."
)
@click.pass_obj
def create(file: Path, name: str, days: float | None) -> None:
    """Make a token for NAME and print it. It is kept nowhere else: this is the only time it can be read."""
    from gateway import tokens

    valid_for = None if days is None else timedelta(days=days)
    click.echo(_or_fail(lambda: tokens.create(file, name, valid_for=valid_for)))


@token.command("list")
@click.pass_obj
def list_tokens(file: Path) -> None:
    """Show the names of the tokens and their times, never the tokens."""
    from gateway import tokens

    now = datetime.now(UTC)
    for each in _or_fail(lambda: tokens.read(file)):
        click.echo(f"{each.name}\tcreated {_day(each.created_at)}\t{_end(each, now)}")


@token.command()
@click.argument("name")
@click.pass_obj
def revoke(file: Path, name: str) -> None:
    """Forget the token of NAME: it is refused from within a second on."""
    from gateway import tokens

    _or_fail(lambda: tokens.revoke(file, name))


def _default_file() -> Path:
    named = os.environ.get("HEADRACE_AUTH_TOKENS_FILE")
    return Path(named) if named else Path(os.environ.get("HEADRACE_DATA_DIR") or ".headrace", "tokens.json")


def _or_fail(do: Callable[[], T]) -> T:
    from gateway.tokens import TokenError

    try:
        return do()
    except TokenError as error:
        click.echo(f"headrace token: {error}", err=True)
        sys.exit(1)


def _end(each: Token, now: datetime) -> str:
    if each.expires_at is None:
        return "does not expire"
    return f"{'expired' if each.has_expired(now) else 'expires'} {_day(each.expires_at)}"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
