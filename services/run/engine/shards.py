"""How controllers share the runs of one engine: each run belongs to one shard, each shard to one controller at a time.

The number and the rule are the same for every version there will ever be: replicas of two versions work side by side.
"""

from __future__ import annotations

import hashlib
from typing import Final

SHARDS: Final = 64
ALL: Final = frozenset(range(SHARDS))


def shard_of(run_id: str) -> int:
    """In SQL: `get_byte(decode(md5(id), 'hex'), 0) % 64`."""
    return hashlib.md5(run_id.encode(), usedforsecurity=False).digest()[0] % SHARDS
