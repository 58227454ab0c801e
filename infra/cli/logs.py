"""`headrace logs`: what the steps of a run wrote, through the API like any other client."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from typing import Any
from urllib.parse import quote

import click

from infra.cli._gateway import Failed, Gateway, through_the_gateway

_API = "/apis/v1beta1"
_FINAL = {"Succeeded", "Failed", "Error", "Skipped"}
_LOOK_SECONDS = 0.5
_CHUNK_BYTES = 64 * 1024


@click.command()
@click.argument("run")
@click.argument("node", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the step, or the whole run, is over.")
@through_the_gateway
def logs(gateway: Gateway, run: str, node: str | None, follow: bool) -> None:
    """Show what the steps of RUN (its id) wrote.

    NODE is a step's id or the name that the pipeline gives it; its text is written as it is. Without NODE, every line
    of every step is shown behind the name of its step.
    """
    api = _Api(gateway)
    if node is not None:
        _show_one(api, run, node, follow=follow)
    elif follow:
        _follow_all(api, run)
    else:
        _show_all(api, run)


class _Api:
    """The two calls that are made, by any number of threads."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def steps(self, run_id: str) -> tuple[list[dict[str, Any]], bool]:
        """The steps that have begun, in the order of their beginnings, and whether the run is over."""
        detail = self._gateway.ask(f"{_API}/runs/{quote(run_id, safe='')}")
        workflow = json.loads(detail["pipeline_runtime"]["workflow_manifest"])
        nodes = (workflow.get("status") or {}).get("nodes") or {}
        ranks = _ranks(nodes)
        steps = [each for each in nodes.values() if each["type"] == "Pod"]
        # Times are whole seconds: of two steps in one second, the one that the other waited for comes first.
        steps.sort(key=lambda each: (each.get("startedAt") or "~", ranks.get(each["id"], 0)))
        return steps, detail["run"].get("status") in _FINAL

    def text(self, run_id: str, node_id: str, *, follow: bool) -> Iterator[bytes]:
        path = f"{_API}/runs/{quote(run_id, safe='')}/nodes/{quote(node_id, safe='')}/log"
        reply = self._gateway.open(path, query={"follow": "true"} if follow else None)
        try:
            with self._gateway.in_our_words():
                yield from reply.stream(_CHUNK_BYTES)
        finally:
            reply.release_conn()


def _ranks(nodes: Mapping[str, Any]) -> dict[str, int]:
    """Each node's place in an order in which every node stands behind those it waited for."""
    order = TopologicalSorter[str]()
    for node_id in sorted(nodes):
        for child in nodes[node_id].get("children") or ():
            order.add(child, node_id)
    return {node_id: rank for rank, node_id in enumerate(order.static_order())}


def _show_one(api: _Api, run_id: str, wanted: str, *, follow: bool) -> None:
    node_id = _find(api, run_id, wanted, wait=follow)
    for chunk in api.text(run_id, node_id, follow=follow):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _find(api: _Api, run_id: str, wanted: str, *, wait: bool) -> str:
    """The id of the step; of several with one name (attempts, rounds of a loop) the last one that began."""
    while True:
        steps, is_over = api.steps(run_id)
        found = [step["id"] for step in steps if wanted in (step["id"], step["displayName"], _bare(step))]
        if found:
            return str(found[-1])
        if is_over or not wait:
            names = ", ".join(sorted({step["displayName"] for step in steps})) or "none yet"
            raise Failed(f"run {run_id} has no step {wanted} (steps: {names})")
        time.sleep(_LOOK_SECONDS)


def _bare(step: dict[str, Any]) -> str:
    """The name of a step whose attempts are numbered."""
    return str(step["displayName"]).partition("(")[0]


def _show_all(api: _Api, run_id: str) -> None:
    printer = _Printer()
    steps, _ = api.steps(run_id)
    for step in steps:
        printer.show(step["displayName"], api.text(run_id, step["id"], follow=False))


def _follow_all(api: _Api, run_id: str) -> None:
    """One thread per step, from when it begins; none outlives a Ctrl-C."""
    printer = _Printer()
    readers: dict[str, _Reader] = {}
    while True:
        steps, is_over = api.steps(run_id)
        for step in steps:
            if step["id"] not in readers:
                readers[step["id"]] = _Reader(api, printer, run_id, step)
        if is_over:
            break
        printer.check()
        time.sleep(_LOOK_SECONDS)
    for reader in readers.values():
        reader.finish()
    printer.check()


class _Reader:
    def __init__(self, api: _Api, printer: _Printer, run_id: str, step: dict[str, Any]) -> None:
        self._failure: Failed | None = None

        def read() -> None:
            try:
                printer.show(step["displayName"], api.text(run_id, step["id"], follow=True))
            except Failed as failure:
                self._failure = failure
            except BrokenPipeError:
                return  # The printer tells of it, once.

        self._thread = threading.Thread(target=read, name=step["id"], daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class _Printer:
    """Whole lines of several steps on one screen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._broken: BrokenPipeError | None = None

    def check(self) -> None:
        """Raises BrokenPipeError where nobody reads any more."""
        if self._broken is not None:
            raise self._broken

    def show(self, name: str, chunks: Iterator[bytes]) -> None:
        waiting = b""
        for chunk in chunks:
            *lines, waiting = (waiting + chunk).split(b"\n")
            self._print(name, lines)
        if waiting:
            self._print(name, [waiting])

    def _print(self, name: str, lines: list[bytes]) -> None:
        with self._lock:
            try:
                for line in lines:
                    sys.stdout.buffer.write(f"{name} | ".encode() + line + b"\n")
                sys.stdout.buffer.flush()
            except BrokenPipeError as error:
                self._broken = error
                raise
