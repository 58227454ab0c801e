"""The table of what tests have shown is itself tested: nothing may appear in it that no test has seen."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.table import ROUTES
from tests.coverage.__main__ import main
from tests.coverage.evidence import Aspect, Ended, Witness, Witnesses, by_operation, read
from tests.coverage.operations import CLIENTS, OPERATIONS, name_of
from tests.coverage.plugin import Collector
from tests.coverage.resources import counts

NO_OPERATION = {"livez", "readyz", "startupz", "docs", "openapi", "asyncapi"}
"""Routes of the gateway that the specification does not have."""


def witnesses(*tests: Witness) -> Witnesses:
    return Witnesses(began_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), tests=list(tests))


def saw_everything() -> list[Witness]:
    """A test for each operation that sees all there is to see of it."""
    return [
        Witness(
            test=f"tests/system/test_x.py::test_{name}",
            heard={name: {200: 1}},
            judged={name: 1},
            shown=[(name, aspect, "400") for aspect in Aspect],
            clients=[("kfp-1.8.22", name)],
        )
        for name in OPERATIONS
    ]


def test_every_route_of_the_gateway_has_a_row() -> None:
    for route in ROUTES:
        method = min(route.methods or {"GET"})
        name = name_of(method, route.pattern.replace("{", "").replace("}", ""))

        assert name in OPERATIONS or route.name in NO_OPERATION, route


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        ("GET", "/apis/v1beta1/runs?page_size=1", "R2"),
        ("POST", "/apis/v1beta1/pipelines/upload", "P6"),
        ("GET", "/apis/v1beta1/runs/a/nodes/b/log", "X7"),
        ("GET", "/apis/v1alpha1/runs/a/nodes/b/log?follow=true", "X7 v1alpha1"),
        ("POST", "/apis/v1beta1/visualizations", "X4"),
        ("POST", "/apis/v1beta1/visualizations/", "X4 {namespace}"),
        ("GET", "/apis/headrace/v1/runs/a/nodes/b/artifacts/c", "artifact"),
        ("GET", "/apis/headrace/v1/runs", "headrace-runs"),
        ("GET", "/apis/v1alpha1/tasks", None),
        ("PUT", "/apis/v1beta1/runs", None),
    ],
)
def test_a_request_belongs_to_a_row(method: str, target: str, name: str | None) -> None:
    assert name_of(method, target) == name


def test_a_column_that_makes_no_sense_says_why() -> None:
    for name, operation in OPERATIONS.items():
        for column, why in operation.reasons().items():
            assert len(why) > 10, (name, column)
        assert {Aspect.VALIDATION, Aspect.NOT_FOUND} == set(operation.asks()) | {
            aspect for aspect in (Aspect.VALIDATION, Aspect.NOT_FOUND) if aspect.value in operation.reasons()
        }
    assert set(OPERATIONS["R3"].reasons()) == {"validation"}
    assert set(OPERATIONS["X6"].reasons()) == {"success", "validation", "encoding", CLIENTS}


def test_only_a_test_that_passed_has_shown_anything() -> None:
    collector = Collector()
    collector.begin("tests/system/test_x.py::test_failed")
    collector.hear("GET", "/apis/v1beta1/runs", 200, True)
    collector.shown("R2", Aspect.VALIDATION, "400")
    collector.driven_by("curl", "R2")
    (witness,) = collector.witnesses().tests

    for how in Ended:
        witness.ended = how
        evidence = by_operation(witnesses(witness))["R2"]
        cells = [*(evidence.cell(aspect) for aspect in Aspect), evidence.clients]
        assert cells == (["1 tests", "400", "", "1 answers as published", "curl"] if how is Ended.PASSED else [""] * 5)


def test_what_each_test_hears_is_its_own_and_refusals_are_no_success() -> None:
    collector = Collector()
    for test, status in (("a", 200), ("b", 404), ("c", 206)):
        collector.begin(f"tests/system/test_x.py::test_{test}")
        collector.hear("GET", "/apis/v1beta1/runs/1", status, False)
        collector.hear("GET", "/nowhere", 404, False)

    assert by_operation(collector.witnesses())["R3"].cell(Aspect.SUCCESS) == "2 tests"
    assert by_operation(collector.witnesses())["R3"].cell(Aspect.ENCODING) == ""


def test_clients_are_named_once_with_their_versions() -> None:
    clients = [(client, "R2") for client in ("kfp-1.8.22", "curl", "kfp-0.1.38", "kfp-server-api-1.8.5", "curl")]

    found = by_operation(witnesses(Witness(test="t", clients=clients)))["R2"]

    assert found.clients == "curl, kfp 0.1.38 1.8.22, kfp-server-api 1.8.5"


def test_tests_are_counted_by_what_they_heard_or_else_by_where_they_lie() -> None:
    run = counts(
        witnesses(
            Witness(test="tests/component/run/test_a.py::test_a", heard={"R1": {200: 1}, "R10": {404: 1}}),
            Witness(test="tests/unit/job_scheduler/test_b.py::test_b"),
            Witness(test="tests/system/test_c.py::test_c", heard={"R2": {200: 2}}, ended=Ended.SKIPPED),
            Witness(test="tests/nowhere/test_d.py::test_d"),
        )
    )

    assert (run["runs"].passed, run["runs"].gaps) == ({"component": 1}, 1)
    assert run["artifacts"].passed == {"component": 1}
    assert run["recurring runs (jobs)"].passed == {"unit": 1}
    assert run["others"].passed == {"nowhere": 1}


def test_the_table_is_complete_when_everything_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "build" / "evidence.json"
    witnesses(*saw_everything()).write(file)

    assert main([str(file)]) == 0
    told = capsys.readouterr().out
    assert "GAP" not in told
    assert "tests that began at 2026-01-02 03:04 UTC" in told
    assert "X4 {namespace}" in told
    assert read(file).tests[0].test.endswith("test_E1")


def test_an_empty_cell_and_a_test_that_was_skipped_are_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evidence.json"
    seen = saw_everything()
    seen[0].shown.remove(("E1", Aspect.VALIDATION, "400"))
    witnesses(*seen).write(file)
    assert main([str(file)]) == 1
    assert "1 cells are empty" in capsys.readouterr().out

    witnesses(*saw_everything(), Witness(test="tests/system/test_y.py::test_y", ended=Ended.SKIPPED)).write(file)
    assert main([str(file)]) == 1
    assert "GAP  skipped: tests/system/test_y.py::test_y" in capsys.readouterr().out


def test_without_a_run_of_the_tests_it_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "evidence.json")]) == 1
    assert "`make test` runs all tests and leaves it in" in capsys.readouterr().err
