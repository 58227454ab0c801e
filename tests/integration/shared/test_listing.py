"""Lists on a real Postgres: every row once whatever the order, and every operator against what the rows hold."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.database import Database
from shared.errors import InvalidInput
from shared.listing import Column, Kind, Listing, ListRequest, Page
from shared.references import ResourceType, WireReferenceKey

LISTING = Listing(
    model="Run",
    table="listed",
    columns="id",
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "description": Column("description", is_nullable=True),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "scheduled_at": Column("scheduled_at", Kind.TIMESTAMP, is_nullable=True),
        "attempt": Column("attempt", Kind.INTEGER),
        "storage_state": Column(
            "storage_state", stored={"STORAGESTATE_AVAILABLE": "available", "STORAGESTATE_ARCHIVED": "archived"}
        ),
    },
    references={ResourceType.EXPERIMENT: "experiment_id"},
    families={
        "metric:": Column(
            "(select max(value) from measured where run_id = id and measured.name = {})",
            Kind.NUMBER,
            is_nullable=True,
        )
    },
)
LARGEST_TOKEN = 2048
"""What leaves room in a URL for everything else."""
START = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = """
create table listed (
    id text primary key, name text not null, description text, created_at timestamptz not null,
    scheduled_at timestamptz, attempt int not null, storage_state text not null, experiment_id text not null
);
create index on listed (created_at, id);
create table measured (run_id text not null, name text not null, value double precision not null);
"""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str | None
    created_at: datetime
    scheduled_at: datetime | None
    attempt: int
    storage_state: str
    experiment_id: str


def row(number: int) -> Listed:
    """Rows with ties in every column, times within one second, and missing values."""
    return Listed(
        id=f"{number * 7919 % 1000:03}",
        name=["train", "Train_1", "50% off", r"a\b", "train+eval", "Ünïcode"][number % 6],
        description=None if number % 4 == 0 else f"d{number % 3}",
        created_at=START + timedelta(seconds=number // 10, microseconds=number % 5),
        scheduled_at=None if number % 3 == 0 else START + timedelta(minutes=number % 2),
        attempt=number % 4,
        storage_state="archived" if number % 5 == 0 else "available",
        experiment_id=f"e{number % 2}",
    )


ROWS = [row(number) for number in range(57)]
METRICS = {ROWS[n].id: value for n, value in enumerate([0.5, 0.25, math.nan, math.inf, -math.inf, 0.5, 0.0, -0.5])}


@pytest.fixture
async def database(database_urls: dict[str, str]) -> AsyncIterator[Database]:
    database = Database(database_urls["run"], name="listing", max_size=2)
    await database.open()
    await database.execute(TABLES)
    await add(database, *ROWS)
    await database.executemany("insert into measured values ($1, 'Accuracy', $2)", list(METRICS.items()))
    yield database
    await database.close()


async def add(database: Database, *rows: Listed) -> None:
    await database.executemany(
        "insert into listed values ($1, $2, $3, $4, $5, $6, $7, $8)", [msgspec.structs.astuple(row) for row in rows]
    )


async def page(database: Database, asked: ListRequest) -> Page[str]:
    return await LISTING.page(database, LISTING.query(asked), lambda row: str(row["id"]))


async def walk(database: Database, asked: ListRequest, *page_sizes: int) -> list[str]:
    """The ids of every page, taking the page sizes in turn and repeating all but the token."""
    found: list[str] = []
    turn = 0
    while True:
        size = page_sizes[turn % len(page_sizes)]
        one = await page(database, msgspec.structs.replace(asked, page_size=size))
        found.extend(one.rows)
        if not one.next_page_token:
            return found
        assert len(one.rows) == size
        assert len(one.next_page_token) < LARGEST_TOKEN
        asked = msgspec.structs.replace(asked, page_token=one.next_page_token)
        turn += 1


def filter_of(*predicates: dict[str, Any]) -> str:
    return json.dumps({"predicates": predicates})


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("key", ["id", "created_at", "scheduled_at", "attempt", "storage_state"])
async def test_every_row_comes_once_and_in_order(database: Database, key: str, direction: str) -> None:
    is_descending = direction == "desc"
    present = [row for row in ROWS if getattr(row, key) is not None]
    missing = [row for row in ROWS if getattr(row, key) is None]
    present.sort(key=lambda row: (getattr(row, key), row.id), reverse=is_descending)
    missing.sort(key=lambda row: row.id, reverse=is_descending)
    expected = [row.id for row in present + missing]
    for page_sizes in ((1,), (2, 7, 5), (200,)):
        assert await walk(database, ListRequest(sort_by=f"{key} {direction}"), *page_sizes) == expected


@pytest.mark.parametrize("key", ["name", "description"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_texts_come_once_in_the_order_of_the_database(database: Database, key: str, direction: str) -> None:
    everything = await walk(database, ListRequest(sort_by=f"{key} {direction}"), 200)
    assert sorted(everything) == sorted(row.id for row in ROWS)
    assert await walk(database, ListRequest(sort_by=f"{key} {direction}"), 3, 1) == everything


async def test_runs_without_the_metric_come_last_in_both_directions(database: Database) -> None:
    rising = await walk(database, ListRequest(sort_by="metric:Accuracy asc"), 3)
    falling = await walk(database, ListRequest(sort_by="metric:Accuracy desc"), 2, 5)
    values = [METRICS[run_id] for run_id in rising[: len(METRICS)]]
    assert [str(value) for value in values] == ["-inf", "-0.5", "0.0", "0.25", "0.5", "0.5", "inf", "nan"]
    assert falling[: len(METRICS)] == rising[: len(METRICS)][::-1]
    assert set(rising[len(METRICS) :]) == {row.id for row in ROWS} - METRICS.keys()
    assert await walk(database, ListRequest(sort_by="metric:'or(1=1)--"), 20) == sorted(row.id for row in ROWS)


async def test_rows_that_appear_or_go_while_somebody_pages_disturb_nobody(database: Database) -> None:
    first = await page(database, ListRequest(page_size=10))
    in_order = [row.id for row in sorted(ROWS, key=lambda row: (row.created_at, row.id))]
    assert list(first.rows) == in_order[:10]
    before = msgspec.structs.replace(ROWS[0], id="before", created_at=START - timedelta(days=1))
    after = msgspec.structs.replace(ROWS[0], id="after", created_at=START + timedelta(days=1))
    await add(database, before, after)
    # The very row that the token names is gone.
    await database.execute("delete from listed where id = $1", in_order[10])
    rest = await walk(database, ListRequest(page_token=first.next_page_token), 10)
    assert rest == [*in_order[11:], "after"]


_characters = st.characters(codec="utf-8", exclude_characters="\x00")
_beginnings = st.sampled_from(["", "a" * 199, "a" * 5000, '\\"' * 300, "\x01" * 250, "ü" * 201, "\U0001f600" * 2000])
_long_texts = st.builds(lambda beginning, end: beginning + end, _beginnings, st.text(_characters, max_size=2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(_long_texts, min_size=1, max_size=12),
    direction=st.sampled_from(["asc", "desc"]),
    page_size=st.integers(1, 3),
)
async def test_tokens_stay_small_and_pages_exact_however_long_the_sorted_texts_are(
    database: Database, texts: list[str], direction: str, page_size: int
) -> None:
    await database.execute("delete from listed")
    await add(database, *(msgspec.structs.replace(row(number), description=text) for number, text in enumerate(texts)))
    asked = ListRequest(sort_by=f"description {direction}")
    everything = await walk(database, asked, 200)
    assert len(everything) == len(texts)
    assert await walk(database, asked, page_size) == everything


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_no_row_is_missed_where_the_one_that_a_token_names_goes_with_its_long_text(
    database: Database, direction: str
) -> None:
    texts = ["a", *(f"{'a' * 5000}{end}" for end in range(9)), "aab", "b"]
    rows = {row.id: row for row in (msgspec.structs.replace(ROWS[nth], description=t) for nth, t in enumerate(texts))}
    await database.execute("delete from listed")
    await add(database, *rows.values())
    asked = ListRequest(sort_by=f"description {direction}")
    everything = await walk(database, asked, 200)
    for shown, named in enumerate(everything[1:], start=1):
        first = await page(database, msgspec.structs.replace(asked, page_size=shown))
        await database.execute("delete from listed where id = $1", named)
        rest = await walk(database, msgspec.structs.replace(asked, page_token=first.next_page_token), 2)
        assert rest[-1:] == everything[shown + 1 :][-1:] or not rest
        assert set(everything[shown + 1 :]) <= set(rest)
        if len(rows[named].description or "") < 200:
            assert rest == everything[shown + 1 :]
        await add(database, rows[named])


async def test_a_page_that_begins_within_a_long_text_is_found_by_an_index(database: Database) -> None:
    await database.execute("create index listed_name_idx on listed (name, id)")
    await database.execute("update listed set name = repeat('a', 500) || id")
    first = await page(database, ListRequest(sort_by="name desc", page_size=5))
    sql, arguments = LISTING.page_sql(LISTING.query(ListRequest(page_token=first.next_page_token)))
    async with database.transaction() as tx:
        await tx.execute("set local enable_seqscan = off")
        plan = await tx.fetch(f"explain {sql}", *arguments)
    text = "\n".join(row[0] for row in plan)
    assert "Sort" not in text, text
    assert "Index Cond: (ROW(name, id) <= ROW(" in text, text


async def test_the_total_ignores_the_page_and_obeys_the_filter_and_the_reference(database: Database) -> None:
    key = WireReferenceKey(type=ResourceType.EXPERIMENT, id="e1")
    archived = filter_of({"op": "EQUALS", "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"})
    asked = ListRequest(resource_reference_key=key, filter=archived, page_size=2)
    expected = sum(row.experiment_id == "e1" and row.storage_state == "archived" for row in ROWS)
    first = await page(database, asked)
    second = await page(database, msgspec.structs.replace(asked, page_token=first.next_page_token))
    assert (first.total_size, second.total_size) == (expected, expected)
    nobody = await page(database, ListRequest(resource_reference_key=WireReferenceKey(type=ResourceType.EXPERIMENT)))
    assert nobody == Page(rows=(), total_size=0, next_page_token="")


def _second(at: datetime) -> datetime:
    return at.replace(microsecond=0)


SECOND_3 = START + timedelta(seconds=3)
MINUTE_1 = START + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("predicate", "holds"),
    [
        ({"op": 1, "key": "name", "string_value": "train"}, lambda row: row.name == "train"),
        ({"op": 2, "key": "name", "string_value": "train"}, lambda row: row.name != "train"),
        ({"op": 1, "key": "name", "string_value": "'; drop table listed; --"}, lambda row: False),
        ({"op": 8, "key": "name", "string_values": {"values": ["train", "x"]}}, lambda row: row.name == "train"),
        ({"op": 8, "key": "name", "string_values": {}}, lambda row: False),
        ({"op": 9, "key": "name", "string_value": "TRAIN"}, lambda row: "train" in row.name.lower()),
        # What stands for any letter, for any letters and for the letter after it is the filter's to use.
        ({"op": 9, "key": "name", "string_value": "n_1"}, lambda row: row.name == "Train_1"),
        ({"op": 9, "key": "name", "string_value": "n_e"}, lambda row: row.name == "train+eval"),
        ({"op": 9, "key": "name", "string_value": "n\\_1"}, lambda row: row.name == "Train_1"),
        ({"op": 9, "key": "name", "string_value": "n\\_e"}, lambda row: False),
        ({"op": 9, "key": "name", "string_value": "5%f"}, lambda row: row.name == "50% off"),
        ({"op": 9, "key": "name", "string_value": "0\\%"}, lambda row: row.name == "50% off"),
        ({"op": 9, "key": "name", "string_value": "5\\%"}, lambda row: False),
        ({"op": 9, "key": "name", "string_value": "a\\b"}, lambda row: False),
        ({"op": 9, "key": "name", "string_value": "a\\\\b"}, lambda row: row.name == r"a\b"),
        ({"op": 9, "key": "name", "string_value": "\\\\"}, lambda row: row.name == r"a\b"),
        ({"op": 9, "key": "name", "string_value": "\\"}, lambda row: False),
        ({"op": 9, "key": "name", "string_value": "n+e"}, lambda row: row.name == "train+eval"),
        ({"op": 9, "key": "name", "string_value": ""}, lambda row: True),
        ({"op": 1, "key": "description", "string_value": "d1"}, lambda row: row.description == "d1"),
        ({"op": 2, "key": "description", "string_value": "d1"}, lambda row: row.description != "d1"),
        # A row without a value equals the zero that stands for it, and is neither before nor after anything.
        ({"op": 1, "key": "description", "string_value": ""}, lambda row: row.description is None),
        ({"op": 2, "key": "description", "string_value": ""}, lambda row: row.description is not None),
        (
            {"op": 8, "key": "description", "string_values": {"values": ["", "d1"]}},
            lambda row: row.description in (None, "d1"),
        ),
        ({"op": 8, "key": "description", "string_values": {"values": ["d1"]}}, lambda row: row.description == "d1"),
        ({"op": 9, "key": "description", "string_value": ""}, lambda row: True),
        ({"op": 9, "key": "description", "string_value": "D"}, lambda row: row.description is not None),
        ({"op": 5, "key": "description", "string_value": ""}, lambda row: row.description is not None),
        ({"op": 6, "key": "description", "string_value": "d1"}, lambda row: row.description == "d0"),
        ({"op": 1, "key": "scheduled_at", "int_value": 0}, lambda row: row.scheduled_at is None),
        (
            {"op": 2, "key": "scheduled_at", "timestamp_value": "1970-01-01T00:00:00Z"},
            lambda row: row.scheduled_at is not None,
        ),
        ({"op": 8, "key": "scheduled_at", "int_values": {"values": [0]}}, lambda row: row.scheduled_at is None),
        ({"op": 5, "key": "scheduled_at", "int_value": 0}, lambda row: row.scheduled_at is not None),
        ({"op": 6, "key": "scheduled_at", "int_value": 1767225601}, lambda row: row.scheduled_at == START),
        ({"op": 3, "key": "id", "string_value": "500"}, lambda row: row.id > "500"),
        ({"op": 5, "key": "id", "string_value": ROWS[9].id}, lambda row: row.id >= ROWS[9].id),
        ({"op": 6, "key": "id", "string_value": ROWS[9].id}, lambda row: row.id < ROWS[9].id),
        ({"op": 7, "key": "id", "string_value": ROWS[9].id}, lambda row: row.id <= ROWS[9].id),
        ({"op": 1, "key": "attempt", "int_value": 2}, lambda row: row.attempt == 2),
        ({"op": 2, "key": "attempt", "long_value": "2"}, lambda row: row.attempt != 2),
        ({"op": 3, "key": "attempt", "int_value": 2}, lambda row: row.attempt > 2),
        ({"op": 6, "key": "attempt", "long_value": str(2**60)}, lambda row: True),
        ({"op": 8, "key": "attempt", "long_values": {"values": ["1", "3"]}}, lambda row: row.attempt in (1, 3)),
        (
            {"op": 1, "key": "created_at", "timestamp_value": "2026-01-01T01:00:03.9+01:00"},
            lambda row: _second(row.created_at) == SECOND_3,
        ),
        ({"op": 1, "key": "created_at", "long_value": "1767225603"}, lambda row: _second(row.created_at) == SECOND_3),
        ({"op": 2, "key": "created_at", "int_value": 1767225603}, lambda row: _second(row.created_at) != SECOND_3),
        (
            {"op": 3, "key": "created_at", "timestamp_value": "2026-01-01T00:00:03Z"},
            lambda row: _second(row.created_at) > SECOND_3,
        ),
        (
            {"op": 5, "key": "created_at", "timestamp_value": "2026-01-01T00:00:03Z"},
            lambda row: _second(row.created_at) >= SECOND_3,
        ),
        (
            {"op": 6, "key": "created_at", "timestamp_value": "2026-01-01T00:00:03Z"},
            lambda row: _second(row.created_at) < SECOND_3,
        ),
        (
            {"op": 7, "key": "created_at", "string_value": "2026-01-01T00:00:03Z"},
            lambda row: _second(row.created_at) <= SECOND_3,
        ),
        (
            {"op": 8, "key": "created_at", "string_values": {"values": ["2026-01-01T00:00:03Z"]}},
            lambda row: _second(row.created_at) == SECOND_3,
        ),
        ({"op": 8, "key": "created_at", "int_values": {}}, lambda row: False),
        (
            {"op": 2, "key": "scheduled_at", "timestamp_value": "2026-01-01T00:01:00Z"},
            lambda row: row.scheduled_at != MINUTE_1,
        ),
        (
            {"op": 2, "key": "storage_state", "string_value": "STORAGESTATE_ARCHIVED"},
            lambda row: row.storage_state == "available",
        ),
        ({"op": 1, "key": "storage_state", "string_value": "available"}, lambda row: False),
        ({"op": 2, "key": "storage_state", "string_value": "other"}, lambda row: True),
        (
            {"op": 8, "key": "storage_state", "string_values": {"values": ["STORAGESTATE_ARCHIVED"]}},
            lambda row: row.storage_state == "archived",
        ),
        (
            {"op": 9, "key": "storage_state", "string_value": "archived"},
            lambda row: row.storage_state == "archived",
        ),
        (
            {"op": 9, "key": "storage_state", "string_value": "state_a%b"},
            lambda row: row.storage_state == "available",
        ),
        (
            {"op": 9, "key": "storage_state", "string_value": "e\\_ARCHIVE_%"},
            lambda row: row.storage_state == "archived",
        ),
        ({"op": 9, "key": "storage_state", "string_value": "ARCHIVED_"}, lambda row: False),
        ({"op": 9, "key": "storage_state", "string_value": "_\\"}, lambda row: False),
    ],
)
async def test_an_operator_finds_what_the_rows_hold(
    database: Database, predicate: dict[str, Any], holds: Callable[[Listed], bool]
) -> None:
    expected = sorted(row.id for row in ROWS if holds(row))
    asked = ListRequest(filter=filter_of(predicate), sort_by="id")
    assert await walk(database, asked, 4) == expected
    assert (await page(database, asked)).total_size == len(expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=st.text("%_\\saTR", max_size=8))
async def test_words_of_the_api_are_matched_as_the_database_would(database: Database, pattern: str) -> None:
    words = {"STORAGESTATE_AVAILABLE": "available", "STORAGESTATE_ARCHIVED": "archived"}
    matching = [
        stored
        for word, stored in words.items()
        if await database.fetchval("select $1::text ilike '%' || $2::text || '%'", word, pattern)
    ]
    expected = sorted(row.id for row in ROWS if row.storage_state in matching)
    asked = ListRequest(filter=filter_of({"op": 9, "key": "storage_state", "string_value": pattern}), sort_by="id")
    assert await walk(database, asked, 200) == expected


async def test_predicates_must_all_hold_also_two_on_one_key(database: Database) -> None:
    both = filter_of(
        {"op": "IS_SUBSTRING", "key": "name", "string_value": "tr"},
        {"op": "IS_SUBSTRING", "key": "name", "string_value": "ev"},
        {"op": "GREATER_THAN", "key": "attempt", "int_value": 0},
    )
    expected = sorted(row.id for row in ROWS if row.name == "train+eval" and row.attempt > 0)
    assert await walk(database, ListRequest(filter=both, sort_by="id"), 2) == expected


_edges = st.sampled_from([0, 1, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), -62135596800, 253402300799])
_texts = st.text(max_size=5) | st.sampled_from(["%", "_", "\\", "'", "\u0000", "\ud800", "0001-01-01", "9999-12-31"])
_predicate = st.fixed_dictionaries(
    {"op": st.sampled_from([1, 2, 3, 5, 6, 7, 8, 9]), "key": st.sampled_from([*LISTING.fields])},
    optional={
        "long_value": _edges,
        "string_value": _texts,
        "timestamp_value": st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]),
        "string_values": st.fixed_dictionaries({"values": st.lists(_texts, max_size=2)}),
        "long_values": st.fixed_dictionaries({"values": st.lists(_edges, max_size=2)}),
    },
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(predicate=_predicate, sort=st.sampled_from([*LISTING.fields, "metric:x"]))
async def test_what_is_accepted_the_database_can_answer(
    database: Database, predicate: dict[str, Any], sort: str
) -> None:
    try:
        query = LISTING.query(ListRequest(filter=filter_of(predicate), sort_by=f"{sort} desc", page_size=1))
    except InvalidInput:
        return
    await LISTING.page(database, query, str)
