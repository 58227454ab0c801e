"""What the map and each service's card say of facts and questions, against what is declared and what is done.

Words: `owner: what, what; owner: what`; where there is one owner only and it is the service itself, without it. Who
listens to `everything` hears of every fact that is declared.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.contracts import events, questions
from shared.contracts.events import FACTS, FactKind
from shared.contracts.questions import Question

ROOT = Path(__file__).parents[3]
SERVICES = sorted(card.parent.name for card in (ROOT / "services").glob("*/__init__.py"))
PROCESSES = {"run-controller": "run", "node": "run"}
"""Beside the services themselves, who tells and answers: by whose code they do."""

Said = dict[str, set[str]]
"""The words behind each owner."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    emits: Said
    listens_to: Said
    answers: Said


@pytest.mark.parametrize("service", SERVICES)
def test_the_card_of_a_service_is_true(service: str) -> None:
    assert _card(service) == Told(
        emits=_emitted(service),
        listens_to=_followed(service),
        answers=_declared_answers(service) | _own_answers(service),
    )


@pytest.mark.parametrize("service", SERVICES)
def test_the_row_of_a_service_in_the_map_is_true(service: str) -> None:
    assert _rows()[service] == Told(
        emits=_emitted(service), listens_to=_followed(service), answers=_declared_answers(service)
    )


def test_the_map_has_a_row_for_every_service() -> None:
    assert sorted(_rows()) == SERVICES


def test_everybody_who_hears_of_others_is_known_as_a_subscriber() -> None:
    assert list(questions.SUBSCRIBERS) == sorted(_owner(service) for service in SERVICES if _handled(service))


def test_every_fact_that_is_declared_is_said_by_its_owner_and_every_question_taken() -> None:
    mentioned = {service: _names_in(service) for service in SERVICES}
    for name, declared in (vars(events) | vars(questions)).items():
        if isinstance(declared, FactKind | Question):
            assert name in mentioned[_folder_of(declared.owner)], f"nobody says or answers {name}"


# What is.


def _emitted(service: str) -> Said:
    said: Said = {}
    for kind in FACTS.values():
        if _folder_of(kind.owner) == service:
            said.setdefault(kind.owner, set()).add(kind.what)
    return said


def _followed(service: str) -> Said:
    said: Said = {}
    for kind in _handled(service):
        said.setdefault(kind.owner, set()).add(kind.what)
    return said


def _handled(service: str) -> list[FactKind[Any]]:
    if not (ROOT / "services" / service / "subscribers.py").exists():
        return []
    subscribers = importlib.import_module(f"services.{service}.subscribers")
    if hasattr(subscribers, "HANDLERS"):
        return list(subscribers.HANDLERS)
    nobody = dict.fromkeys(inspect.signature(subscribers.handlers).parameters)
    return list(subscribers.handlers(**nobody))


def _declared_answers(service: str) -> Said:
    said: Said = {}
    for question in vars(questions).values():
        if isinstance(question, Question) and _folder_of(question.owner) == service:
            said.setdefault(question.owner, set()).add(question.what)
    return said


def _own_answers(service: str) -> Said:
    """With those that everybody answers: how far the owner's facts go, and how far others' are applied."""
    what = {"repeat"} | (
        {"applied", "dead", "dead-letter", "retry-dead", "discard-dead"} if _handled(service) else set()
    )
    others = {owner: {"repeat"} for owner in _emitted(service) if owner != _owner(service)}
    return {_owner(service): _declared_answers(service).get(_owner(service), set()) | what} | others


def _names_in(service: str) -> set[str]:
    trees = [ast.parse(file.read_text()) for file in (ROOT / "services" / service).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def _owner(service: str) -> str:
    return service.replace("_", "-")


def _folder_of(owner: str) -> str:
    return PROCESSES.get(owner, owner.replace("-", "_"))


# What is said.


def _card(service: str) -> Told:
    card = importlib.import_module(f"services.{service}").__doc__
    assert card is not None
    lines = {
        label: " ".join(text.split())
        for label, text in re.findall(r"^(emits|listens to|answers): (.*(?:\n    .*)*)", card, re.MULTILINE)
    }
    return Told(
        emits=_said(lines["emits"], service),
        listens_to=_said(lines["listens to"], service),
        answers=_said(lines["answers"], service),
    )


def _rows() -> dict[str, Told]:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("## Who owns what\n\n")[2].partition("\n\n")[0]
    rows = {}
    for line in table.splitlines()[2:]:
        names, _, answers, emits, listens_to = (cell.strip() for cell in line.strip("|").split("|"))
        service = re.findall(r"`([a-z_-]+)`", names)[-1]
        rows[service] = Told(
            emits=_said(emits, service), listens_to=_said(listens_to, service), answers=_said(answers, service)
        )
    return rows


def _said(text: str, service: str) -> Said:
    if text in ("nothing", "–"):
        return {}
    said: Said = {}
    if text == "everything":
        for kind in FACTS.values():
            said.setdefault(kind.owner, set()).add(kind.what)
        return said
    for part in text.split("; "):
        owner, _, what = part.rpartition(": ")
        said[owner or _owner(service)] = set(what.split(", "))
    return said
