from __future__ import annotations

import pytest

from services.pipeline_registry.spool import spooled


@pytest.mark.parametrize("largest_bytes", [10, 3 * 1024 * 1024])
async def test_what_is_beyond_the_largest_package_is_counted_once_and_not_kept(largest_bytes: int) -> None:
    with spooled(largest_bytes) as spool:
        chunk = b"x" * (largest_bytes // 2)
        for _ in range(2):
            await spool.write(chunk)
        assert (spool.size_bytes, spool.is_over) == (largest_bytes, False)
        for _ in range(3):
            await spool.write(chunk)
            assert spool.is_over
            assert spool.size_bytes > largest_bytes
        spool.content.seek(0)
        assert spool.content.read() == chunk * 2
