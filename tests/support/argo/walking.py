"""A brain that takes workflows through their phases by a script: for load, and for whatever can happen on the way.

It knows no templates. Each workflow gets as many steps as its walk says, below a DAG where there is more than one, and
goes on from whatever its object shows: a restart, and the retry of a run, find their steps as they were left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from services.run.engine.embedded.nodes import node_id
from tests.support.argo.held import Held, now
from tests.support.argo.pods import Pods
from tests.support.kubernetes.client import ApiClient

STOPPED = "Step exceeded its deadline"
"""What Argo says of a deadline of nought."""
POD_DELETED = "pod deleted"


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """The way of one workflow."""

    steps: int = 1
    step_seconds: float = 0.0
    outcome: str = "Succeeded"
    """Of the last step, and so of the workflow."""
    message: str = ""
    has_pods: bool = True
    updates: int = 0
    """So often each running step tells of its progress, with a change of the object each time."""
    holds_at: str = ""
    """Pending: nothing is written. Running: the steps run. Either lasts until `Walking.let_go`."""


class Walking:
    def __init__(self, api: ApiClient, script: Walk | Callable[[Held], Walk] = Walk()) -> None:  # noqa: B008 - frozen
        """`script` may look at the workflow that is about to go."""
        self._api = api
        self._script = script
        self._let_go: dict[str, asyncio.Event] = {}

    def let_go(self, name: str) -> None:
        """Hold this workflow no longer, whether it has begun or not."""
        self._gate(name).set()

    async def work(self) -> None:
        """Nothing goes on beside the workflows."""

    async def live(self, workflow: Held) -> None:
        walk = self._script if isinstance(self._script, Walk) else self._script(workflow)
        await self._pass("Pending", walk, workflow)
        await _Life(self._api, workflow, walk, self._pass).live()

    async def forget(self, workflow: Held) -> None:
        await Pods(self._api, workflow).delete_all()

    async def _pass(self, where: str, walk: Walk, workflow: Held) -> None:
        """Beyond where the script holds the workflow. One that runs is let go by a stop as well."""
        if walk.holds_at == where:
            gate = asyncio.create_task(self._gate(workflow.name).wait())
            stop = asyncio.create_task(workflow.until(lambda seen: seen.is_stopped and where == "Running"))
            try:
                await asyncio.wait([gate, stop], return_when=asyncio.FIRST_COMPLETED)
            finally:
                gate.cancel()
                stop.cancel()

    def _gate(self, name: str) -> asyncio.Event:
        return self._let_go.setdefault(name, asyncio.Event())


class _Life:
    def __init__(self, api: ApiClient, workflow: Held, walk: Walk, pass_: Callable[[str, Walk, Held], Any]) -> None:
        self._workflow = workflow
        self._walk = walk
        self._pass = pass_
        self._pods = Pods(api, workflow)

    async def live(self) -> None:
        workflow, walk = self._workflow, self._walk
        steps = [
            node for node in map(self._as_it_is, range(walk.steps)) if node["phase"] not in ("Succeeded", "Skipped")
        ]
        root = [] if walk.steps == 1 else [self._root("Running")]
        if workflow.is_stopped:
            await self._stop(steps, root)
            return
        if walk.has_pods:
            for node in steps:
                await self._pods.create(node)
        await workflow.write(phase="Running", message="", nodes=_by_id(*root, *steps))
        for node in steps:
            if walk.has_pods:
                await self._pods.show(node["id"], "Running")
        steps = [{**node, "phase": "Running"} for node in steps]
        await workflow.write(phase="Running", nodes=_by_id(*steps))
        await self._pass("Running", walk, workflow)
        for position, node in enumerate(steps):
            await self._run(node)
            if workflow.is_stopped:
                await self._stop(steps[position:], root)
                return
            is_last = position == len(steps) - 1
            ended = await self._ended(node, walk.outcome if is_last else "Succeeded", walk.message if is_last else "")
            if is_last or ended["phase"] != "Succeeded":
                await self._end(ended, root)
                return
            await workflow.write(nodes=_by_id(ended))
        # Everything was done before this life.
        await self._end(None, root)

    async def _run(self, node: dict[str, Any]) -> None:
        for count in range(1, self._walk.updates + 1):
            await self._workflow.write(nodes=_by_id({**node, "progress": f"{count}/{self._walk.updates}"}))
        stopped = self._workflow.until(lambda seen: seen.is_stopped)
        try:
            async with asyncio.timeout(self._walk.step_seconds):
                await stopped
        except TimeoutError:
            return

    async def _ended(self, node: dict[str, Any], phase: str, message: str) -> dict[str, Any]:
        ended = {**node, "phase": phase, "finishedAt": now(), **({"message": message} if message else {})}
        if self._walk.has_pods and not await self._pods.show(node["id"], phase):
            return {**ended, "phase": "Error", "message": POD_DELETED}
        return ended

    async def _stop(self, steps: list[dict[str, Any]], root: list[dict[str, Any]]) -> None:
        ended = [{**node, "phase": "Failed", "message": STOPPED, "finishedAt": now()} for node in steps]
        if self._walk.has_pods:
            for node in steps:
                await self._pods.delete(node["id"])
        above = [{**node, "phase": "Failed", "finishedAt": now()} for node in root]
        await self._workflow.write(phase="Failed", message=STOPPED, nodes=_by_id(*above, *ended))

    async def _end(self, last: dict[str, Any] | None, root: list[dict[str, Any]]) -> None:
        phase = "Succeeded" if last is None else last["phase"]
        message = "" if last is None else last.get("message", "")
        above = [{**node, "phase": phase, "finishedAt": now()} for node in root]
        ended = [] if last is None else [last]
        await self._workflow.write(phase=phase, message=message, nodes=_by_id(*above, *ended))

    def _as_it_is(self, number: int) -> dict[str, Any]:
        name = self._workflow.name
        is_alone = self._walk.steps == 1
        node_name = name if is_alone else f"{name}.step-{number}"
        known = self._workflow.nodes.get(node_id(name, node_name))
        above = {} if is_alone else {"boundaryID": name}
        return known or {
            "id": node_id(name, node_name),
            "name": node_name,
            "displayName": name if is_alone else f"step-{number}",
            "type": "Pod",
            "templateName": "step",
            "templateScope": f"local/{name}",
            "phase": "Pending",
            "startedAt": now(),
            "finishedAt": None,
            **above,
        }

    def _root(self, phase: str) -> dict[str, Any]:
        name = self._workflow.name
        steps = [node_id(name, f"{name}.step-{number}") for number in range(self._walk.steps)]
        return {
            "id": name,
            "name": name,
            "displayName": name,
            "type": "DAG",
            "templateName": "main",
            "templateScope": f"local/{name}",
            "startedAt": now(),
            **self._workflow.nodes.get(name, {}),
            "phase": phase,
            "finishedAt": None,
            "children": steps,
            "outboundNodes": steps[-1:],
        }


def _by_id(*nodes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["id"]: node for node in nodes}
