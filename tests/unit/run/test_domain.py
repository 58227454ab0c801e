"""The rules of runs: which status follows which, what workflows are called, how long parameters may be."""

from __future__ import annotations

import pytest

from services.run import domain
from services.run.domain import Parameter, Status
from shared.errors import InvalidInput

FINAL = (Status.SUCCEEDED, Status.SKIPPED, Status.FAILED, Status.ERROR)
FORWARD = {
    Status.NONE: (Status.PENDING, Status.RUNNING, Status.TERMINATING, *FINAL),
    Status.PENDING: (Status.RUNNING, Status.TERMINATING, *FINAL),
    Status.RUNNING: (Status.TERMINATING, *FINAL),
    Status.TERMINATING: FINAL,
} | dict.fromkeys(FINAL, ())


@pytest.mark.parametrize("current", list(Status))
@pytest.mark.parametrize("observed", list(Status))
def test_a_status_moves_forward_or_stays(current: Status, observed: Status) -> None:
    expected = observed if observed in FORWARD[current] else current
    assert domain.after(current, observed) is expected


def test_final_and_terminable_statuses_leave_out_terminating_alone() -> None:
    assert {status for status in Status if status.is_final} == set(FINAL)
    assert {*FINAL, *domain.TERMINABLE} == set(Status) - {Status.TERMINATING}


def test_a_generated_name_ends_in_five_letters_and_is_never_too_long() -> None:
    for base in ("pipe-", "p" * 100):
        name = domain.generated(base)
        assert len(name) == min(len(base) + 5, 63)
        assert set(name[-5:]) <= set("bcdfghjklmnpqrstvwxz2456789")
    assert domain.generated("pipe-") != domain.generated("pipe-")


def test_a_fixed_name_is_taken_first_and_then_made_different() -> None:
    first, *others = domain.workflow_names("fixed", "ignored-")
    assert first == "fixed"
    assert others
    assert all(name.startswith("fixed-") and len(name) == len("fixed-") + 5 for name in others)
    assert domain.workflow_names("", "")[0].startswith("run-")


@pytest.mark.parametrize("name", ["a", "a-b.c9", "x" * 63])
def test_plain_names_are_names(name: str) -> None:
    domain.check_workflow_name(name)


@pytest.mark.parametrize("name", ["", "A", "a_b", "a/b", "..", "a..b", "-a", "a-", "a.", "x" * 64, "a\n", "ä"])
def test_what_kubernetes_would_refuse_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"Failed to create a workflow for"):
        domain.check_workflow_name(name)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("x" * 9975, True), ("x" * 9976, False),  # [{"name":"a","value":""}] has 25 bytes.
        ("<" * 1662, True), ("<" * 1663, False), ("ä" * 4987, True), ("ä" * 4988, False),
    ],
)  # fmt: skip
def test_parameters_are_measured_as_go_writes_them(value: str, *, fits: bool) -> None:
    parameters = (Parameter(name="a", value=value),)
    if fits:
        domain.check_parameters_size(parameters)
    else:
        with pytest.raises(InvalidInput, match=r"exceed maximum size of 10000"):
            domain.check_parameters_size(parameters)


def test_empty_members_count_nothing() -> None:
    domain.check_parameters_size((Parameter(name="a" * 9987),))
    with pytest.raises(InvalidInput):
        domain.check_parameters_size((Parameter(name="a" * 9989),))
