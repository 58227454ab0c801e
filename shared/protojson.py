"""proto3 JSON as the API's clients write and read it (specification, section 2).

Messages are plain frozen msgspec structs with snake_case fields, and every field has a default. Their annotations say
everything; a reader and a writer are built from them once per type:

    str, bool, float     as they are                    Int64        a JSON string, on the way out
    int                  32 bits                        datetime     RFC 3339 in whole seconds
    IntEnum, StrEnum     by name                        bytes        base64
    a struct             a message                      list, tuple  a repeated field
    dict[str, …]         a map                          X | None     absent when None, written even at X's zero

An IntEnum's members are called and numbered as in the proto; a StrEnum's values are the names and its members stand in
the proto's order, from 0 on. A type is called in the proto as it is here without a leading `_` or `Wire`, or as `named`
says.

Without `| None`, zero means absent, as in proto3. A member of a oneof, a timestamp and a message that may be missing
are therefore declared with it.

Go's decoder is lenient in places and so is this one; the strict variant exists for filters. Whatever does not fit is
refused with a text like the one Go's decoder would give. This module knows no message.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Final, NoReturn, TypeVar, Union, get_args, get_origin
from urllib.parse import unquote_plus

import msgspec

from shared.errors import MalformedRequest

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

Int64 = Annotated[int, "int64"]

_INT32: Final = 2**31
_INT64: Final = 2**63
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_QUERY_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}")
_NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_PROTO_NAMES: Final[dict[type, str]] = {}

_Read = Callable[[Any], Any]


class _Mismatch(Exception):
    """A value that does not fit, and where it was found."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def decode(body: bytes, kind: type[S], *, is_strict: bool = False) -> S:
    """Read a request's body. An empty one is a message with nothing set; of several JSON values the first counts.

    `is_strict` is for messages that the original does not have: what they do not have is refused, because nobody is
    used to its being ignored, and who mistypes a field means it. Raises MalformedRequest.
    """
    return _read_message(_first_value(body) if body.strip() else None, kind, strict=is_strict)


def decode_string(body: bytes) -> str:
    """Read a request's body that is one string and no message. Raises MalformedRequest."""
    value = _first_value(body) if body.strip() else None
    if value is None:
        return ""
    try:
        return _read_string(value)
    except _Mismatch as mismatch:
        raise MalformedRequest(mismatch.reason) from None


def decode_strictly(text: str | bytes, kind: type[S]) -> S:
    """Read exactly one message and nothing that it does not have. Raises MalformedRequest."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedRequest(_reason(error, text)) from error
    return _read_message(document, kind, strict=True)


def query(kind: type[S], parameters: bytes | Iterable[tuple[str, str]]) -> S:
    """Read a message from a URL's query: `page_size=5&resource_reference_key.type=EXPERIMENT`.

    The query's own bytes are preferred to pairs that somebody decoded: an escape that is none is refused only there.

    Unknown names are ignored; of a repeated one the first counts. Raises MalformedRequest.
    """
    given: dict[str, Any] = {}
    names = _query_reader(kind)
    for name, value in _pairs(parameters, names) if isinstance(parameters, bytes) else parameters:
        found = names.get(name)
        if found is None:
            continue
        path, read = found
        inner = given
        for step in path[:-1]:
            inner = inner.setdefault(step, {})
        if path[-1] not in inner:
            try:
                inner[path[-1]] = read(value)
            except _Mismatch as mismatch:
                raise MalformedRequest(f"type mismatch, parameter: {name}, error: {mismatch.reason}") from None
    return _build(kind, given)


def encode(document: msgspec.Struct) -> bytes:
    """Write an answer's body."""
    return _encoder.encode(_struct_writer(type(document))(document))


def named(proto_name: str) -> Callable[[type[T]], type[T]]:
    """Decorate a message or an enum that the proto calls otherwise, or declares inside of another: `Job.Mode`."""

    def name(kind: type[T]) -> type[T]:
        _PROTO_NAMES[kind] = proto_name
        return kind

    return name


_encoder = msgspec.json.Encoder()


def _proto_name(kind: type) -> str:
    return _PROTO_NAMES.get(kind) or kind.__name__.removeprefix("_").removeprefix("Wire")


# Reading JSON.


