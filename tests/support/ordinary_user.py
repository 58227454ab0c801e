"""An ordinary user of this machine, as whom root can start processes: one that owns nothing and may do nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NOBODY = 65534
PYTHON = "/usr/bin/python3"
"""Ours may lie in the home folder of root."""
ROOT = Path(__file__).parents[2]
SITE_PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))
PYTHON_PATH = f"{ROOT}:{SITE_PACKAGES}"

AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
"""For a subprocess; whoever is an ordinary user stays who they are."""


def why_there_is_none() -> str | None:
    """The reason for which a test has to be skipped, where there is one."""
    if os.getuid() != 0:
        return None
    tried = subprocess.run(
        [PYTHON, "-c", "import infra, msgspec, tenacity"],
        env={"PYTHONPATH": PYTHON_PATH},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **AS_NOBODY,
    )
    return None if tried.returncode == 0 else f"the system's python cannot serve uid {NOBODY}: {tried.stderr[-200:]}"
