"""What every test may ask for by name, and the hooks that note what tests see."""

from __future__ import annotations

import os

from infra.embedded.ports import SLICE
from tests.coverage.plugin import (
    evidence,
    pytest_addoption,
    pytest_runtest_logreport,
    pytest_runtest_protocol,
    pytest_sessionfinish,
    pytest_testnodedown,
)
from tests.support.open_folder import open_folder
from tests.support.servers import (
    database_urls,
    nats_server,
    nats_urls,
    object_store,
    object_store_access,
    postgres,
)
from tests.support.stack import stack

__all__ = [
    "database_urls",
    "evidence",
    "nats_server",
    "nats_urls",
    "object_store",
    "object_store_access",
    "open_folder",
    "postgres",
    "pytest_addoption",
    "pytest_runtest_logreport",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "pytest_testnodedown",
    "stack",
]


if "PYTEST_XDIST_WORKER" in os.environ:
    # What this process starts, and what that starts, looks for ports where the other processes do not.
    _worker = os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")
    os.environ[SLICE] = f"{_worker}/{os.environ['PYTEST_XDIST_WORKER_COUNT']}"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Processes that share the tests must agree on their names, and what was packed just now has a time in it."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None
