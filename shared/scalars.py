"""Scalars as the original server reads and writes them: plain words of YAML, numbers of JSON, texts of parameters.

A word without quotes may be a boolean, a number or nothing at all, by the rules of Go's yaml.v2 (YAML 1.1 with some of
1.2): `yes` is true, `1e3` is 1000, `017` is 15, while `1:30` and dates are texts. The letters `y` and `n` stay texts,
too. To yaml.v2 they are booleans, which upstream calls a mistake and has mended since: the SDKs write both without
quotes and mean letters.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any, Final

import msgspec

_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_FIRST_OF_WORDS: Final = frozenset(word[:1] for word in _WORDS)
_FIRST_OF_NUMBERS: Final = frozenset("+-.0123456789")

_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|([0-9]+))")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INTEGER_BITS: Final = 64
"""What is longer is no number to Go, unless it is decimal."""
_LONGEST_INTEGER: Final = 300
"""Digits. Of what is longer only a double is left, if there is one."""
_EXPONENT_FROM: Final = 1e21
"""Go writes a double with an exponent from here on."""


def plain(word: str) -> Any:
    """What a word without quotes says: None, a boolean, a number (perhaps no finite one), or itself."""
    first = word[:1]
    if first in _FIRST_OF_WORDS and word in _WORDS:
        return _WORDS[word]
    return _number(word) if first in _FIRST_OF_NUMBERS else word


def _number(word: str) -> int | float | str:
    # Underscores may stand anywhere but in what begins with a point.
    digits = word if word.startswith(".") else word.replace("_", "")
    if len(digits) <= _LONGEST_INTEGER and (found := _INTEGER.fullmatch(digits)):
        return _integer(word, *found.groups())
    if _FLOAT.fullmatch(digits) and math.isfinite(value := float(digits)):
        return value
    return word


def _integer(
    word: str, sign: str, hexadecimal: str | None, binary: str | None, octal: str | None, decimal: str | None
) -> int | str:
    if decimal is not None:
        value = int(decimal)
    else:
        value = next(int(each, base) for each, base in ((hexadecimal, 16), (binary, 2), (octal, 8)) if each is not None)
        if value.bit_length() > _INTEGER_BITS:
            return word
    return -value if sign == "-" else value


def json_number(value: float) -> float | int:
    """The number as Go writes it to JSON, where a whole one has no point."""
    return int(value) if value.is_integer() and abs(value) < _EXPONENT_FROM else value


def as_text(value: Any) -> str:
    """A value where a text is wanted: numbers in the shortest decimal without an exponent, lists and mappings as JSON.

    Workflow engine specification, section 4.
    """
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if math.isfinite(value):
            decimal = format(Decimal(repr(value)), "f")
            return decimal.rstrip("0").rstrip(".") if "." in decimal else decimal
        case dict() | list():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)
