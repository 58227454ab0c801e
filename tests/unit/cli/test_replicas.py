"""How many replicas a person may ask for, and what is said to who asks for something else."""

from __future__ import annotations

import re

import pytest

from infra.embedded.postgres import SETTINGS
from infra.embedded.replicas import SERVICES, connections_each, counted, names


def test_there_is_one_of_each_that_is_not_named() -> None:
    assert counted(["run=4", "gateway=1"]) == dict.fromkeys(SERVICES, 1) | {"run": 4}


def test_a_number_alone_is_meant_for_all_that_are_not_named() -> None:
    assert counted(["2", "run=4"]) == dict.fromkeys(SERVICES, 2) | {"run": 4}


def test_the_first_replica_is_called_as_one_that_is_alone() -> None:
    assert names("run", 1) == ["run"]
    assert names("run", 3) == ["run", "run-2", "run-3"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_connections_of_all_fit_the_database(count: int) -> None:
    each = connections_each(dict.fromkeys(SERVICES, count))

    assert each >= 4
    assert each * (count * len(SERVICES) + 1) < int(SETTINGS["max_connections"]) - 3


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("run", "'run' is neither COUNT nor NAME=COUNT, as run=2"),
        ("run=two", "'run=two' is neither COUNT nor NAME=COUNT, as run=2"),
        ("0", "'0' is neither COUNT nor NAME=COUNT, as run=2"),
        ("run=0", "'run=0': there is at least one of each"),
        ("metric=2", "'metric=2' names no service (did you mean metrics?)"),
        ("mill=2", f"'mill=2' names no service (there are {', '.join(SERVICES)})"),
        (
            "gateway=2",
            "'gateway=2': there is one gateway, because clients know one port, and one process listens there",
        ),
        (
            "step-runner=2",
            "'step-runner=2': there is one step-runner, because the steps of one machine have one parent",
        ),
        ("5", "30 processes are too many for the embedded database, which has connections for 24"),
        ("run=20", "25 processes are too many for the embedded database, which has connections for 24"),
    ],
)
def test_what_cannot_be_is_refused_in_words(asked: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^replicas: {re.escape(complaint)}$"):
        counted([asked])


def test_who_names_a_service_twice_is_asked_to_decide() -> None:
    with pytest.raises(ValueError, match="run is named twice"):
        counted(["run=2", "run=3"])
