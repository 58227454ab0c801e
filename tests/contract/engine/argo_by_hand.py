"""Argo's controller, played by hand: a test says what becomes of an object, and looks at what is there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from services.run.engine.argo import shapes
from services.run.engine.embedded.nodes import node_id
from tests.contract.engine.recorder import Run
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import ApiClient, connected

_WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
_PODS = "/api/v1/namespaces/kubeflow/pods"
STARTED = "2026-01-01T10:00:00Z"
ENDED = "2026-01-01T10:00:09Z"


def node(run: Run, name: str = "", phase: str = "Running", **fields: Any) -> dict[str, Any]:
    """A step; without a name, the root of the run, which is a group unless it is said to be a step."""
    return {
        "id": node_id(run.name, run.name + name),
        "name": run.name + name,
        "displayName": name.lstrip(".") or run.name,
        "type": "Pod" if name else "DAG",
        "templateName": name.lstrip(".") or "main",
        "phase": phase,
        "startedAt": STARTED,
        "finishedAt": None if phase in ("Pending", "Running") else ENDED,
        **({"boundaryID": run.name} if name else {}),
        **fields,
    }


class ArgoByHand:
    def __init__(self, fake: FakeKubernetes, client: ApiClient) -> None:
        self.fake = fake
        self.client = client

    async def object(self, run: Run) -> dict[str, Any] | None:
        answer = await self.client.get(f"{_WORKFLOWS}/{run.name}", token=self.fake.token)
        return answer.ok() if answer.status != 404 else None

    async def until_there(self, run: Run) -> dict[str, Any]:
        found = await eventually(lambda: self.object(run))
        assert found is not None
        return found

    async def until_marked(self, run: Run) -> dict[str, Any]:
        """Until the object is known to be recorded."""

        async def marked() -> dict[str, Any] | None:
            found = await self.object(run)
            return found if found and shapes.PERSISTED in found["metadata"]["labels"] else None

        found = await eventually(marked)
        assert found is not None
        return found

    async def shows(self, run: Run, phase: str, *nodes: dict[str, Any], **status: Any) -> None:
        """What Argo writes into the object: all the nodes there are."""
        ended = ENDED if phase in shapes.FINAL else None
        labels = {"workflows.argoproj.io/phase": phase} | ({"workflows.argoproj.io/completed": "true"} if ended else {})
        status = {"phase": phase, "startedAt": STARTED, "finishedAt": ended, **status}
        while True:  # Whoever else writes comes first.
            found = await self.until_there(run)
            found["metadata"]["labels"] |= labels
            found["status"] = status | {"nodes": {each["id"]: each for each in nodes}}
            answer = await self.client.put(f"{_WORKFLOWS}/{run.name}", found)
            if answer.status != 409:
                answer.ok()
                return

    async def change(self, run: Run, patch: dict[str, Any]) -> None:
        (await self.client.merge(f"{_WORKFLOWS}/{run.name}", patch)).ok()

    async def create(self, document: dict[str, Any]) -> None:
        (await self.client.post(_WORKFLOWS, document)).ok()

    async def delete(self, run: Run) -> None:
        (await self.client.delete(f"{_WORKFLOWS}/{run.name}")).ok()

    async def create_pod(self, run: Run, name: str) -> None:
        pod = {
            "metadata": {"name": name, "labels": {"workflows.argoproj.io/workflow": run.name}},
            "spec": {"containers": [{"name": "main", "image": "any"}, {"name": "wait", "image": "any"}]},
            "status": {"phase": "Running"},
        }
        (await self.client.post(_PODS, pod)).ok()

    async def write_log(self, pod: str, text: str) -> None:
        path = f"/fake{_PODS}/{pod}"
        (await self.client.ask("POST", path, text.encode(), content_type="text/plain", container="main")).ok()

    async def end_pod(self, name: str) -> None:
        (await self.client.merge(f"{_PODS}/{name}/status", {"status": {"phase": "Succeeded"}})).ok()

    async def pods(self) -> set[str]:
        return {each["metadata"]["name"] for each in (await self.client.get(_PODS)).ok()["items"]}


@contextlib.asynccontextmanager
async def argo_by_hand(fake: FakeKubernetes) -> AsyncIterator[ArgoByHand]:
    async with connected(fake.url, fake.token) as client:
        yield ArgoByHand(fake, client)
