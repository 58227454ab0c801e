"""The pods of a workflow's steps: made, brought through their phases and taken away, without any node to run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tests.support.argo.held import COMPLETED, Held, patiently
from tests.support.kubernetes.client import Answer, ApiClient

WORKFLOW = "workflows.argoproj.io/workflow"
NODE_NAME = "workflows.argoproj.io/node-name"
NODE_ID = "workflows.argoproj.io/node-id"
TEMPLATE = "workflows.argoproj.io/template"

_PHASES = {"Error": "Failed"}
"""A pod knows fewer phases than its node."""


class Pods:
    """Of one workflow. A pod is named as its node (the first version of pod names)."""

    def __init__(self, api: ApiClient, workflow: Held) -> None:
        self._api = api
        self._workflow = workflow
        self._path = f"/api/v1/namespaces/{workflow.namespace}/pods"

    async def create(self, node: Mapping[str, Any]) -> None:
        """Harmless where there is one."""
        answer = await patiently(lambda: self._api.post(self._path, self._pod(node)))
        assert answer.status in (201, 409), (answer.status, answer.body)

    async def show(self, node_id: str, phase: str) -> bool:
        """Bring the pod to the phase of its node. Whether it was there."""
        status: dict[str, Any] = {"phase": _PHASES.get(phase, phase)}
        answer = await patiently(lambda: self._api.merge(f"{self._path}/{node_id}/status", {"status": status}))
        if answer.status == 404:
            return False
        answer.ok()
        if phase not in ("Pending", "Running"):
            done = {"metadata": {"labels": {COMPLETED: "true"}}}
            await patiently(lambda: self._api.merge(f"{self._path}/{node_id}", done))
        return True

    async def delete(self, node_id: str) -> None:
        await patiently(lambda: self._api.delete(f"{self._path}/{node_id}", {"gracePeriodSeconds": 0}))

    async def delete_all(self) -> None:
        selector = f"{WORKFLOW}={self._workflow.name}"

        async def delete() -> Answer:
            return await self._api.delete(self._path, {"gracePeriodSeconds": 0}, labelSelector=selector)

        await patiently(delete)

    async def hand_in_log(self, node_id: str, container: str, text: bytes) -> None:
        """Where there is a door for it."""
        path = f"/fake{self._path}/{node_id}/log"
        await patiently(lambda: self._api.ask("POST", path, text, container=container))

    def _pod(self, node: Mapping[str, Any]) -> dict[str, Any]:
        workflow = self._workflow
        asked = workflow.spec.get("podMetadata") or {}
        templates = {each["name"]: each for each in workflow.spec.get("templates", ())}
        template = templates.get(node.get("templateName"), {})
        owner = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": workflow.name,
            "uid": workflow.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        annotations = {NODE_NAME: node["name"], NODE_ID: node["id"], TEMPLATE: msgspec.json.encode(template).decode()}
        main = {"name": "main", "image": (template.get("container") or {}).get("image") or "any"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": node["id"],
                "labels": {**(asked.get("labels") or {}), WORKFLOW: workflow.name, COMPLETED: "false"},
                "annotations": {**(asked.get("annotations") or {}), **annotations},
                "ownerReferences": [owner],
            },
            "spec": {
                "automountServiceAccountToken": False,
                "restartPolicy": "Never",
                "containers": [{"name": "wait", "image": "argoexec"}, main],
            },
        }
