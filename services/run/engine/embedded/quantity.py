"""Amounts as Kubernetes writes them: `1.5Gi` of memory, `500m` of a processor. Exact, rounded up as it does."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_QUANTITY = re.compile(
    r"(?P<sign>[+-]?)(?P<number>[0-9]{1,100}(\.[0-9]{,100})?|\.[0-9]{1,100})"
    r"((?P<binary>[KMGTPE])i|(?P<decimal>[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,3}))?"
)
_BINARY = {letter: Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {
    letter: Fraction(10) ** power for letter, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
}
_LARGEST = 2**63 - 1
"""More is this much."""


class QuantityError(ValueError):
    """The text is no amount; it says so in words for the manifest's author."""


def memory_bytes(text: str) -> int:
    """Raises QuantityError."""
    return min(math.ceil(_amount(text)), _LARGEST)


def cpu_millis(text: str) -> int:
    """Thousandths of a processor. Raises QuantityError."""
    return min(math.ceil(_amount(text) * 1000), _LARGEST)


def _amount(text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise QuantityError(f"'{text}' is not a quantity")
    amount = Fraction(match["number"].rstrip("."))
    if match["binary"]:
        amount *= _BINARY[match["binary"]]
    elif match["decimal"]:
        amount *= _DECIMAL[match["decimal"]]
    elif match["exponent"]:
        amount *= Fraction(10) ** int(match["exponent"])
    if match["sign"] == "-" and amount:
        raise QuantityError(f"{text} must not be less than 0")
    return amount
