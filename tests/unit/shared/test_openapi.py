"""Schemas say what the wire's reader and writer do with the same annotations."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from shared import protojson
from shared.listing import Column, Listing, ListRequest
from shared.openapi import Operation, captured, describe
from shared.protojson import Int64


class Colour(IntEnum):
    UNKNOWN = 0
    RED = 1


class Mood(StrEnum):
    NONE = "none at all"
    GOOD = "GOOD"


class WireLeaf(msgspec.Struct, frozen=True, kw_only=True):
    text: str = ""


class WireThing(msgspec.Struct, frozen=True, kw_only=True):
    flag: bool = False
    small: int = 0
    large: Int64 = 0
    maybe_large: Int64 | None = None
    number: float | None = None
    moment: datetime | None = None
    data: bytes = b""
    colour: Colour = Colour.UNKNOWN
    mood: Mood = Mood.NONE
    leaf: WireLeaf | None = None
    leaves: tuple[WireLeaf, ...] = ()
    by_name: dict[str, WireLeaf] = {}


FULL = WireThing(
    flag=True,
    small=1,
    large=2**60,
    maybe_large=5,
    number=0.5,
    moment=datetime(2026, 1, 1, tzinfo=UTC),
    data=b"x",
    colour=Colour.RED,
    mood=Mood.GOOD,
    leaf=WireLeaf(text="a"),
    leaves=(WireLeaf(text="b"),),
    by_name={"c": WireLeaf(text="d")},
)


def described(**operation: Any) -> Any:
    given = {"id": "Do", "method": "POST", "path": "/things/{id}", "tag": "T", "summary": "Does.", **operation}
    return json.loads(describe("things", [Operation(**given)], {}))


def test_an_answer_as_it_is_written_fits_its_schema() -> None:
    document = described(answer=WireThing)
    validate(document)
    schema = {"$ref": "#/components/schemas/apiThing", "components": document["components"]}
    written = json.loads(protojson.encode(FULL))

    assert set(written) == set(WireThing.__struct_fields__)
    Draft202012Validator(schema).validate(written)


@pytest.mark.parametrize(
    "wrong", [{"colour": 1}, {"colour": "BLUE"}, {"mood": "NONE"}, {"large": 5}, {"small": "5"}, {"leaves": {}}]
)
def test_what_is_never_written_does_not_fit(wrong: dict[str, Any]) -> None:
    document = described(answer=WireThing)
    schema = {"$ref": "#/components/schemas/apiThing", "components": document["components"]}

    assert not Draft202012Validator(schema).is_valid(wrong)


def test_a_query_is_flat_and_leaves_out_what_the_operation_does_not_read() -> None:
    document = described(method="GET", query=WireThing, query_without=frozenset({"leaves", "by_name", "small"}))
    parameters = {(each["name"], each["in"]) for each in document["paths"]["/things/{id}"]["get"]["parameters"]}

    assert ("id", "path") in parameters
    assert ("leaf.text", "query") in parameters
    assert ("colour", "query") in parameters
    assert ("small", "query") not in parameters


def test_an_annotation_that_the_wire_cannot_carry_is_refused() -> None:
    class WireOdd(msgspec.Struct):
        odd: complex = 0j

    with pytest.raises(TypeError, match="complex"):
        described(answer=WireOdd)


def test_a_creation_that_may_be_repeated_takes_a_key() -> None:
    operation = described(may_be_repeated=True)["paths"]["/things/{id}"]["post"]
    (header,) = (each for each in operation["parameters"] if each["in"] == "header")

    assert header["name"] == "Idempotency-Key"
    assert re.fullmatch(header["schema"]["pattern"], "x" * 255)
    assert not re.fullmatch(header["schema"]["pattern"], "a b")
    assert operation["responses"]["409"]["content"] == operation["responses"]["default"]["content"]


def test_what_is_sent_in_parts_takes_a_range_and_has_three_answers() -> None:
    document = described(method="GET", answers_parts=True)
    operation = document["paths"]["/things/{id}"]["get"]

    validate(document)
    assert {each["name"] for each in operation["parameters"] if each["in"] == "header"} == {"Range", "If-Range"}
    assert set(operation["responses"]) == {"200", "206", "416", "default"}
    assert set(operation["responses"]["206"]["content"]) == {"application/octet-stream"}


def test_a_list_names_the_keys_of_its_code() -> None:
    listing = Listing(
        model="Thing",
        table="things",
        columns="id",
        fields={"id": Column("id"), "size": Column("size"), "age": Column("age")},
        families={"metric:": Column("{}")},
    )
    document = described(method="GET", query=ListRequest, lists=listing, beyond=frozenset({"age"}))
    told = {
        each["name"]: each.get("description", "") for each in document["paths"]["/things/{id}"]["get"]["parameters"]
    }

    assert told["filter"].endswith(" Keys: `id`, `size`; beyond the original `age`.")
    assert told["sort_by"].endswith(" Keys: `id`, `size`, `metric:NAME`; beyond the original `age`.")
    assert "Keys" not in told["page_size"]


def test_notes_and_example_make_the_description() -> None:
    operation = described(notes="Once.", example="curl x\n")["paths"]["/things/{id}"]["post"]

    assert operation["description"] == "Once.\n\n```sh\ncurl x\n```"
    assert captured("ID", "curl x").startswith("ID=$(curl x | python3 -c '")
