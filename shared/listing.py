"""Lists: pages, sorting and filters of every resource, from the request's parameters to SQL (specification, section 5).

A service describes its resource as a `Listing`, which is data; the rules are here, once. This is the only module that
composes SQL. Its text is made of what a `Listing` says and of constants below; whatever a client sent is a bound
parameter, the content of a page token included, which is unsigned and trusted in nothing.

Pages are found by key, never by offset: a token names the sort value and the id of the first row of the next page. It
becomes part of a URL: of a long text it holds the beginning, and the row itself says the rest. Times are compared in
seconds by filters, as the API shows them, and in microseconds by tokens, as they are stored.
"""

from __future__ import annotations

import base64
import binascii
import operator
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import Any, Final, Generic, Protocol, TypeVar, assert_never
from urllib.parse import unquote_plus

import msgspec

from shared import protojson
from shared.errors import InvalidInput, MalformedRequest, Refusal, layer
from shared.lengths import check_length
from shared.protojson import Int64
from shared.references import ResourceType, WireReferenceKey

T = TypeVar("T")

DEFAULT_PAGE_SIZE: Final = 20
LARGEST_PAGE_SIZE: Final = 200
MOST_PREDICATES: Final = 100
LONGEST_TEXT_IN_TOKEN: Final = 200
"""In characters, of which the worst take six bytes of JSON each. Longer texts are cut."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_LAST_CHARACTER: Final = "\U0010ffff"
_MISMATCH: Final = (
    "page token does not match the supplied sort by and/or filtering criteria. "
    "Either specify the same criteria or leave the latter empty if page token is specified."
)


class Kind(Enum):
    """What a column holds; the value is the type its parameters are cast to."""

    TEXT = "text"
    TIMESTAMP = "timestamptz"
    INTEGER = "bigint"
    NUMBER = "double precision"
    """For sorting only."""


class Column(msgspec.Struct, frozen=True):
    """A SQL expression over the listing's table.

    `is_nullable`: rows may lack the value. To filters it then equals the zero that replies show or leave out, the empty
    text or the epoch, and is neither before nor after anything; they sort last in both directions.
    `stored`: for a closed set, what is stored for each word of the API. Comparisons are then made on the words.
    """

    sql: str
    kind: Kind = Kind.TEXT
    is_nullable: bool = False
    stored: Mapping[str, str] | None = None


class ListRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters that every list route has. Pipeline versions call their reference `resource_key`."""

    page_token: str = ""
    page_size: int = 0
    sort_by: str = ""
    filter: str = ""
    resource_reference_key: WireReferenceKey | None = None
    resource_key: WireReferenceKey | None = None


@protojson.named("Predicate.Op")
class Op(IntEnum):
    UNKNOWN = 0
    EQUALS = 1
    NOT_EQUALS = 2
    GREATER_THAN = 3
    GREATER_THAN_EQUALS = 5
    LESS_THAN = 6
    LESS_THAN_EQUALS = 7
    IN = 8
    IS_SUBSTRING = 9


Operand = str | int | tuple[str | int, ...]
"""In the terms of its column: text, an integer, or whole seconds since the epoch; several of them for IN, in order."""


class Condition(msgspec.Struct, frozen=True):
    """One predicate of a filter, in normal form: two conditions that mean the same are equal."""

    key: str
    op: Op
    operand: Operand


class Sort(msgspec.Struct, frozen=True):
    key: str
    is_descending: bool


class Position(msgspec.Struct, frozen=True):
    """Where a page begins: at the row with this sort value (None where it has none) and this id."""

    value: str | int | float | None
    row_id: str
    is_cut: bool = False
    """The value is only the beginning of the row's."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A request that passed every check."""

    page_size: int
    sort: Sort
    conditions: frozenset[Condition]
    equalities: tuple[tuple[str, str], ...]
    """Column and value, of the reference key and of the route."""
    start: Position | None


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    rows: tuple[T, ...]
    total_size: int
    next_page_token: str
    """Empty on the last page."""


