"""What every test may ask for by name, and the hooks that note what tests see."""

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
