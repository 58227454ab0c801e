"""Names of scheduler objects and the checks that need nobody else (API specification, section 10.2)."""

from __future__ import annotations

import re

import pytest

from services.job_scheduler.domain import (
    Parameter,
    check_interval,
    check_max_concurrency,
    check_parameters_size,
    object_names,
    workflow_name,
)
from shared.errors import InvalidInput


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("hello world", "helloworld"),
        ("My_Job.v2", "myjobv2"),
        ("a-b--c", "a-b--c"),
        ("", "job-"),
        ("日本", "job-"),
        ("---", "job-"),
        ("-x", "x"),
        ("0", "0"),
        ("n" * 26, "n" * 25),
        ("Ünïcode", "ncode"),
        ("\x00;drop\n", "drop"),
    ],
)
def test_a_scheduler_object_is_called_after_its_job(name: str, base: str) -> None:
    names = {each for _ in range(10) for each in object_names(name)}
    assert len(names) == 30
    for each in names:
        assert each[:-5] == base
        assert re.fullmatch(r"[a-z0-9][-a-z0-9]{0,29}", each)
        assert re.fullmatch(r"[a-z0-9]{5}", each[-5:])


@pytest.mark.parametrize(
    ("object_name", "index", "name"),
    [
        ("myjobabcde", 1, "myjobabcde-1-1117443087"),
        ("WORKFLOW_NAME", 51, "WORKFLOW_NAME-51-2626342551"),
    ],
)
def test_a_fired_workflow_is_called_after_its_scheduler_object_and_index(
    object_name: str, index: int, name: str
) -> None:
    assert workflow_name(object_name, index) == name


@pytest.mark.parametrize("number", [0, -1, 11, 2**63 - 1])
def test_concurrency_has_bounds(number: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_max_concurrency(number)
    assert refused.value.message == (
        f"The max concurrency of the job is out of range. Support 1-10. Received {number}."
    )


@pytest.mark.parametrize("number", [1, 10])
def test_the_bounds_of_concurrency_are_inside(number: int) -> None:
    check_max_concurrency(number)


@pytest.mark.parametrize("seconds", [0, -60])
def test_an_interval_is_a_second_at_least(seconds: int) -> None:
    check_interval(1)
    with pytest.raises(InvalidInput) as refused:
        check_interval(seconds)
    assert refused.value.message == (
        f"Found invalid period schedule interval {seconds}. Set at interval to least 1 second."
    )


@pytest.mark.parametrize(("letter", "most"), [("x", 10_000), ("<", 10_000), ("ü", 10_000), ('"', 10_000)])
def test_parameters_are_measured_as_go_writes_them(letter: str, most: int) -> None:
    """`[{"name":"a","value":"…"}]` is 25 bytes around the value."""
    size = {"x": 1, "<": 6, "ü": 2, '"': 2}[letter]
    fits = (most - 25) // size
    check_parameters_size((Parameter(name="a", value=letter * fits),))
    with pytest.raises(InvalidInput, match="exceed maximum size of 10000"):
        check_parameters_size((Parameter(name="a", value=letter * (fits + 1)),))
