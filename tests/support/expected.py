"""The corpus of compiled pipelines and what each must end as, node by node (`tests/pipelines/expected.json`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PIPELINES = Path(__file__).parents[1] / "pipelines"

ALLOWED_TO_DIFFER = {
    "sdk-1.8.22/testdata-loop_over_lightweight_output.yaml": (
        "Succeeds here: the parent directories of declared outputs are made before a step starts."
    ),
}
"""Manifests whose recorded outcome is that of a strict Argo, where this engine is meant to do better."""

_PATTERNS = {
    "<json>": r"\{.*\}|\[.*\]",
    "<node-id>": r"[a-z0-9-]+",
    "<run-id>": r"[0-9a-f-]{36}",
    "<namespace>": r"[a-z0-9-]+",
    "<suffix>": r"[a-z0-9]{5}",
    "<text>": r".*",
}


@cache
def expected() -> dict[str, dict[str, Any]]:
    """Manifest (relative path) → its expectation."""
    return json.loads((PIPELINES / "expected.json").read_text())  # type: ignore[no-any-return]


def runnable() -> list[str]:
    """Manifests that run offline and are not refused."""
    return [name for name, each in expected().items() if each.get("runnable") and not each.get("refused")]


def refused() -> list[str]:
    return [name for name, each in expected().items() if each.get("refused")]


def differences(name: str, workflow_name: str, status: Mapping[str, Any], expectation: Mapping[str, Any]) -> list[str]:
    """How a run's `status` differs from what is expected; empty where it does not.

    Phases, names, types, tree, output parameters and stored artifacts are compared strictly; texts in angle brackets
    are patterns, and digits after the second decimal of the ML examples are free.
    """
    return list(_differences(name, workflow_name, status, expectation))


def _differences(
    name: str, workflow_name: str, status: Mapping[str, Any], expectation: Mapping[str, Any]
) -> Iterator[str]:
    if status.get("phase") != expectation["phase"]:
        yield f"phase {status.get('phase')} ({status.get('message')}), expected {expectation['phase']}"
    if "nodes" not in expectation or not expectation.get("deterministic", True):
        return
    names = {node["id"]: node["name"].replace(workflow_name, "<wf>", 1) for node in status["nodes"].values()}
    found = {names[node["id"]]: node for node in status["nodes"].values()}
    wanted = {node["name"]: node for node in expectation["nodes"]}
    for missing in sorted(wanted.keys() - found.keys()):
        yield f"no node {missing}"
    for extra in sorted(found.keys() - wanted.keys()):
        yield f"unexpected node {extra}"
    for node_name in sorted(found.keys() & wanted.keys()):
        for difference in _node_differences(found[node_name], wanted[node_name], names, workflow_name):
            yield f"{node_name}: {difference}"


def _node_differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], names: Mapping[str, str], workflow_name: str
) -> Iterator[str]:
    for field in ("type", "phase"):
        if found[field] != wanted[field]:
            yield f"{field} {found[field]} ({found.get('message')}), expected {wanted[field]}"
    children = sorted(names.get(child, child) for child in found.get("children", []))
    if children != sorted(wanted.get("children", [])):
        yield f"children {children}, expected {sorted(wanted.get('children', []))}"
    boundary = names.get(found.get("boundaryID", ""))
    if boundary != wanted.get("boundary"):
        yield f"boundary {boundary}, expected {wanted.get('boundary')}"
    outputs = found.get("outputs", {})
    values = {each["name"]: each.get("value", "") for each in outputs.get("parameters", [])}
    for name, value in wanted.get("outputParameters", {}).items():
        if not _fits(values.get(name), value, workflow_name):
            yield f"output {name} is {values.get(name)!r}, expected {value!r}"
    artifacts = sorted(
        each["name"] for each in outputs.get("artifacts", []) if each["name"] != "main-logs" and "s3" in each
    )
    if artifacts != sorted(wanted.get("outputArtifacts", [])):
        yield f"artifacts {artifacts}, expected {sorted(wanted.get('outputArtifacts', []))}"
    message = wanted.get("message")
    if message and not _fits(found.get("message", ""), message, workflow_name):
        yield f"message {found.get('message')!r}, expected {message!r}"


def _fits(found: str | None, wanted: str, workflow_name: str) -> bool:
    if found is None:
        return False
    if found == wanted or _rounded(found) == _rounded(wanted):
        return True
    pattern = re.escape(wanted).replace("<wf>", re.escape(workflow_name))
    for name, meaning in _PATTERNS.items():
        pattern = pattern.replace(re.escape(name), meaning)
    return re.fullmatch(pattern, found, re.DOTALL) is not None


def _rounded(text: str) -> object:
    try:
        return round(float(text), 2)
    except ValueError:
        return text
