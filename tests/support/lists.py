"""The rules of lists, as a client meets them: the same story for every resource."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from tests.support.service import Client


class ListRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A list whose rows are named `run-0` … `run-4`, in the order of their making, and one called `100%_a+b`."""

    path: str
    items: str
    model: str
    always: Mapping[str, str] = {}
    """Parameters that each request must repeat."""

    async def names(self, client: Client, **query: str) -> list[str]:
        answer = await client.get(self.path, **self.always, **query)
        return [item["name"] for item in answer.get(self.items, [])]

    async def refusal(self, client: Client, **query: str) -> str:
        status, body = await client.refused("GET", self.path, **self.always, **query)
        assert (status, body["code"]) == (400, 3)
        message: str = body["details"][0]["error_message"]
        return message

    async def pages(self, client: Client, size: int, **query: str) -> list[list[str]]:
        """Every page, the last one without a token."""
        pages, token = [], ""
        while True:
            more = {"page_token": token} if token else {}
            answer = await client.get(self.path, **self.always, page_size=str(size), **query, **more)
            pages.append([item["name"] for item in answer[self.items]])
            if "next_page_token" not in answer:
                return pages
            token = answer["next_page_token"]


NAMES = [*(f"run-{nth}" for nth in range(5)), "100%_a+b"]


def predicate(op: str | int, key: str, **value: Any) -> str:
    return json.dumps({"predicates": [{"op": op, "key": key, **value}]})


async def obeys_the_rules_of_lists(client: Client, route: ListRoute) -> None:
    await _pages(client, route)
    await _sorts(client, route)
    await _filters(client, route)
    await _holds_tokens_to_their_request(client, route)
    await _refuses(client, route)


async def _pages(client: Client, route: ListRoute) -> None:
    assert await route.names(client) == NAMES
    assert await route.pages(client, 4) == [NAMES[:4], NAMES[4:]]
    assert await route.pages(client, 6) == [NAMES]
    assert await route.pages(client, 100_000) == [NAMES]
    first = await client.get(route.path, **route.always, page_size="2")
    assert first["total_size"] == len(NAMES)
    last = await client.get(route.path, **route.always, page_size="5", page_token=first["next_page_token"])
    assert [item["name"] for item in last[route.items]] == NAMES[2:]
    assert last["total_size"] == len(NAMES)


async def _sorts(client: Client, route: ListRoute) -> None:
    assert await route.names(client, sort_by="name") == sorted(NAMES)
    assert await route.names(client, sort_by="NAME DESC") == sorted(NAMES, reverse=True)
    assert await route.pages(client, 4, sort_by="created_at desc") == [NAMES[:1:-1], NAMES[1::-1]]
    assert sorted(await route.names(client, sort_by="id")) == sorted(NAMES)


async def _filters(client: Client, route: ListRoute) -> None:
    exact = predicate("EQUALS", "name", stringValue="run-3")
    for spelled in (exact, quote(exact), base64.b64encode(exact.encode()).decode()):
        assert await route.names(client, filter=spelled) == ["run-3"]
    assert await route.names(client, filter=predicate(1, "name", string_value="run-3")) == ["run-3"]
    assert await route.names(client, filter=predicate("IS_SUBSTRING", "name", string_value="RUN-")) == NAMES[:5]
    assert await route.names(client, filter=predicate("IS_SUBSTRING", "name", string_value="0\\%_A")) == ["100%_a+b"]
    assert await route.names(client, filter=predicate("IS_SUBSTRING", "name", string_value="r%n_")) == NAMES[:5]
    assert await route.names(client, filter=predicate("IS_SUBSTRING", "name", string_value="\\")) == []
    assert await route.names(client, filter=predicate("EQUALS", "name", string_value="100%_a+b")) == ["100%_a+b"]
    chosen = predicate("IN", "name", string_values={"values": ["run-1", "run-4", "none"]})
    assert await route.names(client, filter=chosen) == ["run-1", "run-4"]
    assert await client.get(route.path, **route.always, filter=predicate("IN", "name", string_values={})) == {}
    later = predicate("GREATER_THAN", "created_at", timestamp_value="2020-01-01T00:00:00Z")
    assert await route.names(client, filter=later) == NAMES
    assert await route.names(client, filter="") == NAMES
    found = await client.get(route.path, **route.always, filter=chosen, page_size="1")
    assert found["total_size"] == 2, "of what matches, whatever the page holds"


async def _holds_tokens_to_their_request(client: Client, route: ListRoute) -> None:
    chosen = predicate("IN", "name", string_values={"values": ["run-4", "run-1", "run-2"]})
    asked = {"sort_by": "name desc", "filter": chosen, "page_size": "1"}
    token = (await client.get(route.path, **route.always, **asked))["next_page_token"]
    assert await route.names(client, **asked, page_token=token) == ["run-2"]
    assert await route.names(client, page_token=token) == ["run-2", "run-1"], "the token knows its sort and filter"
    mismatch = "page token does not match the supplied sort by and/or filtering criteria."
    for other in ({"sort_by": "name"}, {"filter": chosen}, {"sort_by": "name desc"}):
        assert (await route.refusal(client, page_token=token, **other)).startswith(mismatch)


async def _refuses(client: Client, route: ListRoute) -> None:
    assert await route.refusal(client, page_token="nonsense") == "Invalid package token."
    assert await route.refusal(client, page_token=base64.b64encode(b"{}").decode()) == "Invalid package token."
    assert "The page size should be greater than 0." in await route.refusal(client, page_size="-1")
    assert (await route.refusal(client, sort_by="name des")).startswith('Received invalid sort by format "name des".')
    assert (await route.refusal(client, sort_by="no")).endswith(f'"no" on listable type {route.model}')
    assert 'unrecognized field "no"' in await route.refusal(client, filter=predicate(1, "no", string_value="x"))
    assert "failed to parse valid filter" in await route.refusal(client, filter="no filter")
    assert "failed to parse valid filter" in await route.refusal(client, filter='{"unknown": 1}')
    assert "cannot use IN operator" in await route.refusal(client, filter=predicate("IN", "name", string_value="x"))
    status, _ = await client.refused("GET", route.path, **route.always, page_size="abc")
    assert status == 400
