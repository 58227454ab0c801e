"""The list rules that need no database: what is accepted, what is refused in which words, what reaches the SQL text."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidInput
from shared.listing import Column, Kind, Listing, ListRequest, Op, Position, Query, Sort
from shared.references import ResourceType, WireReferenceKey

RUNS = Listing(
    model="Run",
    table="runs",
    columns="id, name",
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "scheduled_at": Column("scheduled_at", Kind.TIMESTAMP, is_nullable=True),
        "attempt": Column("attempt", Kind.INTEGER),
        "storage_state": Column(
            "storage_state", stored={"STORAGESTATE_AVAILABLE": "available", "STORAGESTATE_ARCHIVED": "archived"}
        ),
    },
    references={ResourceType.EXPERIMENT: "experiment_id", ResourceType.JOB: "job_id"},
    families={"metric:": Column("metric_of(id, {})", Kind.NUMBER, is_nullable=True)},
)
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def filter_of(*predicates: dict[str, Any]) -> str:
    return json.dumps({"predicates": predicates})


class FakeRows:
    """Answers every statement with the same rows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.statements: list[str] = []

    async def fetch(self, sql: str, *_arguments: Any) -> list[dict[str, Any]]:
        self.statements.append(sql)
        return self.rows


async def token_after(query: Query, sort_value: object = AT, row_id: str = "r2") -> str:
    """The token that a list gives whose page ends before the row with this sort value."""
    row = {"listing_sort": sort_value, "listing_key": row_id}
    _rows, token = await RUNS.fetch(FakeRows([row] * (query.page_size + 1)), query)
    return token


@pytest.mark.parametrize(("asked", "page_size"), [(0, 20), (1, 1), (200, 200), (201, 200), (2**31 - 1, 200)])
def test_a_page_has_twenty_rows_unless_asked_and_two_hundred_at_most(asked: int, page_size: int) -> None:
    assert RUNS.query(ListRequest(page_size=asked)).page_size == page_size


@pytest.mark.parametrize(
    ("asked", "sort"),
    [
        ("", Sort("created_at", is_descending=False)),
        ("   ", Sort("created_at", is_descending=False)),
        ("name", Sort("name", is_descending=False)),
        ("NAME  DESC", Sort("name", is_descending=True)),
        ("\tid asc ", Sort("id", is_descending=False)),
        ("metric:Accuracy desc", Sort("metric:Accuracy", is_descending=True)),
        ("METRIC:a:b", Sort("metric:a:b", is_descending=False)),
    ],
)
def test_sorting(asked: str, sort: Sort) -> None:
    assert RUNS.query(ListRequest(sort_by=asked)).sort == sort


