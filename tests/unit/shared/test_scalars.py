"""Scalars, row by row as Go's yaml.v2, encoding/json and strconv read and write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared import scalars

WORDS: list[tuple[str, Any]] = [
    # Nothing.
    ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None),
    # Booleans. One letter is none: see the module.
    ("true", True), ("True", True), ("TRUE", True), ("yes", True), ("Yes", True), ("on", True), ("ON", True),
    ("false", False), ("no", False), ("NO", False), ("off", False), ("Off", False),
    ("y", "y"), ("Y", "Y"), ("n", "n"), ("N", "N"), ("tRUE", "tRUE"), ("yEs", "yEs"),
    ("nulL", "nulL"), ("none", "none"),
    # Integers.
    ("0", 0), ("-0", 0), ("12", 12), ("+12", 12), ("-12", -12), ("1_000", 1000), ("1__0_", 10), ("_1", "_1"),
    ("0x1f", 31), ("0X1F", 31), ("-0x1f", -31), ("0x_1f", 31), ("0x", "0x"), ("0xg", "0xg"),
    ("0b101", 5), ("-0b101", -5), ("0b", "0b"), ("0b2", "0b2"),
    ("017", 15), ("-017", -15), ("0o17", 15), ("0O17", 15), ("00", 0), ("0o8", "0o8"),
    ("08", 8), ("0_8", 8),  # No octal, and as a double it says the same.
    ("9223372036854775808", 2**63), ("12345678901234567890123", 12345678901234567890123),
    ("0xffffffffffffffff", 2**64 - 1), ("0x1ffffffffffffffff", "0x1ffffffffffffffff"),
    # Doubles.
    ("1.0", 1.0), ("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("+.5", 0.5), ("1.5", 1.5), ("1_0.5", 10.5),
    (".5_0", ".5_0"),
    ("1e3", 1000.0), ("1E3", 1000.0), ("1e+3", 1000.0), ("1.5e-3", 0.0015), (".5e1", 5.0), ("0e3", 0.0),
    ("012e1", 120.0),
    ("1e", "1e"), ("e3", "e3"), (".", "."), ("..5", "..5"), ("1.2.3", "1.2.3"), ("1e400", "1e400"), ("0x1p4", "0x1p4"),
    (".inf", math.inf), ("+.INF", math.inf), ("-.Inf", -math.inf), ("inf", "inf"), ("nan", "nan"),
    ("1" * 400, "1" * 400),
    # Everything else is what it says.
    ("2020-01-01", "2020-01-01"), ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"), ("2020-13-45", "2020-13-45"),
    ("1:30", "1:30"), ("190:20:30.15", "190:20:30.15"), ("-", "-"), ("+", "+"), ("--", "--"), ("-a", "-a"),
    ("1 2", "1 2"), ("1,000", "1,000"), ("=", "="), ("<<", "<<"), ("\u0661", "\u0661"), ("1\u0661", "1\u0661"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "value"), WORDS, ids=[repr(word)[:30] for word, _ in WORDS])
def test_a_word_without_quotes_says(word: str, value: Any) -> None:
    found = scalars.plain(word)
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number() -> None:
    assert all(math.isnan(scalars.plain(word)) for word in (".nan", ".NaN", ".NAN"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"), ("", ""), (True, "true"), (False, "false"), (0, "0"), (-7, "-7"), (10**22, "1" + "0" * 22),
        (1.0, "1"), (0.1, "0.1"), (1e3, "1000"), (2e-05, "0.00002"), (1.5e20, "150000000000000000000"),
        (1e23, "1" + "0" * 23), (1.2345678901234568e22, "12345678901234568000000"), (123456.789, "123456.789"),
        ([1, "a", None], '[1,"a",null]'), ({"k": [True]}, '{"k":[true]}'),
    ],
)  # fmt: skip
def test_a_value_is_told_in_the_shortest_decimal_without_exponent(value: Any, text: str) -> None:
    assert scalars.as_text(value) == text


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.0, 1), (-0.0, 0), (1e3, 1000), (1e20, 10**20), (0.5, 0.5), (1e21, 1e21), (-1e22, -1e22), (1e-7, 1e-7)],
)
def test_a_whole_number_has_no_point_in_json(value: float, written: float) -> None:
    found = scalars.json_number(value)
    assert (found, type(found)) == (written, type(written))