def _first_value(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if "trailing characters" not in str(error):
            raise MalformedRequest(_reason(error, body)) from error
    try:
        return _lenient_value(body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(_reason(error, body)) from error


def _lenient_value(text: str | bytes) -> Any:
    """The first value, whatever follows it."""
    value, _end = _lenient.raw_decode((text if isinstance(text, str) else text.decode()).lstrip())
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"invalid character {text[0]!r} looking for beginning of value")


_lenient = json.JSONDecoder(parse_constant=_refuse_constant)


def _reason(error: Exception, text: str | bytes) -> str:
    if isinstance(error, RecursionError):
        return "exceeded max depth"
    reason = str(error)
    if "truncated" not in reason:
        return reason
    try:
        _lenient_value(text)
    except (ValueError, RecursionError):
        return "unexpected EOF"
    # Half of a pair is what the fast reader waits for the rest of, to the end of the text.
    return "invalid utf-16 surrogate pair in string"


def _read_message(document: Any, kind: type[S], *, strict: bool) -> S:
    if document is None:
        return kind()
    try:
        message: S = _struct_reader(kind, strict)(document)
    except _Mismatch as mismatch:
        where = f" (field {'.'.join(reversed(mismatch.path))})" if mismatch.path else ""
        raise MalformedRequest(f"{mismatch.reason}{where}") from None
    return message


@cache
def _struct_reader(kind: type[msgspec.Struct], strict: bool) -> _Read:
    fields: dict[str, tuple[str, _Read, bool]] = {}
    for field in msgspec.structs.fields(kind):
        if field.required:
            raise TypeError(f"{kind.__name__}.{field.name} needs a default: every field of a message may be absent")
        read = _reader(field.type, strict)
        fields[field.encode_name] = (field.name, read, False)
        camel = _camel(field.encode_name)
        if camel != field.encode_name:
            fields[camel] = (field.name, read, True)

    def read_struct(value: Any) -> msgspec.Struct:
        if type(value) is not dict:
            raise _Mismatch(_cannot(value, "map[string]json.RawMessage"))
        given: dict[str, Any] = {}
        from_camel: set[str] = set()
        for key, item in value.items():
            known = fields.get(key)
            if known is None:
                if strict:
                    raise _Mismatch(f'unknown field "{key}" in api.{_proto_name(kind)}')
                continue
            name, read, is_camel = known
            if item is None or name in from_camel:
                continue
            if is_camel:
                from_camel.add(name)
            try:
                given[name] = read(item)
            except _Mismatch as mismatch:
                mismatch.path.append(key)
                raise
        return kind(**given)

    return read_struct


def _reader(annotation: Any, strict: bool) -> _Read:
    bare = _bare(annotation)
    if annotation == Int64 or bare is int:
        return _integer_reader(64 if annotation == Int64 or Int64 in get_args(annotation) else 32)
    if bare in _SCALAR_READERS:
        return _SCALAR_READERS[bare]
    if isinstance(bare, type) and issubclass(bare, Enum):
        return _enum_reader(bare)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _struct_reader(bare, strict)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin in (list, tuple):
        return _repeated_reader(origin, _reader(arguments[0], strict))
    if origin is dict:
        return _map_reader(_reader(arguments[1], strict))
    raise TypeError(f"{annotation} has no form in proto3 JSON")


def _bare(annotation: Any) -> Any:
    """The annotation without `| None` and without metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _bare(get_args(annotation)[0])
    if origin in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) != 1:
            raise TypeError(f"{annotation} has no form in proto3 JSON")
        return _bare(members[0])
    return annotation


def _read_string(value: Any) -> str:
    if type(value) is not str:
        raise _Mismatch(_cannot(value, "string"))
    if "\x00" in value:
        raise _Mismatch("invalid character U+0000 in string")  # No database column could hold it.
    return value


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Mismatch(_cannot(value, "bool"))
    return value


def _read_double(value: Any) -> float:
    if type(value) is str:
        if value in _NON_FINITE:
            return _NON_FINITE[value]
        if not _NUMBER.fullmatch(value):
            raise _Mismatch(_cannot(value, "float64"))
    elif type(value) not in (int, float):
        raise _Mismatch(_cannot(value, "float64"))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise _Mismatch(f"{_cannot(value, 'float64')}: value out of range")
    return number


def _integer_reader(bits: int) -> _Read:
    limit = _INT32 if bits == 32 else _INT64

    def read_integer(value: Any) -> int:
        if type(value) is str and _INTEGER.fullmatch(value):
            number = int(value)
        elif type(value) is int:
            number = value
        elif type(value) is float and value.is_integer():
            number = int(value)
        else:
            raise _Mismatch(_cannot(value, f"int{bits}"))
        if not -limit <= number < limit:
            raise _Mismatch(f"{_cannot(value, f'int{bits}')}: value out of range")
        return number

    return read_integer


def _enum_members(kind: type[Enum]) -> tuple[dict[str, Enum], dict[int, Enum]]:
    """The members by the names and by the numbers of the proto."""
    if issubclass(kind, IntEnum):
        return dict(kind.__members__), {member.value: member for member in kind}
    if issubclass(kind, StrEnum):
        return {member.value: member for member in kind}, dict(enumerate(kind))
    raise TypeError(f"{kind.__name__} is neither an IntEnum nor a StrEnum")


def _enum_reader(kind: type[Enum]) -> _Read:
    by_name, by_number = _enum_members(kind)

    def read_enum(value: Any) -> Enum:
        if type(value) is str and value in by_name:
            return by_name[value]
        if type(value) is int and value in by_number:
            return by_number[value]
        if type(value) in (str, int):
            raise _Mismatch(f"unknown value {json.dumps(value, ensure_ascii=False)} for enum api.{_proto_name(kind)}")
        raise _Mismatch(_cannot(value, f"api.{_proto_name(kind)}"))

    return read_enum


def _read_timestamp(value: Any) -> datetime:
    if type(value) is not str:
        raise _Mismatch(_cannot(value, "string"))
    parts = _TIMESTAMP.fullmatch(value)
    try:
        if parts is None:
            raise ValueError("it is not RFC 3339")
        return datetime.fromisoformat(parts[1] + parts[2]).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _Mismatch(f'bad Timestamp: parsing time "{value}": {error}') from None


def _read_bytes(value: Any) -> bytes:
    if type(value) is not str:
        raise _Mismatch(_cannot(value, "[]uint8"))
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _Mismatch("illegal base64 data") from None


def _repeated_reader(container: type[list[Any]] | type[tuple[Any, ...]], read: _Read) -> _Read:
    def read_repeated(value: Any) -> list[Any] | tuple[Any, ...]:
        if type(value) is not list:
            raise _Mismatch(_cannot(value, "[]json.RawMessage"))
        return container(read(item) for item in value)

    return read_repeated


def _map_reader(read: _Read) -> _Read:
    def read_map(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Mismatch(_cannot(value, "map[string]json.RawMessage"))
        return {_read_string(key): read(item) for key, item in value.items()}

    return read_map


_SCALAR_READERS: Final[dict[Any, _Read]] = {
    str: _read_string,
    bool: _read_bool,
    float: _read_double,
    datetime: _read_timestamp,
    bytes: _read_bytes,
}


def _cannot(value: Any, go_type: str) -> str:
    match value:
        case bool():
            found = "bool"
        case str():
            found = "string"
        case int() | float():
            found = "number"
        case list():
            found = "array"
        case None:
            found = "null"
        case _:
            found = "object"
    return f"json: cannot unmarshal {found} into Go value of type {go_type}"


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


# Reading a URL's query.


def _pairs(query_string: bytes, known: Container[str]) -> Iterator[tuple[str, str]]:
    """Those of known names, whose values must be escaped as a URL escapes."""
    for pair in query_string.decode("latin-1").split("&"):
        escaped_name, _, value = pair.partition("=")
        name = unquote_plus(escaped_name)
        if name not in known:
            continue
        if bad := _BAD_ESCAPE.search(value):
            raise MalformedRequest(f'invalid URL escape "{bad[0]}"')
        yield name, unquote_plus(value)


@cache
def _query_reader(kind: type[msgspec.Struct]) -> dict[str, tuple[tuple[str, ...], _Read]]:
    """Every name a parameter may have, with the path of the field it sets."""
    names: dict[str, tuple[tuple[str, ...], _Read]] = {}
    for field in msgspec.structs.fields(kind):
        bare = _bare(field.type)
        spellings = {field.encode_name, _camel(field.encode_name)}
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            for inner, (path, read) in _query_reader(bare).items():
                names.update({f"{spelling}.{inner}": ((field.name, *path), read) for spelling in spellings})
        else:
            names.update({spelling: ((field.name,), _query_value_reader(field.type)) for spelling in spellings})
    return names


def _query_value_reader(annotation: Any) -> _Read:
    bare = _bare(annotation)
    if bare is int:
        limit = _INT64 if annotation == Int64 else _INT32
        return lambda text: _parse_int(text, limit)
    if bare is bool:
        return _parse_bool
    if isinstance(bare, type) and issubclass(bare, Enum):
        return lambda text: _parse_enum(text, bare)
    return _reader(annotation, strict=False)


def _parse_int(text: str, limit: int) -> int:
    if not _QUERY_INTEGER.fullmatch(text):
        raise _Mismatch(f"strconv.ParseInt: parsing {json.dumps(text, ensure_ascii=False)}: invalid syntax")
    if len(text) > 20 or not -limit <= int(text) < limit:
        raise _Mismatch(f'strconv.ParseInt: parsing "{text}": value out of range')
    return int(text)


def _parse_bool(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise _Mismatch(f"strconv.ParseBool: parsing {json.dumps(text, ensure_ascii=False)}: invalid syntax")
    return text in _TRUE


def _parse_enum(text: str, kind: type[Enum]) -> Enum:
    by_name, by_number = _enum_members(kind)
    if text in by_name:
        return by_name[text]
    if _INTEGER.fullmatch(text) and int(text) in by_number:
        return by_number[int(text)]
    raise _Mismatch(f"{text} is not a valid go_client.{_proto_name(kind).replace('.', '_')}")


def _build(kind: type[S], given: dict[str, Any]) -> S:
    """The message whose nested messages are still dictionaries by field name."""
    types = {field.name: _bare(field.type) for field in msgspec.structs.fields(kind)} if given else {}
    return kind(**{name: _build(types[name], value) if type(value) is dict else value for name, value in given.items()})


# Writing.


@cache
def _struct_writer(kind: type[msgspec.Struct]) -> Callable[[msgspec.Struct], dict[str, Any]]:
    plan = [
        (
            field.encode_name,
            attrgetter(field.name),
            _writer(field.type),
            _keeps_zero(field.type),
            _zero_name(field.type),
        )
        for field in msgspec.structs.fields(kind)
    ]

    def write_struct(document: msgspec.Struct) -> dict[str, Any]:
        written = {}
        for name, get, write, keeps_zero, zero_name in plan:
            value = get(document)
            if value is None or ((not value or value is zero_name) and not keeps_zero):
                continue
            written[name] = value if write is None else write(value)
        return written

    return write_struct


def _keeps_zero(annotation: Any) -> bool:
    """Whether the field is written whenever it is not None: declared with `| None`, or a message."""
    if get_origin(annotation) in (Union, UnionType):
        return NoneType in get_args(annotation)
    bare = _bare(annotation)
    return isinstance(bare, type) and issubclass(bare, (msgspec.Struct, datetime))


def _zero_name(annotation: Any) -> StrEnum | None:
    """The member of a StrEnum that is zero in the proto; every other type's zero is falsy."""
    bare = _bare(annotation)
    return next(iter(bare), None) if isinstance(bare, type) and issubclass(bare, StrEnum) else None


def _writer(annotation: Any) -> Callable[[Any], Any] | None:
    """How to turn a value into what the encoder writes rightly; None where it already does."""
    bare = _bare(annotation)
    if bare is int and (annotation == Int64 or Int64 in get_args(annotation)):
        return str
    if bare is float:
        return _write_double
    if bare is datetime:
        return _write_timestamp
    if isinstance(bare, type) and issubclass(bare, IntEnum):
        return attrgetter("name")
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return _struct_writer(bare)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin in (list, tuple) and (write := _writer(arguments[0])):
        return lambda items: [write(item) for item in items]
    if origin is dict and (write_value := _writer(arguments[1])):
        return lambda items: {key: write_value(item) for key, item in items.items()}
    return None


def _write_double(value: float) -> msgspec.Raw | str:
    """The shortest digits that read back the same, laid out as by Go: `7`, and an exponent only for the far ends."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = repr(value)
    if "e" in text:
        text = format(Decimal(text), "f") if 1e-6 <= abs(value) < 1e21 else text.replace("e-0", "e-")
    return msgspec.Raw(text.removesuffix(".0").encode())


def _write_timestamp(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(microsecond=0)
