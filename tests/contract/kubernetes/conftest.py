"""A server and a place of one's own in it: the fake one, or a real one where HEADRACE_TEST_KUBECONFIG says which."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.contract.kubernetes.place import Place
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes
from tests.support.kubernetes.client import ApiClient, connected, connected_by
from tests.support.kubernetes.resources import WORKFLOW_DEFINITION

_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def kubeconfig() -> Path | None:
    given = os.environ.get("HEADRACE_TEST_KUBECONFIG")
    return Path(given) if given else None


@pytest.fixture
async def fake(kubeconfig: Path | None) -> AsyncIterator[FakeKubernetes | None]:
    """None where a real one is meant."""
    if kubeconfig is not None:
        yield None
        return
    async with FakeKubernetes.serving() as fake:
        yield fake


@pytest.fixture
async def api(kubeconfig: Path | None, fake: FakeKubernetes | None) -> AsyncIterator[ApiClient]:
    if fake is not None:
        async with connected(fake.url, fake.token) as client:
            yield client
        return
    assert kubeconfig is not None
    async with connected_by(kubeconfig) as client:
        await _demand_definition(client)
        yield client


@pytest.fixture
async def place(api: ApiClient) -> AsyncIterator[Place]:
    """A namespace that nobody else knows; gone afterwards, with all that is in it."""
    name = f"headrace-contract-{secrets.token_hex(4)}"
    (await api.post("/api/v1/namespaces", {"metadata": {"name": name}})).ok()
    # Without controllers nobody makes the account that pods are run by.
    await api.post(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
    place = Place(api=api, namespace=name)
    yield place
    await place.remove()


@pytest.fixture
async def compact(fake: FakeKubernetes | None, api: ApiClient) -> Callable[[], Awaitable[None]]:
    """Forgets the past. Of a real server etcd has to be asked (HEADRACE_TEST_ETCD, a URL)."""

    async def compact_fake() -> None:
        assert fake is not None
        fake.compact()

    async def compact_etcd() -> None:
        version = (await api.get("/api/v1/namespaces", limit="1")).version
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{etcd}/v3/kv/compaction", json={"revision": version, "physical": True}) as answer,
        ):
            assert answer.status == 200, await answer.text()

    etcd = os.environ.get("HEADRACE_TEST_ETCD")
    if fake is None and not etcd:
        pytest.skip("HEADRACE_TEST_ETCD does not say where the server's etcd is")
    return compact_etcd if fake is None else compact_fake


@pytest.fixture
async def with_controllers(api: ApiClient) -> None:
    """Skips where nothing but an API server runs."""
    if (await api.get("/api/v1/namespaces/kube-system/serviceaccounts/default")).status == 404:
        pytest.skip("no controllers run beside this server: nobody collects garbage")


async def _demand_definition(api: ApiClient) -> None:
    """Workflows are known; where they were not, they are from now on."""
    await api.post(_DEFINITIONS, WORKFLOW_DEFINITION)

    async def is_served() -> bool:
        return (await api.get("/apis/argoproj.io/v1alpha1/workflows", limit="1")).status == 200

    await eventually(is_served, within_seconds=20)
