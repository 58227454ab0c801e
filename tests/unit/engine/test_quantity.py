"""Amounts as Kubernetes writes them."""

from __future__ import annotations

import pytest

from services.run.engine.embedded.quantity import QuantityError, cpu_millis, memory_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("+5", 5),
        ("123Mi", 123 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("129M", 129_000_000),
        ("1k", 1000),
        ("64Ki", 65536),
        ("2Ti", 2 * 2**40),
        ("1T", 10**12),
        ("1Pi", 2**50),
        ("1P", 10**15),
        ("1E", 10**18),
        ("1Ei", 2**60),
        ("129e6", 129_000_000),
        ("129E6", 129_000_000),
        ("12e-1", 2),
        ("128974848000m", 128974848),
        ("1m", 1),
        ("1n", 1),
        ("1500u", 1),
        (".5Ki", 512),
        ("1.", 1),
        ("0.1Ki", 103),
        ("9.99999999999999999999k", 10_000),
        ("9E", 9 * 10**18),
        ("100E", 2**63 - 1),
        ("1e99", 2**63 - 1),
    ],
)
def test_memory_is_whole_bytes_rounded_up(text: str, expected: int) -> None:
    assert memory_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1000),
        ("500m", 500),
        ("0.1", 100),
        ("2.5", 2500),
        ("1e-1", 100),
        ("0.0001", 1),
        ("1500000u", 1500),
        ("0", 0),
    ],
)
def test_processors_are_whole_thousandths_rounded_up(text: str, expected: int) -> None:
    assert cpu_millis(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1K",
        "1ki",
        "1 Gi",
        "1GiB",
        "1gb",
        "Gi",
        ".",
        "1..2",
        "--1",
        "1e",
        "1e1000",
        "1" * 101,
        "0x10",
        "١",
        "1Mi ",
        "1e3k",
    ],
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="is not a quantity"):
        memory_bytes(text)


def test_less_than_nothing_is_refused() -> None:
    with pytest.raises(QuantityError, match="-1Gi must not be less than 0"):
        memory_bytes("-1Gi")
