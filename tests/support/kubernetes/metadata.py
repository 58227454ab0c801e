"""The part that all kinds have in common: what the server writes there itself, and what it demands of the rest."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.support.kubernetes.resources import Resource
from tests.support.kubernetes.statuses import bad_request, invalid
from tests.support.kubernetes.store import Document

_OWN = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "namespace",
    "name",
)
"""Whoever writes the others cannot change these."""

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH = 5
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LONGEST_NAME = 253
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_MOST_ANNOTATION_BYTES = 256 * 1024


def born(resource: Resource, namespace: str, document: Document) -> Document:
    """A new object, with its name and its own."""
    asked = _tidied(document.get("metadata") or {})
    if asked.get("namespace", namespace) != namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    name = asked.get("name") or _generated(asked.get("generateName", ""))
    metadata = {key: value for key, value in asked.items() if key not in _OWN and key != "resourceVersion"}
    metadata |= {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
    if resource.is_namespaced:
        metadata["namespace"] = namespace
    if resource.is_custom:
        metadata["generation"] = 1
    demand_sound(resource, metadata)
    return {**document, "metadata": metadata}


def carried_over(before: Document, document: Document) -> Document:
    """The document with what only the server may write as it was."""
    own = {key: before["metadata"][key] for key in (*_OWN, "resourceVersion") if key in before["metadata"]}
    others = {key: value for key, value in _tidied(document["metadata"]).items() if key not in _OWN}
    return {**document, "metadata": {**others, **own}}


def marked_for_deletion(document: Document) -> Document:
    metadata = {**document["metadata"], "deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
    if "generation" in metadata:
        metadata["generation"] += 1
    return {**document, "metadata": metadata}


def of_next_generation(document: Document) -> Document:
    metadata = document["metadata"]
    return {**document, "metadata": {**metadata, "generation": metadata.get("generation", 0) + 1}}


def demand_sound(resource: Resource, metadata: Mapping[str, Any]) -> None:
    """Raises Refusal."""
    name = metadata.get("name", "")
    if not name:
        raise invalid(resource, "", "metadata.name", "Required value: name or generateName is required")
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise invalid(resource, name, "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain')
    for part in ("labels", "annotations"):
        for key, value in (metadata.get(part) or {}).items():
            if not isinstance(value, str):
                raise bad_request(f"metadata.{part}: {key}: expected string, got {type(value).__name__}")
            if not _LABEL_KEY.fullmatch(key):
                raise invalid(resource, name, f"metadata.{part}", f'Invalid value: "{key}": a qualified name')
    for value in (metadata.get("labels") or {}).values():
        if not _LABEL_VALUE.fullmatch(value):
            raise invalid(resource, name, "metadata.labels", f'Invalid value: "{value}": a valid label')
    if _size(metadata.get("annotations") or {}) > _MOST_ANNOTATION_BYTES:
        why = f"Too long: must have at most {_MOST_ANNOTATION_BYTES} bytes"
        raise invalid(resource, name, "metadata.annotations", why)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tidied(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is empty is not there."""
    return {key: value for key, value in metadata.items() if value not in (None, "", {}, [])}


def _generated(prefix: str) -> str:
    return prefix and prefix + "".join(random.choices(_SUFFIX_LETTERS, k=_SUFFIX_LENGTH))


def _size(texts: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in texts.items())
