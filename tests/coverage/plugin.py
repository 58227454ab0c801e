"""The fixture by which a test hands in its evidence."""

from __future__ import annotations

import pytest

from tests.coverage.evidence import Evidence

_key = pytest.StashKey[Evidence]()


def of(config: pytest.Config) -> Evidence:
    return config.stash.setdefault(_key, Evidence())


@pytest.fixture
def evidence(pytestconfig: pytest.Config) -> Evidence:
    return of(pytestconfig)
