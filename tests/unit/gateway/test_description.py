"""How the parts that services publish become one document."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from gateway.openapi import FRESH_SECONDS, Description, merge
from gateway.table import Owner
from shared.errors import Unavailable
from shared.openapi import HOST

RUN = {"paths": {"/r": {"get": {"operationId": "R"}}}, "components": {"schemas": {"apiRun": {"type": "object"}}}}
JOB = {"paths": {"/r": {"post": {"operationId": "J"}}}, "components": {"schemas": {"apiJob": {"type": "object"}}}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Services:
    def __init__(self) -> None:
        self.parts: dict[Owner, Any] = {Owner.RUN: RUN, Owner.JOB_SCHEDULER: JOB}
        self.asked = 0

    async def part_of(self, owner: Owner) -> bytes:
        self.asked += 1
        if owner not in self.parts:
            raise Unavailable(f"The {owner.value} service is not reachable.")
        return json.dumps(self.parts[owner]).encode()


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def description(services: Services, clock: Clock) -> Description:
    return Description((Owner.RUN, Owner.JOB_SCHEDULER), services.part_of, needs_token=False, clock=clock)


async def test_methods_of_one_path_may_come_from_two_services(description: Description) -> None:
    document = json.loads(await description.document(None))

    assert document["paths"]["/r"] == {"get": {"operationId": "R"}, "post": {"operationId": "J"}}
    assert {"apiRun", "apiJob"} <= set(document["components"]["schemas"])


async def test_services_are_asked_again_after_a_moment_and_not_before(
    description: Description, services: Services, clock: Clock
) -> None:
    await description.document(None)
    await description.document(None)
    assert services.asked == 2

    clock.now += FRESH_SECONDS + 1
    services.parts[Owner.RUN] = {"paths": {"/new": {}}}
    assert "/new" in json.loads(await description.document(None))["paths"]


async def test_a_service_that_never_answered_is_missed(description: Description, services: Services) -> None:
    del services.parts[Owner.RUN]

    with pytest.raises(Unavailable, match="run service"):
        await description.document(None)


async def test_the_part_of_a_service_that_went_away_stays(
    description: Description, services: Services, clock: Clock
) -> None:
    before = await description.document(None)
    del services.parts[Owner.RUN]
    clock.now += FRESH_SECONDS + 1

    assert await description.document(None) == before


async def test_examples_name_the_address_that_the_client_sees(description: Description) -> None:
    assert HOST in (await description.document(None)).decode()

    seen = (await description.document("https://pipelines.example")).decode()

    assert HOST not in seen
    assert "https://pipelines.example/apis/v1beta1/healthz" in seen


def test_two_services_that_disagree_about_a_schema_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    other = {"components": {"schemas": {"apiRun": {"type": "string"}}}}

    with caplog.at_level(logging.ERROR):
        document = merge({Owner.RUN: RUN, Owner.JOB_SCHEDULER: other}, needs_token=False)

    assert document["components"]["schemas"]["apiRun"] == {"type": "object"}
    assert "apiRun" in caplog.text


def test_whether_a_token_is_needed_is_said() -> None:
    assert merge({}, needs_token=True)["security"] == [{"Bearer": []}]
    assert {} in merge({}, needs_token=False)["security"]
