"""What a test needs of a server that may be a real one: workflows are known, and the namespace is empty."""

from __future__ import annotations

from tests.support.eventually import eventually
from tests.support.kubernetes.client import ApiClient
from tests.support.kubernetes.resources import WORKFLOW_DEFINITION

NAMESPACE = "kubeflow"
WORKFLOWS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows"


async def make_room(api: ApiClient) -> None:
    await api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", WORKFLOW_DEFINITION)
    await api.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    # Without controllers nobody makes the account that pods are run by.
    await api.post(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})

    async def is_empty() -> bool:
        await api.delete(WORKFLOWS)
        answer = await api.get(WORKFLOWS, limit="1")
        return answer.status == 200 and not answer.document["items"]

    await eventually(is_empty, within_seconds=60)