FORMAT = 'Supported format: "field_name", "field_name desc", or "field_name asc"'


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ListRequest(page_size=-1), "The page size should be greater than 0. Got '\ufffd'"),
        (ListRequest(sort_by="name des"), f'Received invalid sort by format "name des". {FORMAT}'),
        (ListRequest(sort_by="a b c"), f'Received invalid sort by format "a b c". {FORMAT}'),
        (ListRequest(sort_by="Size"), 'Invalid sorting field: "size" on listable type Run'),
        (ListRequest(sort_by="metric:"), 'Invalid sorting field: "metric:" on listable type Run'),
        (ListRequest(sort_by="metric"), 'Invalid sorting field: "metric" on listable type Run'),
        (ListRequest(sort_by="name:x"), 'Invalid sorting field: "name:x" on listable type Run'),
        (ListRequest(page_token="%"), "Invalid package token."),
        (ListRequest(page_token="eA=="), "Invalid package token."),
        (ListRequest(page_token=base64.b64encode(b"{}").decode()), "Invalid package token."),
        (ListRequest(filter="nonsense"), 'failed to parse valid filter from "nonsense": '),
        (ListRequest(filter="[]"), 'failed to parse valid filter from "[]": json: cannot unmarshal array'),
        (ListRequest(filter="%zz"), 'failed to parse valid filter from "%zz": '),
        (ListRequest(filter='{"x":1}'), 'failed to parse valid filter from "{"x":1}": unknown field "x"'),
        (
            ListRequest(filter=filter_of({"op": "LIKE", "key": "name"})),
            '"LIKE" for enum api.Predicate.Op',
        ),
        (ListRequest(filter=filter_of({"op": 4, "key": "name"})), "unknown value 4 for enum api.Predicate.Op "),
        (
            ListRequest(filter=filter_of({"op": 1, "key": "Name", "string_value": "a"})),
            'no support for filtering on unrecognized field "Name"',
        ),
        (
            ListRequest(filter=filter_of({"op": 0, "key": "name"}, {"op": 1, "key": "metric:a"})),
            'no support for filtering on unrecognized field "metric:a"',
        ),
        (ListRequest(filter=filter_of({"key": "name", "string_value": "a"})), "invalid predicate operation: UNKNOWN"),
        (ListRequest(filter=filter_of({"op": 1, "key": "name"})), 'no value set for predicate on key "name"'),
        (
            ListRequest(filter=filter_of({"op": "IN", "key": "name", "string_value": "a"})),
            "cannot use IN operator with scalar type string",
        ),
        (
            ListRequest(filter=filter_of({"op": 6, "key": "name", "string_values": {"values": ["a"]}})),
            "cannot use scalar operator LESS_THAN on array type []string",
        ),
        (
            ListRequest(filter=filter_of({"op": 9, "key": "name", "int_value": 1})),
            "cannot use non string value type int with operator IS_SUBSTRING",
        ),
        (
            ListRequest(filter=filter_of({"op": 9, "key": "attempt", "string_value": "1"})),
            'cannot use operator IS_SUBSTRING on key "attempt"',
        ),
        (
            ListRequest(filter=filter_of({"op": 9, "key": "name", "string_value": "n" * 2_001})),
            "The part to search for is longer than 2000 bytes. Please specify a shorter one.",
        ),
        (
            ListRequest(filter=filter_of({"op": 1, "key": "created_at", "long_value": str(2**62)})),
            f"invalid timestamp: {2**62} seconds",
        ),
        (
            ListRequest(filter=filter_of({"op": 1, "key": "created_at", "string_value": "soon"})),
            'cannot compare key "created_at" to the string "soon"',
        ),
        (
            ListRequest(filter=filter_of({"op": 1, "key": "name", "timestamp_value": "2026-01-01T00:00:00Z"})),
            'cannot compare key "name" to a timestamp',
        ),
        (
            ListRequest(filter=filter_of({"op": 1, "key": "attempt", "string_value": "x"})),
            'cannot compare key "attempt" to the string "x"',
        ),
        (
            ListRequest(filter=filter_of(*[{"op": 1, "key": "name", "string_value": "a"}] * 101)),
            "a filter has at most 100 predicates, not 101",
        ),
    ],
)
def test_what_a_list_refuses(request_: ListRequest, message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        RUNS.query(request_)
    assert message in refusal.value.message
    assert refusal.value.error.startswith(
        ("Failed to create list options: Invalid input error: ", "Failed to create list options: InvalidInputError: ")
    )


@pytest.mark.parametrize("type_", [ResourceType.UNKNOWN_RESOURCE_TYPE, ResourceType.PIPELINE])
def test_a_reference_that_is_no_filter_is_refused(type_: ResourceType) -> None:
    with pytest.raises(InvalidInput) as refusal:
        RUNS.query(ListRequest(resource_reference_key=WireReferenceKey(type=type_, id="x")))
    assert refusal.value.error == (
        "Validating filter failed.: Unrecognized resource reference type.: "
        f"Invalid input error: Unsupported resource type: {type_.name}"
    )


def test_a_reference_filters_by_its_column() -> None:
    key = WireReferenceKey(type=ResourceType.EXPERIMENT, id="e1\x00")
    query = RUNS.query(ListRequest(resource_reference_key=key), only={"pipeline_id": "p1"})
    sql, arguments = RUNS.count_sql(query)
    assert sql == "select count(*) as total from runs where pipeline_id = $1::text and experiment_id = $2::text"
    assert arguments == ["p1", "e1\ufffd"]


PLAIN = '{"predicates":[{"op":"IS_SUBSTRING","key":"name","stringValue":"a+b %41"}]}'


@pytest.mark.parametrize("text", [PLAIN, quote(PLAIN), base64.b64encode(PLAIN.encode()).decode()])
def test_a_filter_may_come_plain_escaped_or_in_base64(text: str) -> None:
    (condition,) = RUNS.query(ListRequest(filter=text)).conditions
    assert (condition.op, condition.operand) == (Op.IS_SUBSTRING, "a+b %41")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"op": 1, "key": "attempt", "int_value": 5}, {"op": "EQUALS", "key": "attempt", "longValue": "5"}),
        (
            {"op": 8, "key": "attempt", "intValues": {"values": [1, 2]}},
            {"op": 8, "key": "attempt", "long_values": {"values": ["2", 1, 1]}},
        ),
        (
            {"op": 3, "key": "created_at", "timestamp_value": "2026-01-01T01:00:00.5+01:00"},
            {"op": 3, "key": "created_at", "long_value": "1767225600"},
        ),
        ({"op": 1, "key": "name", "int_value": 5}, {"op": 1, "key": "name", "string_value": "5"}),
    ],
)
async def test_filters_are_compared_by_meaning(one: dict[str, Any], other: dict[str, Any]) -> None:
    extra = {"op": 2, "key": "name", "string_value": "x"}
    first = RUNS.query(ListRequest(filter=filter_of(one, extra)))
    token = await token_after(first)
    second = RUNS.query(ListRequest(filter=filter_of(extra, other), page_token=token))
    assert second.conditions == first.conditions
    assert second.start == Position(1767323045678901, "r2")


