"""`headrace dead`: facts that services gave up on, through the API like any other client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from infra.cli._gateway import Failed, Gateway, through_the_gateway

_DEAD = "/apis/headrace/v1/dead"


@click.group(short_help="Look at facts that services gave up on; have them applied.")
def dead() -> None:
    """Look at the facts that services gave up on, and have them applied after all or forgotten."""


@dead.command(name="list")
@click.option("--subscriber", default="", help="Of one service: run, job-scheduler, metrics.")
@click.option("--json", "as_json", is_flag=True, help="One letter in JSON per line.")
@through_the_gateway
def list_(gateway: Gateway, subscriber: str, as_json: bool) -> None:
    """List what was given up on, the oldest first."""
    for letter in _letters(gateway, subscriber):
        click.echo(json.dumps(letter, ensure_ascii=False) if as_json else _row(letter))


@dead.command()
@click.argument("subscriber")
@click.argument("letter")
@through_the_gateway
def show(gateway: Gateway, subscriber: str, letter: str) -> None:
    """Print all that is known of LETTER, in JSON."""
    click.echo(json.dumps(gateway.ask(_path(subscriber, letter)), indent=2, ensure_ascii=False))


@dead.command()
@click.argument("subscriber", required=False)
@click.argument("letter", required=False)
@click.option("--all", "is_all", is_flag=True, help="All that are listed, of one subscriber where it is named.")
@through_the_gateway
def retry(gateway: Gateway, subscriber: str | None, letter: str | None, is_all: bool) -> None:
    """Have SUBSCRIBER apply LETTER after all; it is gone then."""
    if is_all == bool(letter) or (letter and not subscriber):
        raise click.UsageError("either a subscriber and a letter, or --all")
    if letter and subscriber:
        gateway.ask(f"{_path(subscriber, letter)}:retry", method="POST")
        return
    if _retry_all(gateway, subscriber or ""):
        sys.exit(1)


@dead.command(short_help="Have SUBSCRIBER go on without LETTER, for good.")
@click.argument("subscriber")
@click.argument("letter")
@through_the_gateway
def delete(gateway: Gateway, subscriber: str, letter: str) -> None:
    """Have SUBSCRIBER go on without LETTER, for good: what the fact tells will not be known there."""
    gateway.ask(_path(subscriber, letter), method="DELETE")


def _retry_all(gateway: Gateway, subscriber: str) -> int:
    """How many are dead still. One that is does not keep the others from being tried."""
    failed = 0
    for letter in _letters(gateway, subscriber):
        try:
            gateway.ask(f"{_path(letter['subscriber'], letter['id'])}:retry", method="POST")
            click.echo(f"applied: {_row(letter)}")
        except Failed as failure:
            failed += 1
            click.echo(f"{failure}", err=True)
    return failed


def _letters(gateway: Gateway, subscriber: str) -> Iterator[Any]:
    return gateway.pages(_DEAD, "dead_letters", {"subscriber": subscriber, "page_size": "200"})


def _path(subscriber: str, letter: str) -> str:
    return f"{_DEAD}/{quote(subscriber, safe='')}/{quote(letter, safe='')}"


def _row(letter: Any) -> str:
    return (
        f"{letter['put_aside_at'][:19]}Z  {letter['subscriber']:<13}  {letter['id']}  "
        f"{letter['type']:<28}  {letter['subject']}  {letter['reason']}"
    )
