"""Label and field selectors: the texts of requests as predicates on objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.support.kubernetes.resources import PODS, Resource
from tests.support.kubernetes.statuses import bad_request

Predicate = Callable[[Mapping[str, Any]], bool]

_KEY = r"(?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_AMONG = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_COMPARED = re.compile(rf"({_KEY})\s*(==|=|!=)\s*([A-Za-z0-9_.-]*)")
_PRESENT = re.compile(rf"(!?)\s*({_KEY})")
_COMMA = re.compile(r",(?![^()]*\))")

_FIELDS = {"metadata.name": ("metadata", "name"), "metadata.namespace": ("metadata", "namespace")}
_POD_FIELDS = {
    "spec.nodeName": ("spec", "nodeName"),
    "spec.restartPolicy": ("spec", "restartPolicy"),
    "status.phase": ("status", "phase"),
    "status.podIP": ("status", "podIP"),
}


def selector(resource: Resource, *, labels: str, fields: str) -> Predicate:
    """What both ask for. Raises Refusal where one cannot be read."""
    asked = [*map(_label_requirement, _terms(labels)), *(_field_requirement(resource, term) for term in _terms(fields))]
    return lambda found: all(holds(found) for holds in asked)


def everything(_: Mapping[str, Any]) -> bool:
    return True


def _terms(text: str) -> Iterator[str]:
    if text.strip():
        yield from (term.strip() for term in _COMMA.split(text))


def _label_requirement(term: str) -> Predicate:
    if found := _AMONG.fullmatch(term):
        key, is_in, values = found[1], found[2] == "in", frozenset(value.strip() for value in found[3].split(","))
        # An object without the label is outside of every set.
        return lambda item: (_labels(item).get(key) in values) is is_in
    if found := _COMPARED.fullmatch(term):
        key, is_equal, value = found[1], found[2] != "!=", found[3]
        return lambda item: (_labels(item).get(key) == value) is is_equal
    if found := _PRESENT.fullmatch(term):
        is_present, key = not found[1], found[2]
        return lambda item: (key in _labels(item)) is is_present
    raise bad_request(f"unable to parse requirement: {term!r}")


def _field_requirement(resource: Resource, term: str) -> Predicate:
    found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term)
    if found is None:
        raise bad_request(f"invalid selector: {term!r}; can't understand {term!r}")
    known = _FIELDS | _POD_FIELDS if resource == PODS else _FIELDS
    if found[1] not in known:
        raise bad_request(f"field label not supported: {found[1]}")
    (part, field), is_equal, value = known[found[1]], found[2] != "!=", found[3]
    return lambda item: (item.get(part, {}).get(field, "") == value) is is_equal


def _labels(item: Mapping[str, Any]) -> Mapping[str, str]:
    return item["metadata"].get("labels") or {}
