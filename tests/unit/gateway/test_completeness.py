"""The routes of the services, their descriptions and the gateway's table: none may lack what another has."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.openapi import merge
from gateway.table import EXTENSION_PREFIX, ROUTES, Match, Owner, find
from shared.openapi import Operation
from shared.settings import load

SERVICES = [owner for owner in Owner if owner is not Owner.GATEWAY]
ENVIRONMENT = {
    "HEADRACE_DATABASE_URL": "postgresql://nobody@localhost/nothing",
    "HEADRACE_NATS_URL": "nats://localhost",
    "HEADRACE_OBJECT_STORE_URL": "http://localhost",
    "HEADRACE_OBJECT_STORE_ACCESS_KEY": "a",
    "HEADRACE_OBJECT_STORE_SECRET_KEY": "b",
}
"""Enough to put a service together. It connects to nothing before it starts."""
OF_EVERY_PROCESS = {"/livez", "/readyz", "/startupz", "/metrics", "/openapi.json"}
"""For who watches a service; the gateway forwards none of them."""
EVERY_METHOD = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
UNDESCRIBED = {
    "docs": "the pages that show the description",
    "openapi": "the description itself",
    "asyncapi": "the description of what happens",
}
"""Routes of the gateway, by name."""

SPECIFIED_KEYS = {
    "Experiment": "id name created_at description namespace storage_state",
    "Pipeline": "id name created_at description namespace",
    "PipelineVersion": "id name created_at status",
    "Run": "id name created_at description scheduled_at storage_state status",
    "Job": "id name created_at package_id",
}
"""What the original sorts and filters by (API specification, section 5.2)."""


def of_service(owner: Owner, module: str) -> Any:
    return importlib.import_module(f"services.{owner.value.replace('-', '_')}.{module}")


def described(owner: Owner) -> Mapping[tuple[str, str], Operation]:
    operations: tuple[Operation, ...] = of_service(owner, "openapi").OPERATIONS
    by_route = {(each.method, shape(each.path)): each for each in operations}
    assert len(by_route) == len(operations), "an operation is described twice"
    return by_route


def routed(owner: Owner) -> Iterator[tuple[frozenset[str], str]]:
    """Methods and shape of each route that the service really has, as it is put together to be served."""
    app = of_service(owner, "app").create_app(load(of_service(owner, "settings").Settings, ENVIRONMENT))
    for route in app.routes:
        for handler in route.route_handlers:
            yield frozenset(handler.http_methods) - {"OPTIONS"}, shape(route.path_format.replace("/:", ":"))


def shape(path: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "{}", path)


@pytest.mark.parametrize("owner", SERVICES)
def test_every_route_of_a_service_is_described_and_nothing_else(owner: Owner) -> None:
    routes = list(routed(owner))
    wanted: set[tuple[str, str]] = set()
    for methods, path in routes:
        if path in OF_EVERY_PROCESS:
            continue
        if methods >= EVERY_METHOD:
            # Where the method means nothing, one of them stands for all.
            methods = frozenset(method for method, other in described(owner) if other == path) or methods
        # What can be read by GET has a HEAD by the rules of HTTP.
        wanted.update((method, path) for method in methods - ({"HEAD"} if "GET" in methods else set()))

    assert wanted == set(described(owner))
    assert {path for _, path in routes} >= OF_EVERY_PROCESS


@pytest.mark.parametrize("owner", SERVICES)
def test_everything_described_is_reached_through_the_gateway(owner: Owner) -> None:
    for method, path in described(owner):
        found = find(method, path.replace("{}", "a").encode())

        assert isinstance(found, Match), (method, path)
        assert found.owner is owner, (method, path)


def test_every_route_of_the_table_is_described_by_who_owns_it() -> None:
    ours = {
        (method.upper(), path) for path, methods in merge({}, needs_token=False)["paths"].items() for method in methods
    }
    for route in ROUTES:
        if route.name in UNDESCRIBED:
            continue
        known = ours if route.owner is Owner.GATEWAY else set(described(route.owner))
        methods = route.methods or {"POST" if "/upload" in route.pattern else "GET"}

        assert {(method, shape(route.pattern)) for method in methods} <= known, route


def test_everything_that_is_not_the_original_s_is_told_apart_by_its_path() -> None:
    beyond = {path for owner in SERVICES for _, path in described(owner) if path.startswith(EXTENSION_PREFIX)}

    assert beyond == {
        "/apis/headrace/v1/engine",
        "/apis/headrace/v1/events",
        "/apis/headrace/v1/dead",
        "/apis/headrace/v1/dead/{}/{}",
        "/apis/headrace/v1/dead/{}/{}:retry",
        "/apis/headrace/v1/runs/{}/events",
        "/apis/headrace/v1/jobs/{}",
        "/apis/headrace/v1/jobs/{}/history",
        "/apis/headrace/v1/jobs/{}:backfill",
        "/apis/headrace/v1/jobs/{}:preview",
        "/apis/headrace/v1/runs/{}/nodes/{}/artifacts/{}",
        "/apis/headrace/v1/webhooks",
        "/apis/headrace/v1/webhooks/{}",
        *(f"/apis/headrace/v1/webhooks/{{}}:{verb}" for verb in ("pause", "resume", "rotate", "test")),
        "/apis/headrace/v1/webhooks/{}/deliveries",
        "/apis/headrace/v1/webhooks/{}/deliveries/{}",
        "/apis/headrace/v1/webhooks/{}/deliveries/{}:redeliver",
    }


def test_every_list_says_which_of_its_keys_the_original_does_not_have() -> None:
    of_the_original = [
        each
        for owner in SERVICES
        for (_, path), each in described(owner).items()
        if not path.startswith(EXTENSION_PREFIX)
    ]
    lists = [each for each in of_the_original if each.lists is not None]

    told = {each.lists.model: set(each.lists.fields) - each.beyond for each in lists if each.lists is not None}
    assert told == {model: set(keys.split()) for model, keys in SPECIFIED_KEYS.items()}
    for each in lists:
        assert each.lists is not None
        assert each.beyond <= set(each.lists.fields)


def test_the_page_of_extensions_names_the_same_keys() -> None:
    page = (Path(__file__).parents[3] / "gateway" / "docs" / "extensions.md").read_text()
    rows = re.findall(r"^\| ([a-z]+) \| (`.*) \|$", page, re.MULTILINE)

    lists = [each for owner in SERVICES for each in described(owner).values() if each.beyond]
    told = {plural: set(re.findall(r"`([a-z_]+)`", keys)) for plural, keys in rows}
    assert told == {each.path.rpartition("/")[2]: each.beyond for each in lists}


def test_every_creation_and_nothing_else_may_be_repeated_under_a_key() -> None:
    repeatable = {each.id for owner in SERVICES for each in described(owner).values() if each.may_be_repeated}

    assert repeatable == {
        "CreateExperiment",
        "CreateJob",
        "CreatePipeline",
        "CreatePipelineVersion",
        "CreateRun",
        "CreateWebhook",
        "UploadPipeline",
        "UploadPipelineVersion",
    }