async def test_a_token_alone_brings_its_own_sort_and_filter() -> None:
    asked = ListRequest(
        sort_by="name desc", filter=filter_of({"op": 8, "key": "id", "string_values": {"values": ["a", "b"]}})
    )
    first = RUNS.query(asked)
    second = RUNS.query(ListRequest(page_token=await token_after(first, "n"), page_size=7))
    assert (second.sort, second.conditions) == (first.sort, first.conditions)
    assert (second.start, second.page_size) == (Position("n", "r2"), 7)


@pytest.mark.parametrize("text", ["a" * 100_000, "\x01" * 201, '"' * 300, "\U0001f600" * 300])
async def test_a_token_holds_no_more_than_the_beginning_of_a_long_text(text: str) -> None:
    token = await token_after(RUNS.query(ListRequest(sort_by="name desc")), text)
    assert len(token) < 2048
    assert RUNS.query(ListRequest(page_token=token)).start == Position(text[:200], "r2", is_cut=True)
    whole = await token_after(RUNS.query(ListRequest(sort_by="name desc")), text[:200])
    assert RUNS.query(ListRequest(page_token=whole)).start == Position(text[:200], "r2")


@pytest.mark.parametrize(
    "second",
    [
        ListRequest(sort_by="name"),
        ListRequest(sort_by="created_at desc", filter=filter_of({"op": 1, "key": "name", "string_value": "b"})),
        ListRequest(sort_by="created_at desc"),
        ListRequest(filter=filter_of({"op": 1, "key": "name", "string_value": "a"})),
    ],
)
async def test_a_token_of_another_sort_or_filter_is_refused(second: ListRequest) -> None:
    asked = ListRequest(sort_by="created_at desc", filter=filter_of({"op": 1, "key": "name", "string_value": "a"}))
    token = await token_after(RUNS.query(asked))
    with pytest.raises(InvalidInput, match="page token does not match the supplied sort by and/or filtering criteria"):
        RUNS.query(ListRequest(sort_by=second.sort_by, filter=second.filter, page_token=token))


@pytest.mark.parametrize(
    "change",
    [
        {"ModelName": "Job"},
        {"ModelName": None},
        {"SortByFieldName": "created_at) or (1=1"},
        {"SortByFieldName": "metric:"},
        {"SortByFieldName": "name", "SortByFieldValue": 5},
        {"SortByFieldName": "name", "SortByFieldValue": "a\x00"},
        {"SortByFieldValue": "2026"},
        {"SortByFieldValue": None},
        {"SortByFieldValue": 2**63},
        {"SortByFieldValueIsCut": True},
        {"SortByFieldName": "name", "SortByFieldValue": "a", "SortByFieldValueIsCut": "yes"},
        {"SortByFieldName": "attempt", "SortByFieldValue": 2**63},
        {"SortByFieldName": "metric:a", "SortByFieldValue": "much"},
        {"KeyFieldValue": 1},
        {"KeyFieldValue": "\x00"},
        {"IsDesc": "yes"},
        {"Filter": [["name; drop table runs", 1, "a"]]},
        {"Filter": [["name", 99, "a"]]},
        {"Filter": [["name", 0, "a"]]},
        {"Filter": [["name", 8, "a"]]},
        {"Filter": [["name", 9, "a" * 2_001]]},
        {"Filter": [["created_at", 1, "soon"]]},
        {"Filter": [["created_at", 1, 2**62]]},
        {"Filter": [["attempt", 1, 2**64]]},
        {"Filter": [["name", 1, str(n)] for n in range(101)]},
        {"Filter": "all"},
    ],
)
async def test_a_forged_token_is_refused(change: dict[str, Any]) -> None:
    token = json.loads(base64.b64decode(await token_after(RUNS.query(ListRequest()))))
    forged = base64.b64encode(json.dumps({**token, **change}).encode()).decode()
    with pytest.raises(InvalidInput) as refusal:
        RUNS.query(ListRequest(page_token=forged))
    assert refusal.value.message == "Invalid package token."


