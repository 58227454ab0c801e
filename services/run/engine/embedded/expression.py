"""The two little languages of a task: `when` (govaluate's grammar, specification §5) and `depends` (§6).

Expressions come here after replacement; this file knows neither tags nor nodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum

import msgspec

Value = str | float | bool | tuple["Value", ...]


class ExpressionError(ValueError):
    """The expression cannot be read, or its parts do not fit together."""


def evaluate_when(expression: str) -> bool:
    """Whether a task runs. Raises ExpressionError when there is no yes or no."""
    try:
        result = _When(_tokens(expression)).value()
    except ExpressionError as error:
        raise ExpressionError(f"Invalid 'when' expression '{expression}': {error}") from error
    except (OverflowError, RecursionError) as error:
        raise ExpressionError(f"Invalid 'when' expression '{expression}': {error}") from error
    if not isinstance(result, bool):
        raise ExpressionError(f"Invalid 'when' expression '{expression}': expected a boolean, got {_spoken(result)}")
    return result


# -- when: tokens ------------------------------------------------------------------------------------------------------


class _Kind(Enum):
    VALUE = "value"
    ACCESSOR = "accessor"
    OPERATOR = "operator"
    OPEN = "("
    CLOSE = ")"
    COMMA = ","
    END = "end"


class _Token(msgspec.Struct, frozen=True):
    kind: _Kind
    value: Value

    def is_operator(self, *names: str) -> bool:
        return self.kind is _Kind.OPERATOR and self.value in names


_END = _Token(_Kind.END, "end of expression")

_OPERATORS = frozenset({"!", "-", "~", "+", "*", "/", "%", "**", "&", "|", "^", "<<", ">>", "?", ":", "??", "in"}) | {
    *("==", "!=", "<", ">", "<=", ">=", "=~", "!~", "&&", "||")
}
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[0-9.]+")
_WORD = re.compile(r"[^\W\d_][\w.]*")
_SYMBOL = re.compile(r"[^\w\s()\[\]'\",]+")
_STRING = re.compile(r"""["']((?:\\.|[^"'\\])*)["']""", re.DOTALL)
_BRACKETED = re.compile(r"\[((?:\\.|[^\]\\])*)\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def _tokens(text: str) -> list[_Token]:
    tokens = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        token, position = _next_token(text, position)
        tokens.append(token)
    return [*tokens, _END]


def _next_token(text: str, position: int) -> tuple[_Token, int]:
    first = text[position]
    if first in "(),":
        return _Token(_Kind(first), first), position + 1
    if match := _HEX.match(text, position):
        return _Token(_Kind.VALUE, float(int(match[0], 16))), match.end()
    if match := _NUMBER.match(text, position):
        return _Token(_Kind.VALUE, _number(match[0])), match.end()
    if match := _WORD.match(text, position):
        return _word(match[0]), match.end()
    if first in "\"'":
        # A string ends at either quote character: an apostrophe inside a value ends it too.
        if not (match := _STRING.match(text, position)):
            raise ExpressionError("Unclosed string literal")
        return _Token(_Kind.VALUE, _string(_ESCAPE.sub(r"\1", match[1]))), match.end()
    if first == "[":
        if not (match := _BRACKETED.match(text, position)):
            raise ExpressionError("Unclosed parameter bracket")
        return _Token(_Kind.VALUE, _ESCAPE.sub(r"\1", match[1])), match.end()
    # Operators are read greedily, as upstream does: `1 ==-1` holds the unknown operator `==-`.
    match = _SYMBOL.match(text, position)
    symbol = match[0] if match else first
    if symbol not in _OPERATORS:
        raise ExpressionError(f"Invalid token: '{symbol}'")
    return _Token(_Kind.OPERATOR, symbol), position + len(symbol)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ExpressionError(f"Unable to parse numeric value '{text}'") from None


def _word(text: str) -> _Token:
    if text in {"true", "false"}:
        return _Token(_Kind.VALUE, text == "true")
    if text == "in":
        return _Token(_Kind.OPERATOR, text)
    if "." not in text:
        return _Token(_Kind.VALUE, text)
    _head, *parts = text.split(".")
    if not all(parts):
        raise ExpressionError(f"Hanging accessor on token '{text}'")
    if any(not part[0].isupper() for part in parts):
        raise ExpressionError(f"Unable to access unexported field in token '{text}'")
    return _Token(_Kind.ACCESSOR, text)


_DATE_FORMATS = (
    "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S %Z %Y",
    "%a %b %d %H:%M:%S %z %Y",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S%z",
    "%Y-%m-%dT%H%z",
    "%Y-%m-%dT%H:%M%z",
)
_DATE_LIKE = re.compile(r"\d{4}-\d\d-\d\d|(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} ")


def _string(text: str) -> Value:
    """The text, or a timestamp if it reads as a date: such strings are ordered by time."""
    if not _DATE_LIKE.match(text):
        return text
    for each in _DATE_FORMATS:
        try:
            moment = datetime.strptime(text, each)  # noqa: DTZ007 -- a date without zone counts as UTC, below
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return text


# -- when: evaluation --------------------------------------------------------------------------------------------------

_Thunk = Callable[[], Value]
"""A part of the expression that is not evaluated yet: `&&`, `||` and `?:` leave parts out."""

_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",),
    ("&&",),
    ("==", "!=", "<", ">", "<=", ">=", "=~", "!~", "in"),
    ("&", "|", "^"),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
    ("**",),
)
"""Binary operators, loosest first."""


class _When:
    """A parser by recursive descent that evaluates what it has read."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def value(self) -> Value:
        thunk = self._ternary()
        if self._next.kind is not _Kind.END:
            raise ExpressionError(f"Cannot transition token types at '{_spoken(self._next.value)}'")
        return thunk()

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _ternary(self) -> _Thunk:
        condition = self._binary(0)
        if self._next.is_operator("??"):
            self._take()
            self._ternary()
            return condition  # Nothing is null here, so the left side always stands.
        if not self._next.is_operator("?"):
            return condition
        self._take()
        positive = self._ternary()
        if not self._next.is_operator(":"):
            raise ExpressionError("'?' without ':'")
        self._take()
        negative = self._ternary()
        return lambda: positive() if _boolean(condition(), "?") else negative()

    def _binary(self, level: int) -> _Thunk:
        if level == len(_LEVELS):
            return self._prefix()
        left = self._binary(level + 1)
        while self._next.is_operator(*_LEVELS[level]):
            operator = str(self._take().value)
            left = _applied(operator, left, self._binary(level + 1))
        return left

    def _prefix(self) -> _Thunk:
        if not self._next.is_operator("!", "-", "~"):
            return self._operand()
        operator = str(self._take().value)
        operand = self._prefix()
        match operator:
            case "!":
                return lambda: not _boolean(operand(), "!")
            case "-":
                return lambda: -_numeric(operand(), "-")
            case _:
                return lambda: float(~int(_numeric(operand(), "~")))

    def _operand(self) -> _Thunk:
        token = self._take()
        match token.kind:
            case _Kind.VALUE:
                return lambda: token.value
            case _Kind.ACCESSOR:
                return lambda: _no_parameter(str(token.value))
            case _Kind.OPEN:
                return self._parenthesised()
            case _Kind.END:
                raise ExpressionError("Unexpected end of expression")
            case _:
                raise ExpressionError(f"Cannot transition token types at '{_spoken(token.value)}'")

    def _parenthesised(self) -> _Thunk:
        parts = [self._ternary()]
        while self._next.kind is _Kind.COMMA:
            self._take()
            parts.append(self._ternary())
        if self._take().kind is not _Kind.CLOSE:
            raise ExpressionError("Unbalanced parenthesis")
        if len(parts) == 1:
            return parts[0]
        return lambda: tuple(part() for part in parts)


