"""The expressions of `{{=…}}` tags and of conditions on attempts and hooks: the part of expr-lang that is in use (§4).

Literals, arithmetic, comparison, logic, membership, the ternary, and a handful of functions. A name such as
`inputs.parameters.x` or `tasks['a-b'].status` is looked up when it is needed, and no sooner: what a condition leaves
out need not be known. Every value that is looked up is a text, as the values of tags are.
"""

from __future__ import annotations

import json
import math
import operator as operators
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import msgspec

from services.run.engine.embedded.expression import ExpressionError, matches
from services.run.engine.embedded.loops import compact_json
from services.run.engine.embedded.manifest import scalar_text
from services.run.engine.embedded.paths import PathError, follow, read_json_path

if TYPE_CHECKING:
    from services.run.engine.embedded.template import Lookup

Value: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None
_Thunk: TypeAlias = "Callable[[Lookup], Value]"

_LONGEST = 10_000
_LONGEST_NUMBER = 30


class UnknownName(ExpressionError):
    """A name that the lookup does not know, at least not yet."""


class Expression(msgspec.Struct, frozen=True, kw_only=True):
    names: tuple[str, ...]
    """What it may ask for, as far as the text alone says: `tasks[inputs.parameters.t].status` names one."""
    functions: tuple[str, ...]
    value: _Thunk
    """Raises UnknownName, or ExpressionError where the parts do not fit together."""

    @property
    def unknown_functions(self) -> tuple[str, ...]:
        return tuple(name for name in self.functions if name not in _FUNCTIONS)


@lru_cache(maxsize=1024)
def read(text: str) -> Expression:
    """Raises ExpressionError."""
    if len(text) > _LONGEST:
        raise ExpressionError(f"an expression has at most {_LONGEST} characters")
    try:
        return _Reader(_tokens(text)).expression()
    except RecursionError as error:
        raise ExpressionError("the expression is nested too deeply") from error


def text_of(expression: Expression, lookup: Lookup) -> str | None:
    """The text that replaces a tag; None where it has no value, or none yet. Raises ExpressionError."""
    try:
        value = expression.value(lookup)
    except UnknownName:
        return None
    except (OverflowError, RecursionError) as error:
        raise ExpressionError(str(error)) from error
    return None if value is None else _spoken(value)


def holds(text: str, lookup: Lookup) -> bool:
    """Whether a condition is true. Raises ExpressionError, also where a name is unknown or the value is neither."""
    try:
        value = read(text).value(lookup)
    except (OverflowError, RecursionError) as error:
        raise ExpressionError(str(error)) from error
    if not isinstance(value, bool):
        raise ExpressionError(f"expected a boolean, got {_spoken(value)}")
    return value


