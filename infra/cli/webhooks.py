"""`headrace webhooks`: who is told of what, and what became of it, through the API like any other client."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from infra.cli._gateway import Failed, Gateway, through_the_gateway

_WEBHOOKS = "/apis/headrace/v1/webhooks"


@click.group()
def webhooks() -> None:
    """Have events sent to a URL. A webhook is named by its id, or by its name where only one has it."""


@webhooks.command(short_help="Send what happens from now on to a URL.")
@click.argument("name")
@click.argument("target", metavar="URL")
@click.option("--resource", default="", help="Whose: run, job-scheduler, experiment, pipeline-registry, metrics.")
@click.option("--fact", default="", help="What has happened: succeeded,failed,error and so on.")
@click.option("--experiment", "experiment_id", default="", help="By the id of the experiment that it is about.")
@click.option("--pipeline", "pipeline_id", default="", help="By the id of the pipeline.")
@click.option("--job", "job_id", default="", help="By the id of the recurring run.")
@click.option("--slack", is_flag=True, help="Send a text for people, as Slack takes it.")
@through_the_gateway
def create(gateway: Gateway, name: str, target: str, resource: str, fact: str, slack: bool, **about: str) -> None:
    """Send what happens from now on to URL, and print the secret that it is signed with, this once."""
    asked = {
        "name": name,
        "url": target,
        "format": "slack" if slack else "cloudevents",
        "resources": _words(resource),
        "facts": _words(fact),
        **about,
    }
    webhook = gateway.ask(_WEBHOOKS, method="POST", document=asked)
    click.echo(f"{webhook['id']}  {webhook['secret']}")


@webhooks.command("list")
@through_the_gateway
def list_(gateway: Gateway) -> None:
    """Show all webhooks."""
    for each in gateway.pages(_WEBHOOKS, "webhooks"):
        reason = f"  {each['pause_reason']}" if each.get("pause_reason") else ""
        click.echo(f"{each['id']}  {each['status']:<6}  {each['name']}  {each['url']}  {_wanted(each)}{reason}")


@webhooks.command()
@click.argument("webhook")
@through_the_gateway
def show(gateway: Gateway, webhook: str) -> None:
    """Show one webhook, in JSON."""
    click.echo(json.dumps(gateway.ask(_path(gateway, webhook)), indent=2, ensure_ascii=False))


@webhooks.command()
@click.argument("webhook")
@through_the_gateway
def delete(gateway: Gateway, webhook: str) -> None:
    """Delete a webhook and its deliveries."""
    gateway.ask(_path(gateway, webhook), method="DELETE")


@webhooks.command(short_help="Send an event that tells of nothing, now.")
@click.argument("webhook")
@through_the_gateway
def test(gateway: Gateway, webhook: str) -> None:
    """Send an event that tells of nothing, now; fails where it is not taken."""
    result = gateway.ask(f"{_path(gateway, webhook)}:test", method="POST")
    if not result.get("is_delivered"):
        raise Failed(result["reason"])
    click.echo(f"{result['code']} after {result.get('milliseconds', 0)} ms")


@webhooks.command(short_help="Send nothing until it is resumed.")
@click.argument("webhook")
@through_the_gateway
def pause(gateway: Gateway, webhook: str) -> None:
    """Send nothing until it is resumed; what happens meanwhile waits."""
    gateway.ask(f"{_path(gateway, webhook)}:pause", method="POST")


@webhooks.command()
@click.argument("webhook")
@through_the_gateway
def resume(gateway: Gateway, webhook: str) -> None:
    """Send what waits, and what happens from now on."""
    gateway.ask(f"{_path(gateway, webhook)}:resume", method="POST")


@webhooks.command()
@click.argument("webhook")
@click.option("--status", type=click.Choice(["waiting", "delivered", "gave-up"]), help="Only those.")
@click.option("--last", default=20, show_default=True, help="So many, the latest first.")
@through_the_gateway
def deliveries(gateway: Gateway, webhook: str, status: str | None, last: int) -> None:
    """Show what was sent to a webhook, and what waits for it."""
    query = {"sort_by": "created_at desc", "page_size": "200"}
    if status:
        query["filter"] = json.dumps({"predicates": [{"key": "status", "op": "EQUALS", "string_value": status}]})
    listed = gateway.pages(f"{_path(gateway, webhook)}/deliveries", "deliveries", query)
    for _, each in zip(range(last), listed, strict=False):
        tries = f"{each['tries']} tries" if each.get("tries", 0) > 1 else ""
        row = f"{each['id']}  {each['created_at']}  {each['status']:<9}  {each['type']}  {each['subject']}"
        click.echo("  ".join(filter(None, (row, tries, each.get("reason")))))


@webhooks.command()
@click.argument("webhook")
@click.argument("delivery")
@through_the_gateway
def redeliver(gateway: Gateway, webhook: str, delivery: str) -> None:
    """Send a delivery again, or now where it waits."""
    path = f"{_path(gateway, webhook)}/deliveries/{quote(delivery, safe='')}"
    gateway.ask(f"{path}:redeliver", method="POST")


def _path(gateway: Gateway, webhook: str) -> str:
    """Of the webhook with that id, or the only one with that name."""
    query = {"filter": json.dumps({"predicates": [{"key": "name", "op": "EQUALS", "string_value": webhook}]})}
    named = list(gateway.pages(_WEBHOOKS, "webhooks", query))
    if len(named) > 1:
        raise Failed(f"{len(named)} webhooks are called {webhook}: {', '.join(each['id'] for each in named)}")
    identity = named[0]["id"] if named else webhook
    return f"{_WEBHOOKS}/{quote(identity, safe='')}"


def _wanted(webhook: Any) -> str:
    """What it waits for, as the options of `create` say it."""
    parts = [",".join(webhook.get("resources", ())), ",".join(webhook.get("facts", ()))]
    about = [f"{name}={webhook[f'{name}_id']}" for name in ("experiment", "pipeline", "job") if f"{name}_id" in webhook]
    return " ".join(filter(None, (*parts, *about))) or "everything"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
