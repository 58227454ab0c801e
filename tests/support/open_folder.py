"""A folder for what a stack keeps, where root's Postgres is another user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Other users can pass through it, unlike through pytest's own. Its path is short: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        os.chmod(name, 0o711)
        yield Path(name)
