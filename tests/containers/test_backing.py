"""The fixtures of all other tests, on containers instead of embedded servers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.containers.engine import Engine
from tests.containers.images import PROJECT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

SOME_OF_EACH_SERVER = (
    "tests/integration/nervous_system/test_database.py",
    "tests/integration/nervous_system/test_facts.py",
    "tests/integration/nervous_system/test_blobs.py",
)


def test_tests_on_real_servers_pass_on_containers_and_none_is_skipped(engine: Engine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME_OF_EACH_SERVER],
        cwd=PROJECT,
        env={**engine.environment, "HEADRACE_TEST_BACKING": "containers"},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.strip().splitlines()[-1]
    print(f"\n{summary}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in summary
    assert "skipped" not in summary, done.stdout[-3000:]