async def test_the_wish_for_live_runs_becomes_an_equality_that_kept_counters_can_answer() -> None:
    live = filter_of({"op": "NOT_EQUALS", "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"})
    key = WireReferenceKey(type=ResourceType.EXPERIMENT, id="e1")
    query = RUNS.query(ListRequest(filter=live, resource_reference_key=key, page_size=1))
    rows = FakeRows([{"listing_sort": AT, "listing_key": "r"}] * 2)

    async def count(equalities: Any) -> int | None:
        assert equalities == {"experiment_id": "e1", "storage_state": "available"}
        return 41

    page = await RUNS.page(rows, query, lambda row: str(row["listing_key"]), count=count)
    assert (page.rows, page.total_size) == (("r",), 41)
    assert page.next_page_token
    assert len(rows.statements) == 1


async def test_counters_are_not_asked_about_more_than_equalities() -> None:
    async def count(_equalities: Any) -> int | None:
        raise AssertionError("a substring is no equality")

    substring = filter_of({"op": "IS_SUBSTRING", "key": "name", "string_value": "a"})
    query = RUNS.query(ListRequest(filter=substring, page_size=1))
    rows = FakeRows([{"listing_sort": AT, "listing_key": "r", "total": 7}] * 2)
    assert (await RUNS.page(rows, query, str, count=count)).total_size == 7


async def test_a_list_that_fits_one_page_is_not_counted_again() -> None:
    rows = FakeRows([{"listing_sort": AT, "listing_key": "r"}])
    page = await RUNS.page(rows, RUNS.query(ListRequest()), str)
    assert (page.total_size, page.next_page_token, len(rows.statements)) == (1, "", 1)


# Whatever a client sends, the statement's text is made of these words and of numbered parameters.
_OWN_WORDS = re.compile(
    r"(?:select|from|where|and|or|not|order by|limit|count\(\*\)|as|is null|nulls last|asc|desc|ilike|any|true|false"
    r"|coalesce|interval '1 second'|double precision|bigint|timestamptz|text|runs|id|name|created_at|scheduled_at"
    r"|attempt|storage_state|experiment_id|job_id|listing_sort|listing_key|total|metric_of|\$\d+|[ ,()=<>+:\[\]])+"
)
_hostile = st.text() | st.sampled_from(["';drop table runs--", "name) or (1=1", "$1", "%", "\\", '"', "metric:x'", ""])
_numbers = st.integers(-(2**70), 2**70)
_values = st.fixed_dictionaries(
    {},
    optional={
        "int_value": _numbers,
        "long_value": _numbers.map(str),
        "string_value": _hostile,
        "timestamp_value": st.datetimes().map(lambda at: at.isoformat() + "Z") | _hostile,
        "string_values": st.fixed_dictionaries({"values": st.lists(_hostile, max_size=3)}),
        "int_values": st.fixed_dictionaries({"values": st.lists(st.integers(-9, 9), max_size=3)}),
    },
)
_predicates = st.builds(
    lambda op, key, values: {"op": op, "key": key, **values},
    st.integers(0, 10) | st.sampled_from(Op).map(lambda op: op.name),
    st.sampled_from([*RUNS.fields]) | _hostile,
    _values,
)
_filters = _hostile | st.lists(_predicates, max_size=3).map(lambda predicates: filter_of(*predicates))
_tokens = _hostile | st.fixed_dictionaries(
    {
        "SortByFieldName": st.sampled_from([*RUNS.fields, "metric:a"]) | _hostile,
        "SortByFieldValue": st.none() | _numbers | _hostile,
        "SortByFieldValueIsCut": st.booleans(),
        "KeyFieldValue": _hostile,
        "IsDesc": st.booleans(),
        "ModelName": st.just("Run"),
        "Filter": st.none()
        | st.lists(st.tuples(st.sampled_from([*RUNS.fields]), st.integers(0, 9), _numbers | _hostile), max_size=2),
    }
).map(lambda token: base64.b64encode(json.dumps(token).encode()).decode())
_sorts = _hostile | st.sampled_from(["metric:a'b desc", "name", "scheduled_at desc", "created_at"])


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(_filters, _sorts, _tokens, st.integers(-5, 300))
def test_nothing_a_client_sends_reaches_the_text_of_a_statement(
    filter_: str, sort_by: str, token: str, page_size: int
) -> None:
    for asked in (
        ListRequest(filter=filter_, page_size=page_size),
        ListRequest(sort_by=sort_by),
        ListRequest(page_token=token),
        ListRequest(filter=filter_, sort_by=sort_by, page_token=token),
    ):
        with suppress(InvalidInput):
            query = RUNS.query(asked)
            for sql, arguments in (RUNS.page_sql(query), RUNS.count_sql(query)):
                assert _OWN_WORDS.fullmatch(sql), sql
                assert len(arguments) == len(set(re.findall(r"\$\d+", sql)))
                assert "\x00" not in repr(arguments)