def _no_parameter(name: str) -> Value:
    raise ExpressionError(f"No parameter '{name.partition('.')[0]}' found.")


def _applied(operator: str, left: _Thunk, right: _Thunk) -> _Thunk:
    if operator == "&&":
        return lambda: _boolean(left(), operator) and _boolean(right(), operator)
    if operator == "||":
        return lambda: _boolean(left(), operator) or _boolean(right(), operator)
    return lambda: _computed(operator, left(), right())


def _computed(operator: str, left: Value, right: Value) -> Value:
    match operator:
        case "==":
            return _equal(left, right)
        case "!=":
            return not _equal(left, right)
        case "<" | ">" | "<=" | ">=":
            return _ordered(operator, left, right)
        case "=~" | "!~":
            return matches(left, right) is (operator == "=~")
        case "in":
            if not isinstance(right, tuple):
                raise ExpressionError(f"Value '{_spoken(right)}' cannot be used with the comparator 'in'")
            return any(_equal(left, each) for each in right)
        case "+" if isinstance(left, str) or isinstance(right, str):
            return _spoken(left) + _spoken(right)
        case _:
            return _arithmetic(operator, _numeric(left, operator), _numeric(right, operator))


def _equal(left: Value, right: Value) -> bool:
    """Equality within one type: a number never equals a string, nor a boolean a number."""
    return type(left) is type(right) and left == right