# -- tokens ------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>0[xX][0-9a-fA-F]+|(?:\d[\d_]*)?\.\d+(?:[eE][-+]?\d+)?|\d[\d_]*(?:[eE][-+]?\d+)?)
    | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    | (?P<name>[A-Za-z_$][\w$]*)
    | (?P<symbol>\*\*|==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_WORDS = frozenset({"and", "or", "not", "in", "contains", "matches", "startsWith", "endsWith"})


class _Token(msgspec.Struct, frozen=True):
    kind: str
    """number, string, name, symbol (words among them) or end."""
    value: Any


_END = _Token("end", "end of expression")


def _tokens(text: str) -> list[_Token]:
    found, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected '{text[position:].strip()[:20]}'")
        found.append(_token(str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
    return [*found, _END]


def _token(kind: str, text: str) -> _Token:
    match kind:
        case "number":
            return _Token(kind, _number(text.replace("_", "")))
        case "string":
            return _Token(kind, re.sub(r"\\(.)", lambda escape: _unescaped(escape[1]), text[1:-1], flags=re.DOTALL))
        case "name" if text in _WORDS:
            return _Token("symbol", {"and": "&&", "or": "||"}.get(text, text))
        case _:
            return _Token(kind, text)


def _number(text: str) -> int | float:
    if len(text) > _LONGEST_NUMBER:
        raise ExpressionError(f"the number {text[:_LONGEST_NUMBER]}… is too long")
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    return float(text) if re.search(r"[.eE]", text) else int(text)


def _unescaped(character: str) -> str:
    if character not in _ESCAPES:
        raise ExpressionError(f"unknown escape '\\{character}'")
    return _ESCAPES[character]


# -- reading -----------------------------------------------------------------------------------------------------------

_COMPARISONS = ("==", "!=", "<", ">", "<=", ">=", "in", "not", "contains", "matches", "startsWith", "endsWith")
_BINARY = {"||": 10, "&&": 15, **dict.fromkeys(_COMPARISONS, 20), "+": 30, "-": 30, "*": 60, "/": 60, "%": 60, "**": 70}
"""How tightly a binary operator binds; `not` stands for `not in`."""
_PREFIX = {"!": 50, "not": 50, "-": 500, "+": 500}
_CONSTANTS = {"true": True, "false": False, "nil": None}


class _Reader:
    """A parser by precedence. It builds functions that compute the value when they are given a lookup."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._names: dict[str, None] = {}
        self._functions: dict[str, None] = {}

    def expression(self) -> Expression:
        value = self._ternary()
        self._expect("end of expression")
        return Expression(names=tuple(self._names), functions=tuple(self._functions), value=value)

    def _ternary(self) -> _Thunk:
        condition = self._binary(0)
        if not self._take("?"):
            return condition
        positive = self._ternary()
        self._expect(":")
        negative = self._ternary()
        return lambda lookup: positive(lookup) if _boolean(condition(lookup)) else negative(lookup)

    def _binary(self, least: int) -> _Thunk:
        left = self._prefix()
        while self._next.kind == "symbol" and _BINARY.get(self._next.value, -1) >= least:
            symbol = str(self._next.value)
            self._at += 1
            if symbol == "not":
                self._expect("in")
            # The power is the only one that begins at the right.
            right = self._binary(_BINARY[symbol] + (symbol != "**"))
            left = _applied(symbol, left, right)
        return left

    def _prefix(self) -> _Thunk:
        symbol = self._next.value if self._next.kind == "symbol" else None
        if symbol not in _PREFIX:
            return self._postfix()
        self._at += 1
        operand = self._binary(_PREFIX[symbol])
        if symbol in ("!", "not"):
            return lambda lookup: not _boolean(operand(lookup))
        sign = -1 if symbol == "-" else 1
        return lambda lookup: sign * _numeric(operand(lookup), str(symbol))

    def _postfix(self) -> _Thunk:
        is_named = self._next.kind == "name" and self._next.value not in _CONSTANTS
        value = self._named() if is_named else self._primary()
        while (part := self._part()) is not None:
            value = partial(_member, value, part.value)
        return value

    def _primary(self) -> _Thunk:
        token = self._next
        self._at += 1
        if token.kind in ("number", "string"):
            return lambda _lookup: token.value
        if token.kind == "name":
            return lambda _lookup: _CONSTANTS[token.value]
        if token.value == "(" and token.kind == "symbol":
            value = self._ternary()
            self._expect(")")
            return value
        if token.value == "[" and token.kind == "symbol":
            items = self._list("]")
            return lambda lookup: [item(lookup) for item in items]
        raise ExpressionError(f"unexpected '{token.value}'")

    def _named(self) -> _Thunk:
        """A name with all its parts, or a call."""
        parts = [_constant(str(self._next.value))]
        self._at += 1
        while (part := self._part()) is not None:
            parts.append(part)
        name = ".".join(part.text for part in parts)
        if self._take("("):
            self._functions[name] = None
            return partial(_call, name, self._list(")"))
        if all(part.text for part in parts):
            self._names[name] = None
        return partial(_look_up, [part.value for part in parts])

    def _part(self) -> _Part | None:
        """`.b`, `['b']` or `[0]`."""
        if self._take("."):
            token = self._next
            self._at += 1
            if token.kind != "name":
                raise ExpressionError(f"unexpected '{token.value}'")
            return _constant(str(token.value))
        if not self._take("["):
            return None
        token = self._next
        key = self._ternary()
        is_constant = token.kind == "string" and self._tokens[self._at - 1] is token
        self._expect("]")
        return _constant(str(token.value)) if is_constant else _Part(value=key)

    def _list(self, end: str) -> tuple[_Thunk, ...]:
        items: list[_Thunk] = []
        while not self._take(end):
            if items:
                self._expect(",")
            items.append(self._ternary())
        return tuple(items)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, symbol: str) -> bool:
        if self._next.kind != "symbol" or self._next.value != symbol:
            return False
        self._at += 1
        return True

    def _expect(self, symbol: str) -> None:
        if self._next.kind not in ("symbol", "end") or self._next.value != symbol:
            raise ExpressionError(f"unexpected '{self._next.value}', expected '{symbol}'")
        self._at += 1


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a name, or a key."""

    value: _Thunk
    text: str = ""
    """Where it is written out."""


def _constant(text: str) -> _Part:
    return _Part(value=lambda _lookup: text, text=text)


# -- evaluation --------------------------------------------------------------------------------------------------------


def _look_up(parts: Sequence[_Thunk], lookup: Lookup) -> Value:
    name = ".".join(_spoken(part(lookup)) for part in parts)
    found = lookup(name)
    if found is None:
        raise UnknownName(f"{name} is not known")
    return found


def _member(owner: _Thunk, key: _Thunk, lookup: Lookup) -> Value:
    value, name = owner(lookup), key(lookup)
    if isinstance(value, dict) and isinstance(name, str):
        found: Value = value.get(name)
        return found
    if isinstance(value, list) and isinstance(name, int) and -len(value) <= name < len(value):
        item: Value = value[name]
        return item
    raise ExpressionError(f"cannot fetch {_spoken(name)} from {_spoken(value)}")


def _applied(symbol: str, left: _Thunk, right: _Thunk) -> _Thunk:
    if symbol == "&&":
        return lambda lookup: _boolean(left(lookup)) and _boolean(right(lookup))
    if symbol == "||":
        return lambda lookup: _boolean(left(lookup)) or _boolean(right(lookup))
    return lambda lookup: _computed(symbol, left(lookup), right(lookup))


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}


def _computed(symbol: str, left: Value, right: Value) -> Value:
    match symbol:
        case "==":
            return _equal(left, right)
        case "!=":
            return not _equal(left, right)
        case "in":
            return _is_in(left, right)
        case "not":
            return not _is_in(left, right)
        case "<" | "<=" | ">" | ">=":
            if (isinstance(left, str) and isinstance(right, str)) or (_is_number(left) and _is_number(right)):
                return _ORDERS[symbol](left, right)
        case "contains" | "startsWith" | "endsWith" | "matches":
            if isinstance(left, str) and isinstance(right, str):
                return _compared(symbol, left, right)
        case "+" if isinstance(left, str) and isinstance(right, str):
            return left + right
        case _ if _is_number(left) and _is_number(right):
            return _arithmetic(symbol, left, right)
    raise ExpressionError(f"invalid operation: {_spoken(left)} {symbol} {_spoken(right)}")


def _is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(left: Value, right: Value) -> bool:
    """Numbers are equal whatever their kind; a number never equals a text, nor a boolean a number."""
    if isinstance(left, bool) is not isinstance(right, bool):
        return False
    return left == right


def _is_in(left: Value, right: Value) -> bool:
    if isinstance(right, list):
        return any(_equal(left, each) for each in right)
    if isinstance(right, dict):
        return left in right if isinstance(left, str) else False
    raise ExpressionError(f'operator "in" is not defined on {_spoken(right)}')


def _compared(symbol: str, left: str, right: str) -> bool:
    match symbol:
        case "contains":
            return right in left
        case "startsWith":
            return left.startswith(right)
        case "endsWith":
            return left.endswith(right)
        case _:
            return matches(left, right)


def _arithmetic(symbol: str, left: int | float, right: int | float) -> int | float:
    found: int | float
    try:
        match symbol:
            case "+":
                found = left + right
            case "-":
                found = left - right
            case "*":
                found = left * right
            case "/":
                found = float(left) / float(right)
            case "**":
                found = math.pow(left, right)
            case _ if isinstance(left, int) and isinstance(right, int):
                found = abs(left) % abs(right) * (-1 if left < 0 else 1)
            case _:
                raise ExpressionError(f"invalid operation: {left} % {right}")
    except (ArithmeticError, ValueError) as error:
        raise ExpressionError(f"invalid operation: {left} {symbol} {right}") from error
    if isinstance(found, int) and not -(2**63) <= found < 2**63:
        raise ExpressionError(f"{left} {symbol} {right} is out of range")
    return found


def _boolean(value: Value) -> bool:
    if not isinstance(value, bool):
        raise ExpressionError(f"expected a boolean, got {_spoken(value)}")
    return value


def _numeric(value: Value, symbol: str) -> int | float:
    if not _is_number(value):
        raise ExpressionError(f"invalid operation: {symbol}{_spoken(value)}")
    return value


def _spoken(value: Value) -> str:
    """As upstream prints a value: `true`, `0.5`, `[a b]`, `map[k:v]`."""
    if isinstance(value, list):
        return f"[{' '.join(map(_spoken, value))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{_spoken(value[key])}' for key in sorted(value))}]"
    return "<nil>" if value is None else scalar_text(value)


# -- functions ---------------------------------------------------------------------------------------------------------


def _call(name: str, arguments: Sequence[_Thunk], lookup: Lookup) -> Value:
    if name not in _FUNCTIONS:
        raise ExpressionError(f"function {name} is not known")
    count, function = _FUNCTIONS[name]
    if len(arguments) != count:
        raise ExpressionError(f"{name} takes {count} argument{'s' if count > 1 else ''}, not {len(arguments)}")
    return function(*(argument(lookup) for argument in arguments))


def _as_int(value: Value) -> int:
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,19}", value):
        return int(value)
    if _is_number(value) and math.isfinite(value):
        return int(value)
    raise ExpressionError(f"asInt cannot convert '{_spoken(value)}'")


def _as_float(value: Value) -> float:
    if isinstance(value, str) and re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", value):
        return float(value)
    if _is_number(value):
        return float(value)
    raise ExpressionError(f"asFloat cannot convert '{_spoken(value)}'")


def _json_path(document: Value, path: Value) -> Value:
    if not isinstance(document, str) or not isinstance(path, str):
        raise ExpressionError("jsonpath takes a JSON text and a path")
    try:
        found: Value = follow(json.loads(document), read_json_path(path))
    except (PathError, ValueError) as error:
        raise ExpressionError(f"jsonpath {path}: {error}") from error
    return found


def _length(value: Value) -> int:
    if not isinstance(value, str | list | dict):
        raise ExpressionError(f"invalid argument for len: {_spoken(value)}")
    return len(value)


_FUNCTIONS: dict[str, tuple[int, Callable[..., Value]]] = {
    "asFloat": (1, _as_float),
    "asInt": (1, _as_int),
    "jsonpath": (2, _json_path),
    "len": (1, _length),
    "string": (1, _spoken),
    "toJson": (1, compact_json),
}
