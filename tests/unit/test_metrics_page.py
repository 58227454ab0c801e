"""The page of metrics, held against the code that registers them."""

from __future__ import annotations

from importlib.metadata import version

from shared.telemetry import VERSION
from tests.support.metrics import documented, registered


def test_every_metric_is_documented_and_every_documented_one_exists_as_it_is_documented() -> None:
    assert documented() == registered(), "the table of metrics.md is printed by: python -m tests.support.metrics"


def test_names_of_metrics_tell_whose_they_are_and_their_unit() -> None:
    for metric in registered():
        assert metric.name.startswith("headrace_")
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_bytes")), metric.name
        assert not {"id", "run_id", "job_id", "name"} & set(metric.labels), metric.name


def test_the_version_that_is_shown_is_that_of_the_project() -> None:
    assert version("headrace") == VERSION
