"""The gateway as commands use it: where it is, who asks, and what went wrong, in one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from infra.cli._here import command_name

_HOW_TO_SAY = "--url, HEADRACE_URL, HEADRACE_PORT or HEADRACE_DATA_DIR say where it is"


class Failed(Exception):
    """What went wrong, in a sentence."""


def through_the_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command `--url` and `--token`, and a `Gateway` as its first argument; a failure is one line."""

    @click.option(
        "--url", envvar="HEADRACE_URL", help="The gateway: HEADRACE_URL, else this machine's (see headrace --help)."
    )
    @click.option("--token", envvar="HEADRACE_TOKEN", help="Where the gateway asks for one: HEADRACE_TOKEN.")
    @wraps(command)
    def with_gateway(url: str | None, token: str | None, **given: Any) -> None:
        try:
            command(Gateway(url or _on_this_machine(), token), **given)
        except Failed as failure:
            click.echo(f"{command_name()}: {failure}", err=True)
            sys.exit(1)

    return with_gateway


class Gateway:
    """What is behind one address, asked by any number of threads."""

    def __init__(self, url: str, token: str | None) -> None:
        """Raises Failed where the address is none."""
        import urllib3

        if not url.startswith(("http://", "https://")):
            raise Failed(f"{url!r} is not the address of a gateway: say http://… or https://…")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = urllib3.PoolManager(maxsize=64, retries=False)

    def ask(
        self, path: str, *, method: str = "GET", document: Any = None, query: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON answer. Raises Failed."""
        reply = self.open(path, method=method, document=document, query=query)
        try:
            with self.in_our_words():
                return json.loads(reply.data)
        except ValueError as error:
            raise Failed(f"what answers at {self._url} is no gateway of Headrace; {_HOW_TO_SAY}") from error

    def pages(self, path: str, name: str, query: Mapping[str, str] | None = None) -> Iterator[Any]:
        """All that is listed under a name, page after page. Raises Failed."""
        token = ""
        while True:
            page = self.ask(path, query={**(query or {}), "page_token": token})
            yield from page.get(name, ())
            token = page.get("next_page_token", "")
            if not token:
                return

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

        with self.in_our_words():
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
                raise Failed(f"no gateway answers at {self._url} ({why}); {_HOW_TO_SAY}") from error
            if reply.status != 200:
                refusal = _refusal(self._url, reply.status, reply.data)
                raise Failed(f"{refusal} (--token or HEADRACE_TOKEN)" if reply.status == 401 else refusal)
        return reply

    @contextmanager
    def in_our_words(self) -> Iterator[None]:
        """For those who read an answer that was opened. Raises Failed."""
        from urllib3.exceptions import HTTPError

        try:
            yield
        except HTTPError as error:
            raise Failed(f"the gateway at {self._url} does not answer: {error}") from error


def _on_this_machine() -> str:
    """Where somebody says that it is, else where the stack on the data directory has it, else where clients expect it.

    Who says a port means that one: a change must not go to whatever else runs here. Raises Failed.
    """
    from infra.embedded.data_dir import DataDir
    from infra.embedded.failure import StartFailure
    from infra.embedded.ports import LOOPBACK
    from infra.embedded.settings import Settings
    from shared.settings import SettingsError, load, variable_of

    try:
        settings = load(Settings)
    except SettingsError as error:
        raise Failed(str(error)) from error
    port = settings.port
    if not os.environ.get(variable_of("port")):
        with suppress(StartFailure):  # Nothing ran there, or it is another user's.
            port = DataDir(Path(settings.data_dir)).running_ports().get("gateway", port)
    return f"http://{LOOPBACK}:{port}"


def _refusal(url: str, status: int, body: bytes) -> str:
    try:
        document = json.loads(body)
        # What is no message of the API is refused without details.
        return str(document["details"][0]["error_message"] if "details" in document else document["error"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the gateway at {url} answers {status}: {body.decode(errors='replace')[:300]}"