def _ordered(operator: str, left: Value, right: Value) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return _compare(operator, left, right)
    if isinstance(left, float) and isinstance(right, float):
        return _compare(operator, left, right)
    raise ExpressionError(f"Value '{_spoken(left)}' cannot be used with the comparator '{operator}'")


def _compare(operator: str, left: str | float, right: str | float) -> bool:
    order = (left > right) - (left < right)  # type: ignore[operator]
    return {"<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0}[operator]


# Upstream's matcher takes linear time; this one backtracks, and runs where all runs are driven. So patterns that could
# take for ever are refused: repeated groups, back references, look-around, many repetitions, long texts.
_RISKY = re.compile(r"\)[*+{]|\\\d|\(\?")
_QUANTIFIER = re.compile(r"[*+{]")


def matches(left: Value, right: Value) -> bool:
    """Whether the pattern `right` is found in `left`. Raises ExpressionError."""
    if not isinstance(left, str) or not isinstance(right, str):
        raise ExpressionError("a regular expression compares two strings")
    if len(left) > 300 or len(_QUANTIFIER.findall(right)) > 3 or _RISKY.search(right):
        raise ExpressionError(f"regexp pattern '{right}' is too costly here")
    try:
        return re.search(right, left) is not None
    except re.error as error:
        raise ExpressionError(f"Unable to compile regexp pattern '{right}': {error}") from error


def _arithmetic(operator: str, left: float, right: float) -> float:
    try:
        match operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return left / right
            case "%":
                return math.fmod(left, right)
            case "**":
                return math.pow(left, right)
            case "&":
                return float(int(left) & int(right))
            case "|":
                return float(int(left) | int(right))
            case "^":
                return float(int(left) ^ int(right))
            case "<<":
                return _shifted(left, right)
            case _:
                return float(int(left) >> int(right))
    except ZeroDivisionError:
        return math.nan if left == 0 else math.copysign(math.inf, left)
    except ValueError as error:
        raise ExpressionError(f"cannot compute {left} {operator} {right}: {error}") from error


def _shifted(left: float, right: float) -> float:
    if right > 63:
        return 0.0  # As 64-bit integers do; without the bound an expression could ask for gigabytes.
    return float((int(left) << int(right)) & 0xFFFFFFFFFFFFFFFF)


def _boolean(value: Value, operator: str) -> bool:
    if not isinstance(value, bool):
        raise ExpressionError(f"Value '{_spoken(value)}' cannot be used with the logical operator '{operator}'")
    return value


def _numeric(value: Value, operator: str) -> float:
    if not isinstance(value, float):
        raise ExpressionError(f"Value '{_spoken(value)}' cannot be used with the operator '{operator}'")
    return value


def _spoken(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return value if isinstance(value, str) else f"({', '.join(map(_spoken, value))})"


# -- depends -----------------------------------------------------------------------------------------------------------


class Outcome(Enum):
    """What `depends` can ask of a task; the last two need a task that expands."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERRORED = "Errored"
    SKIPPED = "Skipped"
    DAEMONED = "Daemoned"
    ANY_SUCCEEDED = "AnySucceeded"
    ALL_FAILED = "AllFailed"


MET = frozenset({Outcome.SUCCEEDED, Outcome.SKIPPED, Outcome.DAEMONED})
"""What a task's bare name stands for."""


class Depends(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed `depends`: `tokens` in reverse Polish order, so that evaluation needs no recursion."""

    tokens: tuple[str | tuple[str, frozenset[Outcome]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks it asks about, each once, in the order of their first mention."""
        return tuple(dict.fromkeys(token[0] for token in self.tokens if isinstance(token, tuple)))

    @property
    def asks_for_items(self) -> tuple[str, ...]:
        items = {Outcome.ANY_SUCCEEDED, Outcome.ALL_FAILED}
        return tuple(token[0] for token in self.tokens if isinstance(token, tuple) and token[1] & items)

    def holds(self, outcomes: Mapping[str, frozenset[Outcome]]) -> bool:
        """Whether the expression is true, given the outcomes of every task it names."""
        stack: list[bool] = []
        for token in self.tokens:
            if isinstance(token, tuple):
                name, wanted = token
                stack.append(bool(outcomes[name] & wanted))
            elif token == "!":  # noqa: S105 -- an operator
                stack.append(not stack.pop())
            else:
                right, left = stack.pop(), stack.pop()
                stack.append((left and right) if token == "&&" else (left or right))  # noqa: S105 -- an operator
        return stack.pop()


_DEPENDS_TOKEN = re.compile(r"\s*(&&|\|\||!|\(|\)|[a-zA-Z0-9][-a-zA-Z0-9_]*(?:\.[A-Za-z]+)?)")
_BINDS = {"||": 1, "&&": 2, "!": 3}


def parse_depends(text: str) -> Depends:
    """Raises ExpressionError. The shunting-yard algorithm."""
    output: list[str | tuple[str, frozenset[Outcome]]] = []
    operators: list[str] = []
    wants_operand = True
    for token in _depends_tokens(text):
        if (token in {"!", "("} or token not in {"&&", "||", ")"}) is not wants_operand:
            raise ExpressionError(f"invalid depends expression '{text}': unexpected '{token}'")
        match token:
            case "!" | "(":
                operators.append(token)
            case ")":
                while operators and operators[-1] != "(":
                    output.append(operators.pop())
                if not operators:
                    raise ExpressionError(f"invalid depends expression '{text}': unbalanced ')'")
                operators.pop()
            case "&&" | "||":
                while operators and operators[-1] != "(" and _BINDS[operators[-1]] >= _BINDS[token]:
                    output.append(operators.pop())
                operators.append(token)
                wants_operand = True
            case _:
                output.append(_asked(token, text))
                wants_operand = False
    if wants_operand or "(" in operators:
        raise ExpressionError(f"invalid depends expression '{text}': it ends too early")
    return Depends(tokens=(*output, *reversed(operators)))


def all_of(wanted: Mapping[str, frozenset[Outcome]]) -> Depends:
    """The expression of plain `dependencies`: each task with one of its outcomes."""
    tokens: list[str | tuple[str, frozenset[Outcome]]] = list(wanted.items())
    return Depends(tokens=(*tokens, *["&&"] * (len(tokens) - 1)))


def _depends_tokens(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _DEPENDS_TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"invalid depends expression '{text}': unexpected '{text[position:].strip()}'")
        tokens.append(match[1])
        position = match.end()
    return tokens


def _asked(token: str, text: str) -> tuple[str, frozenset[Outcome]]:
    name, _, outcome = token.partition(".")
    if not outcome:
        return name, MET
    try:
        return name, frozenset({Outcome(outcome)})
    except ValueError:
        raise ExpressionError(f"invalid depends expression '{text}': unknown outcome '{outcome}'") from None
