"""Which bytes a Range header asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.run.ranges import Part, Unsatisfiable, part

SIZE = 100


@pytest.mark.parametrize(
    ("header", "offset", "length"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=10-", 10, 90),
        ("bytes=99-", 99, 1),
        ("bytes=90-1000000000000000000000", 90, 10),
        ("bytes=-1", 99, 1),
        ("bytes=-100", 0, 100),
        ("bytes=-1000", 0, 100),
        ("BYTES= 5-6 ", 5, 2),
    ],
)
def test_one_range_is_a_part(header: str, offset: int, length: int) -> None:
    assert part(header, SIZE) == Part(offset=offset, length=length)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "bytes=1-2,4-5", "lines=1-2", "bytes=１-２"],
)
def test_what_may_be_ignored_asks_for_the_whole(header: str | None) -> None:
    assert part(header, SIZE) is None


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_what_lies_beyond_the_end_is_refused(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        part(header, size)


@given(st.from_regex(r"bytes=\d{0,4}-\d{0,4}", fullmatch=True), st.integers(0, 2000))
def test_a_part_lies_within_the_object(header: str, size: int) -> None:
    try:
        found = part(header, size)
    except Unsatisfiable:
        return
    assert found is None or (found.length > 0 and 0 <= found.offset <= found.offset + found.length <= size)