class Rows(Protocol):
    """What can run a statement."""

    async def fetch(self, sql: str, *arguments: Any) -> Sequence[Any]: ...


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """One resource, as lists see it.

    `fields`: the keys that sort and filter, by their API names.
    `references`: the column that each accepted type of reference key filters by. A resource that is None here leaves
    the reference key to its service.
    `families`: sort keys made of a prefix and a name (`metric:accuracy`). The column's `{}` becomes the name's
    parameter.
    `key`: a unique text column that breaks ties.
    """

    model: str
    table: str
    columns: str
    fields: Mapping[str, Column]
    references: Mapping[ResourceType, str] | None = None
    families: Mapping[str, Column] = {}
    default_sort: str = "created_at"
    key: str = "id"

    def query(self, asked: ListRequest, *, only: Mapping[str, str] | None = None) -> Query:
        """Check a request. `only` holds further equalities, by column, that the route demands.

        Raises InvalidInput.
        """
        equalities = (*(only or {}).items(), *self._reference(asked.resource_reference_key))
        with layer("Failed to create list options"):
            page_size = size_of_page(asked.page_size)
            sort = self._sort(asked.sort_by)
            conditions = self._conditions(asked.filter)
            start = None
            if asked.page_token:
                token_sort, token_conditions, start = self._read_token(asked.page_token)
                says_more = bool(asked.sort_by or asked.filter)
                if says_more and (sort, conditions) != (token_sort, token_conditions):
                    raise other_criteria()
                sort, conditions = token_sort, token_conditions
        return Query(page_size=page_size, sort=sort, conditions=conditions, equalities=equalities, start=start)

    async def page(
        self,
        connection: Rows,
        query: Query,
        to_item: Callable[[Any], T],
        *,
        count: Callable[[Mapping[str, str]], Awaitable[int | None]] | None = None,
    ) -> Page[T]:
        """Fetch one page and the number of all rows that match.

        `count` answers from kept counters: it is given the columns and values that the rows must equal, and returns
        None where it keeps no such count. It is not asked where the filter is more than equalities.
        """
        rows, next_page_token = await self.fetch(connection, query)
        if query.start is None and not next_page_token:
            total_size = len(rows)
        else:
            total_size = await self._count(connection, query, count)
        return Page(rows=tuple(to_item(row) for row in rows), total_size=total_size, next_page_token=next_page_token)

    async def fetch(self, connection: Rows, query: Query) -> tuple[Sequence[Any], str]:
        """The rows of one page, and the token of the next page (empty on the last)."""
        sql, arguments = self.page_sql(query)
        rows = await connection.fetch(sql, *arguments)
        if len(rows) <= query.page_size:
            return rows, ""
        return rows[: query.page_size], self._write_token(query, rows[query.page_size])

    def page_sql(self, query: Query) -> tuple[str, list[Any]]:
        """The statement that fetches a page and one row beyond it, with its arguments."""
        bound = _Arguments()
        column = self._column(query.sort.key, bound)
        direction = "desc" if query.sort.is_descending else "asc"
        # Spelled out only where it matters: an index is read in either direction without it.
        nulls = " nulls last" if column.is_nullable else ""
        where = self._where(query, bound)
        if query.start is not None:
            where.append(self._seek(column, query.sort, query.start, bound))
        sql = (  # Composed of this listing's own words and of numbered parameters.
            f"select {self.columns}, {column.sql} as listing_sort, {self.key} as listing_key "  # noqa: S608
            f"from {self.table} where {' and '.join(where) or 'true'} "
            f"order by {column.sql} {direction}{nulls}, {self.key} {direction} "
            f"limit {bound.add(query.page_size + 1, 'bigint')}"
        )
        return sql, bound.values

    def count_sql(self, query: Query) -> tuple[str, list[Any]]:
        """The statement that counts the rows of all pages, with its arguments."""
        bound = _Arguments()
        where = self._where(query, bound)
        sql = f"select count(*) as total from {self.table} where {' and '.join(where) or 'true'}"  # noqa: S608
        return sql, bound.values

    # What the request asks for.

    def _reference(self, key: WireReferenceKey | None) -> tuple[tuple[str, str], ...]:
        if key is None or self.references is None:
            return ()
        column = self.references.get(key.type)
        if column is None:
            raise InvalidInput(
                f"Unsupported resource type: {key.type.name}",
                layers=("Validating filter failed.", "Unrecognized resource reference type."),
            )
        return ((column, key.id),)

    def _sort(self, asked: str) -> Sort:
        words = asked.split()
        if not words:
            return Sort(self.default_sort, is_descending=False)
        direction = words[1].lower() if len(words) > 1 else "asc"
        if len(words) > 2 or direction not in ("asc", "desc"):
            raise InvalidInput(
                f'Received invalid sort by format "{asked}". '
                'Supported format: "field_name", "field_name desc", or "field_name asc"'
            )
        field, colon, name = words[0].partition(":")
        key = f"{field.lower()}{colon}{name}"  # Names in a family keep their case.
        if not self._sorts_by(key):
            raise InvalidInput(f'Invalid sorting field: "{key}" on listable type {self.model}')
        return Sort(key, is_descending=direction == "desc")

    def _sorts_by(self, key: str) -> bool:
        prefix, _, name = key.partition(":")
        return key in self.fields or (f"{prefix}:" in self.families and bool(name) and "\x00" not in name)

    def _conditions(self, asked: str) -> frozenset[Condition]:
        if not asked:
            return frozenset()
        try:
            predicates = protojson.decode_strictly(_filter_text(asked), _Filter).predicates
        except MalformedRequest as error:
            raise InvalidInput(f'failed to parse valid filter from "{asked}": {error.message}') from error
        if len(predicates) > MOST_PREDICATES:
            raise InvalidInput(f"a filter has at most {MOST_PREDICATES} predicates, not {len(predicates)}")
        for predicate in predicates:
            if predicate.key not in self.fields:
                raise InvalidInput(f'no support for filtering on unrecognized field "{predicate.key}"')
        return frozenset(_condition(predicate, self.fields[predicate.key]) for predicate in predicates)

    # Page tokens.

    def _write_token(self, query: Query, row: Any) -> str:
        value = _to_token(row["listing_sort"])
        is_cut = isinstance(value, str) and len(value) > LONGEST_TEXT_IN_TOKEN
        token = _Token(
            sort_key=query.sort.key,
            sort_value=value[:LONGEST_TEXT_IN_TOKEN] if isinstance(value, str) else value,
            is_cut=is_cut,
            key_value=row["listing_key"],
            is_descending=query.sort.is_descending,
            model=self.model,
            conditions=[(c.key, int(c.op), c.operand) for c in _in_order(query.conditions)] or None,
        )
        return base64.b64encode(msgspec.json.encode(token)).decode()

    def _read_token(self, text: str) -> tuple[Sort, frozenset[Condition], Position]:
        try:
            token = msgspec.json.decode(base64.b64decode(text, validate=True), type=_Token)
            if token.model != self.model or not self._sorts_by(token.sort_key):
                raise ValueError("it is no token of this list")
            column = self._column(token.sort_key, _Arguments())
            sort = Sort(token.sort_key, token.is_descending)
            if token.is_cut and column.kind is not Kind.TEXT:
                raise ValueError("its sort value cannot be cut")
            start = Position(_from_token(token.sort_value, column), _plain_text(token.key_value), token.is_cut)
            conditions = frozenset(self._condition_of_token(*parts) for parts in token.conditions or ())
            if len(conditions) > MOST_PREDICATES:
                raise ValueError("it filters by too much")
        except (binascii.Error, msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
            raise no_token(str(error)) from error
        return sort, conditions, start

    def _condition_of_token(self, key: str, op: int, operand: Operand) -> Condition:
        column = self.fields.get(key)
        if column is None:
            raise ValueError("it filters by an unknown field")
        try:
            return _checked(key, Op(op), operand, column)
        except Refusal as refusal:
            raise ValueError(refusal.message) from refusal

    # SQL.

    def _column(self, key: str, bound: _Arguments) -> Column:
        if key in self.fields:
            return self.fields[key]
        prefix, _, name = key.partition(":")
        family = self.families[f"{prefix}:"]
        return msgspec.structs.replace(family, sql=family.sql.replace("{}", bound.add(name, "text")))

    def _where(self, query: Query, bound: _Arguments) -> list[str]:
        equal = [f"{column} = {bound.add(_plain(value), 'text')}" for column, value in query.equalities]
        return equal + [_predicate_sql(c, self.fields[c.key], bound) for c in _in_order(query.conditions)]

    def _seek(self, column: Column, sort: Sort, start: Position, bound: _Arguments) -> str:
        """At or beyond the first row of the page, in the order of `page_sql`."""
        beyond = "<=" if sort.is_descending else ">="
        row_id = bound.add(start.row_id, "text")
        if start.value is None:
            return f"({column.sql} is null and {self.key} {beyond} {row_id})"
        if start.is_cut:
            value = self._whole(f"{start.value}", column, sort, row_id, bound)
        else:
            at = _from_micros(start.value) if column.kind is Kind.TIMESTAMP else start.value
            value = bound.add(at, column.kind.value)
        seek = f"({column.sql}, {self.key}) {beyond} ({value}, {row_id})"
        return f"({seek} or {column.sql} is null)" if column.is_nullable else seek

    def _whole(self, beginning: str, column: Column, sort: Sort, row_id: str, bound: _Arguments) -> str:
        """The row's own text. Where the row is gone, the page begins where the first text of this beginning stands
        or would stand: of rows that are alike so far, some may come twice and none is missed."""
        first = beginning + _LAST_CHARACTER if sort.is_descending else beginning
        own = f"select {column.sql} from {self.table} where {self.key} = {row_id}"  # noqa: S608
        return f"coalesce(({own}), {bound.add(first, 'text')})"

    async def _count(
        self,
        connection: Rows,
        query: Query,
        count: Callable[[Mapping[str, str]], Awaitable[int | None]] | None,
    ) -> int:
        if count is not None and (equalities := self._only_equalities(query)) is not None:
            kept = await count(equalities)
            if kept is not None:
                return kept
        sql, arguments = self.count_sql(query)
        return int((await connection.fetch(sql, *arguments))[0]["total"])

    def _only_equalities(self, query: Query) -> dict[str, str] | None:
        """The query as column = value pairs; None where it is more than that."""
        equalities = list(query.equalities)
        for condition in query.conditions:
            column = self.fields[condition.key]
            if column.stored is not None:
                values = _matching(condition, column.stored)
            else:
                is_text = condition.op is Op.EQUALS and column.kind is Kind.TEXT
                values = [str(condition.operand)] if is_text and not _finds_missing(condition, column) else []
            if len(values) != 1:
                return None
            equalities.append((column.sql, values[0]))
        return dict(equalities) if len(dict(equalities)) == len(set(equalities)) else None


class _LongValues(msgspec.Struct, frozen=True, kw_only=True):
    values: tuple[Int64, ...] = ()


class _IntValues(msgspec.Struct, frozen=True, kw_only=True):
    values: tuple[int, ...] = ()


class _StringValues(msgspec.Struct, frozen=True, kw_only=True):
    values: tuple[str, ...] = ()


class _Predicate(msgspec.Struct, frozen=True, kw_only=True):
    op: Op = Op.UNKNOWN
    key: str = ""
    int_value: int | None = None
    long_value: Int64 | None = None
    string_value: str | None = None
    timestamp_value: datetime | None = None
    int_values: _IntValues | None = None
    long_values: _LongValues | None = None
    string_values: _StringValues | None = None


class _Filter(msgspec.Struct, frozen=True, kw_only=True):
    predicates: tuple[_Predicate, ...] = ()


class _Token(msgspec.Struct, frozen=True, kw_only=True):
    sort_key: str = msgspec.field(name="SortByFieldName")
    sort_value: str | int | None = msgspec.field(name="SortByFieldValue")
    is_cut: bool = msgspec.field(name="SortByFieldValueIsCut", default=False)
    key_value: str = msgspec.field(name="KeyFieldValue")
    is_descending: bool = msgspec.field(name="IsDesc")
    model: str = msgspec.field(name="ModelName")
    conditions: list[tuple[str, int, str | int | tuple[str | int, ...]]] | None = msgspec.field(
        name="Filter", default=None
    )


class _Arguments:
    """The bound parameters of one statement, in the order of their numbers."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: Any, sql_type: str) -> str:
        self.values.append(value)
        return f"${len(self.values)}::{sql_type}"


def size_of_page(asked: int) -> int:
    """Raises InvalidInput."""
    if asked < 0:
        # The original prints the number as the character that it would be, and none is negative.
        raise InvalidInput("The page size should be greater than 0. Got '\ufffd'")
    return min(asked, LARGEST_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def no_token(why: str) -> InvalidInput:
    return InvalidInput("Invalid package token.", cause=why)


def other_criteria() -> InvalidInput:
    """Than those of the page token."""
    return InvalidInput(_MISMATCH)


# Filters.


def _as_received(text: str) -> str:
    return text


def _decode_base64(text: str) -> str:
    return base64.b64decode(text, validate=True).decode()


def _filter_text(asked: str) -> str:
    """The first reading of a filter that is a JSON object; clients encode it once, twice or in base64."""
    readings: tuple[Callable[[str], str], ...] = (_as_received, unquote_plus, _decode_base64)
    for read in readings:
        try:
            text = read(asked)
            if isinstance(msgspec.json.decode(text), dict):
                return text
        except (ValueError, RecursionError):
            continue
    return asked


def _condition(predicate: _Predicate, column: Column) -> Condition:
    match predicate:
        case _Predicate(int_value=int(value)) | _Predicate(long_value=int(value)):
            given: Any = value
        case _Predicate(string_value=str(text)):
            given = text
        case _Predicate(timestamp_value=datetime() as at):
            if column.kind is not Kind.TIMESTAMP:
                raise InvalidInput(f'cannot compare key "{predicate.key}" to a timestamp')
            given = (at - _EPOCH) // _SECOND
        case _Predicate(int_values=_IntValues(values=values)) | _Predicate(long_values=_LongValues(values=values)):
            given = values
        case _Predicate(string_values=_StringValues(values=texts)):
            given = texts
        case _:
            given = None
    if predicate.op is Op.UNKNOWN:
        raise InvalidInput("invalid predicate operation: UNKNOWN")
    if given is None:
        raise InvalidInput(f'no value set for predicate on key "{predicate.key}"')
    return _checked(predicate.key, predicate.op, given, column)


def _checked(key: str, op: Op, given: Any, column: Column) -> Condition:
    """The condition in normal form. Raises InvalidInput where operator, value and column do not go together."""
    is_list = isinstance(given, (list, tuple))
    match op:
        case Op.UNKNOWN:
            raise InvalidInput("invalid predicate operation: UNKNOWN")
        case Op.IN:
            if not is_list:
                raise InvalidInput(f"cannot use IN operator with scalar type {_type_name(given)}")
            values = {_operand(key, item, column) for item in given}
            return Condition(key, op, tuple(sorted(values)))
        case Op.IS_SUBSTRING:
            if not isinstance(given, str):
                raise InvalidInput(f"cannot use non string value type {_type_name(given)} with operator {op.name}")
            if column.kind is not Kind.TEXT:
                raise InvalidInput(f'cannot use operator {op.name} on key "{key}"')
            # No name has a longer part, and the database takes its time over each letter of it for each row.
            check_length("part to search for", given)
        case Op.EQUALS | Op.NOT_EQUALS | Op.GREATER_THAN | Op.GREATER_THAN_EQUALS | Op.LESS_THAN | Op.LESS_THAN_EQUALS:
            if is_list:
                raise InvalidInput(f"cannot use scalar operator {op.name} on array type {_type_name(given)}")
        case _:
            assert_never(op)
    return Condition(key, op, _operand(key, given, column))


def _operand(key: str, given: str | int, column: Column) -> str | int:
    """One value in the terms of its column."""
    match column.kind:
        case Kind.TEXT:
            return _plain(str(given))
        case Kind.TIMESTAMP:
            return _seconds(key, given)
        case Kind.INTEGER | Kind.NUMBER:
            try:
                number = int(given)
            except ValueError:
                raise InvalidInput(f'cannot compare key "{key}" to the string "{given}"') from None
            if not -(2**63) <= number < 2**63:
                raise InvalidInput(f'cannot compare key "{key}" to {number}: value out of range')
            return number
        case _:
            assert_never(column.kind)


def _seconds(key: str, given: str | int) -> int:
    if isinstance(given, str):
        try:
            at = datetime.fromisoformat(given)
            given = (at.replace(tzinfo=at.tzinfo or UTC) - _EPOCH) // _SECOND
        except (ValueError, OverflowError):
            raise InvalidInput(f'cannot compare key "{key}" to the string "{given}"') from None
    try:
        _EPOCH + timedelta(seconds=given + 1)
    except OverflowError:
        raise InvalidInput(f"invalid timestamp: {given} seconds") from None
    return given


def _type_name(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[]{_type_name(value[0])}" if value else "[]"
    return "string" if isinstance(value, str) else "int"


# Predicates in SQL.


def _in_order(conditions: frozenset[Condition]) -> list[Condition]:
    """The same statement and the same token for the same filter, whatever order it came in."""
    return sorted(conditions, key=lambda condition: (condition.key, condition.op, repr(condition.operand)))


_SQL_OPERATORS: Final = {
    Op.EQUALS: "=",
    Op.NOT_EQUALS: "<>",
    Op.GREATER_THAN: ">",
    Op.GREATER_THAN_EQUALS: ">=",
    Op.LESS_THAN: "<",
    Op.LESS_THAN_EQUALS: "<=",
}
_ORDERINGS: Final = (Op.GREATER_THAN, Op.GREATER_THAN_EQUALS, Op.LESS_THAN, Op.LESS_THAN_EQUALS)
_COMPARISONS: Final[dict[Op, Callable[[Any, Any], bool]]] = {
    Op.EQUALS: operator.eq,
    Op.NOT_EQUALS: operator.ne,
    Op.GREATER_THAN: operator.gt,
    Op.GREATER_THAN_EQUALS: operator.ge,
    Op.LESS_THAN: operator.lt,
    Op.LESS_THAN_EQUALS: operator.le,
    Op.IN: lambda word, words: word in words,
    Op.IS_SUBSTRING: lambda word, part: _is_like(word.lower(), f"%{part.lower()}%"),
}


def _predicate_sql(condition: Condition, column: Column, bound: _Arguments) -> str:
    if column.stored is not None:
        return _any_of(column, _matching(condition, column.stored), bound)
    if column.kind is Kind.TIMESTAMP:
        return _time_sql(condition, column, bound)
    cast = column.kind.value
    match condition.op:
        case Op.IN:
            compared = f"{column.sql} = any({bound.add(list(_items(condition)), f'{cast}[]')})"
        case Op.IS_SUBSTRING:
            # As the original has it, what stands for other letters in a pattern does so in a filter, too. The sign at
            # the end keeps a lone backslash from being the last.
            compared = f"{column.sql} ilike {bound.add(f'%{condition.operand}%', 'text')}"
        case _:
            compared = f"{column.sql} {_SQL_OPERATORS[condition.op]} {bound.add(condition.operand, cast)}"
    return _or_missing(compared, condition, column)


def _matching(condition: Condition, stored: Mapping[str, str]) -> list[str]:
    """What is stored for the words of a closed set that fit. `<> ARCHIVED` thereby becomes an equality."""
    holds = _COMPARISONS[condition.op]
    return [value for word, value in stored.items() if holds(word, condition.operand)]


def _is_like(word: str, pattern: str) -> bool:
    """As the database judges. No regular expression: a client could write a pattern that keeps one busy for ever."""
    ends = {0}
    for sign in re.finditer(r"\\.|.", pattern, re.DOTALL):
        match sign[0]:
            case "%":
                ends = set(range(min(ends), len(word) + 1))
            case "_":
                ends = {end + 1 for end in ends if end < len(word)}
            case letter:
                ends = {end + 1 for end in ends if word.startswith(letter[-1], end)}
        if not ends:
            return False
    return len(word) in ends


def _any_of(column: Column, values: list[str], bound: _Arguments) -> str:
    match values:
        case []:
            return "false"
        case [value]:
            return f"{column.sql} = {bound.add(value, 'text')}"
        case _:
            return f"{column.sql} = any({bound.add(values, 'text[]')})"


def _time_sql(condition: Condition, column: Column, bound: _Arguments) -> str:
    """Compare in whole seconds without wrapping the column, so that an index on it still serves."""
    if condition.op is Op.IN:
        seconds = [_within_second(int(second), column, bound) for second in _items(condition)]
        return _or_missing(f"({' or '.join(seconds)})" if seconds else "false", condition, column)
    second = int(condition.operand)  # type: ignore[arg-type]
    at, after = _EPOCH + timedelta(seconds=second), _EPOCH + timedelta(seconds=second + 1)
    match condition.op:
        case Op.EQUALS:
            return _or_missing(_within_second(second, column, bound), condition, column)
        case Op.NOT_EQUALS:
            return _or_missing(f"not {_within_second(second, column, bound)}", condition, column)
        case Op.GREATER_THAN:
            return f"{column.sql} >= {bound.add(after, 'timestamptz')}"
        case Op.GREATER_THAN_EQUALS:
            return f"{column.sql} >= {bound.add(at, 'timestamptz')}"
        case Op.LESS_THAN:
            return f"{column.sql} < {bound.add(at, 'timestamptz')}"
        case Op.LESS_THAN_EQUALS:
            return f"{column.sql} < {bound.add(after, 'timestamptz')}"
        case _:
            raise AssertionError(f"{condition.op.name} does not compare times")


def _within_second(second: int, column: Column, bound: _Arguments) -> str:
    at = bound.add(_EPOCH + timedelta(seconds=second), "timestamptz")
    return f"({column.sql} >= {at} and {column.sql} < {at} + interval '1 second')"


def _or_missing(sql: str, condition: Condition, column: Column) -> str:
    return f"({sql} or {column.sql} is null)" if _finds_missing(condition, column) else sql


def _finds_missing(condition: Condition, column: Column) -> bool:
    """Whether rows that lack the value fit: it equals the zero of its kind."""
    if not column.is_nullable or condition.op in _ORDERINGS:
        return False
    return _COMPARISONS[condition.op]("" if column.kind is Kind.TEXT else 0, condition.operand)


def _items(condition: Condition) -> tuple[str | int, ...]:
    return condition.operand if isinstance(condition.operand, tuple) else (condition.operand,)


# Values in tokens.


def _to_token(value: Any) -> str | int | None:
    match value:
        case datetime():
            return (value - _EPOCH) // timedelta(microseconds=1)
        case float():
            return repr(value)  # JSON has no number for NaN and the infinities.
        case _:
            return value  # type: ignore[no-any-return]


def _from_token(value: str | int | None, column: Column) -> str | int | float | None:
    """Raises ValueError or OverflowError where the value is none that the column could hold."""
    match column.kind, value:
        case _, None if column.is_nullable:
            return None
        case Kind.TEXT, str():
            return _plain_text(value)
        case Kind.TIMESTAMP, int():
            _from_micros(value)
            return value
        case Kind.INTEGER, int() if -(2**63) <= value < 2**63:
            return value
        case Kind.NUMBER, str():
            return float(value)
        case _:
            raise ValueError("its sort value does not fit the field")


def _from_micros(value: float | str) -> datetime:
    return _EPOCH + timedelta(microseconds=int(value))


def _plain_text(text: str) -> str:
    if "\x00" in text:
        raise ValueError("it holds a NUL")
    return text


def _plain(text: str) -> str:
    """Text that a parameter may hold. No row has a NUL in it, nor what stands in for it here."""
    return text.replace("\x00", "\ufffd")
