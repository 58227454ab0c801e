"""The description of the events is valid, complete, and true of what is published."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest

from shared import asyncapi
from shared.bus import Message
from shared.contracts.events import FACTS, FactKind
from tests.support.asyncapi import Described
from tests.unit.contracts.test_golden_facts import EXAMPLES

KINDS = [pytest.param(kind, id=kind.type) for kind in FACTS.values()]


@pytest.fixture(scope="module")
def described() -> Described:
    return Described(asyncapi.document())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fact_is_described_as_it_is_published(described: Described, kind: FactKind[Any]) -> None:
    state, _ = EXAMPLES[kind.body]
    message = Message(
        id="0b2f7f0e-6a37-4a2e-9d5b-0c3b6a3f7a11",
        type=kind.type,
        owner=kind.owner,
        what=kind.what,
        resource_id=state.id,
        position=7,
        time=datetime(2024, 5, 6, tzinfo=UTC),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        body=msgspec.json.encode(state),
    )
    name = f"{kind.owner}-{kind.what}"

    assert described.document["channels"][name]["address"].replace("{id}", state.id) == message.subject
    described.check(f"#/components/messages/{name}/headers", message.headers)
    described.check(f"#/components/schemas/{kind.body.__name__}", msgspec.json.decode(message.body))
    with pytest.raises(jsonschema.ValidationError):
        described.check(f"#/components/messages/{name}/headers", message.headers | {"ce-type": "kfp.another.v1"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fact_says_what_it_means(kind: FactKind[Any]) -> None:
    assert kind.says.endswith(".")


def test_a_description_with_a_hole_is_found_out() -> None:
    document = asyncapi.document()
    document["operations"]["tell-run-failed"]["channel"]["$ref"] = "#/channels/run-lots"
    with pytest.raises(ValueError, match="leads nowhere"):
        Described(document)


def test_what_asyncapi_does_not_know_is_found_out() -> None:
    document = asyncapi.document()
    document["channels"]["run-failed"]["adress"] = "kfp"
    with pytest.raises(ValueError, match="adress"):
        Described(document)
