"""The gateway as commands use it: where it is, who asks, and what went wrong, in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any
from urllib.parse import urlencode

import click

from infra.cli._here import command_name


class Failed(Exception):
    """What went wrong, in a sentence."""


def through_the_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command `--url` and `--token`, and a `Gateway` as its first argument; a failure is one line."""

    @click.option("--url", envvar="HEADRACE_URL", help="The gateway: HEADRACE_URL, else this machine's, HEADRACE_PORT.")
    @click.option("--token", envvar="HEADRACE_TOKEN", help="Where the gateway asks for one: HEADRACE_TOKEN.")
    @wraps(command)
    def with_gateway(url: str | None, token: str | None, **given: Any) -> None:
        try:
            command(Gateway(url or _of_this_machine(), token), **given)
        except Failed as failure:
            click.echo(f"{command_name()}: {failure}", err=True)
            sys.exit(1)

    return with_gateway


class Gateway:
    """What is behind one address, asked by any number of threads."""

    def __init__(self, url: str, token: str | None) -> None:
        import urllib3

        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = urllib3.PoolManager(maxsize=64, retries=False)

    def ask(
        self, path: str, *, method: str = "GET", document: Any = None, query: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON answer. Raises Failed."""
        reply = self.open(path, method=method, document=document, query=query)
        with in_our_words():
            return json.loads(reply.data)

    def open(
        self,
        path: str,
        *,
        method: str = "GET",
        document: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        silent_seconds: float | None = None,
    ) -> Any:
        """An answer of urllib3 whose body is still to be read.

        `silent_seconds`: how long nothing may come; for as long as it likes unless given. Raises Failed.
        """
        import urllib3
        from urllib3.exceptions import ConnectTimeoutError

        with in_our_words():
            try:
                reply = self._http.request(
                    method,
                    self._url + path + (f"?{urlencode(query)}" if query else ""),
                    headers={**self._headers, **(headers or {})},
                    body=None if document is None else json.dumps(document).encode(),
                    preload_content=False,
                    timeout=urllib3.Timeout(connect=5, read=silent_seconds),
                )
            except ConnectTimeoutError as error:  # A connection that is refused is one of these, too.
                why = getattr(error.__cause__, "strerror", None) or "it takes too long"
                raise Failed(
                    f"no gateway answers at {self._url} ({why}); --url, HEADRACE_URL or HEADRACE_PORT say where it is"
                ) from error
            if reply.status != 200:
                raise Failed(_refusal(reply.status, reply.data))
        return reply


@contextmanager
def in_our_words() -> Iterator[None]:
    from urllib3.exceptions import HTTPError

    try:
        yield
    except HTTPError as error:
        raise Failed(f"the gateway does not answer: {error}") from error


def _of_this_machine() -> str:
    from infra.embedded.settings import Settings
    from shared.settings import SettingsError, load

    try:
        return f"http://127.0.0.1:{load(Settings).port}"
    except SettingsError as error:
        raise Failed(str(error)) from error


def _refusal(status: int, body: bytes) -> str:
    try:
        document = json.loads(body)
        # What is no message of the API is refused without details.
        return str(document["details"][0]["error_message"] if "details" in document else document["error"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the gateway answers {status}: {body.decode(errors='replace')[:300]}"
