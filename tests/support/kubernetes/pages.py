"""Lists: of the present, of a version that is asked for, and page by page of the version that the first page showed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from tests.support.kubernetes.objects import Objects
from tests.support.kubernetes.resources import Resource
from tests.support.kubernetes.selectors import Predicate
from tests.support.kubernetes.statuses import EXPIRED_CONTINUE, Refusal, bad_request, too_new
from tests.support.kubernetes.store import Document, Forgotten, Name

_PRESENT = -1
"""The version in a token that goes on with whatever there is by then."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for."""

    namespace: str
    matches: Predicate
    is_selective: bool
    limit: int = 0
    token: str = ""
    version: str = ""
    is_exact: bool = False
    """`version` and no later one."""


class _Token(msgspec.Struct, frozen=True, kw_only=True):
    v: str = "meta.k8s.io/v1"
    rv: int
    start: str


def page(objects: Objects, resource: Resource, asked: Listing) -> dict[str, Any]:
    token = _read(asked)
    version, at = _seen(objects, resource, asked, token)
    start = token.start if token else ""
    # Whoever is content with any version gets it from memory, and all of it.
    limit = 0 if asked.version == "0" else asked.limit
    found: list[tuple[Name, Document]] = [
        (name, each)
        for name, each in objects.listed(resource, asked.namespace, at)
        if asked.matches(each) and _place(name) > start
    ]
    shown = found[:limit] if limit else found
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if len(shown) < len(found):
        metadata["continue"] = _written(_Token(rv=version, start=_place(shown[-1][0])))
        if not asked.is_selective:
            metadata["remainingItemCount"] = len(found) - len(shown)
    return {
        "kind": f"{resource.kind}List",
        "apiVersion": resource.api_version,
        "metadata": metadata,
        "items": [_as_item(resource, each) for _, each in shown],
    }


def _seen(
    objects: Objects, resource: Resource, asked: Listing, token: _Token | None
) -> tuple[int, Mapping[Name, Document]]:
    """The version that is shown, and what there was then."""
    store = objects.store
    wanted = token.rv if token else int(asked.version or 0)
    if wanted > store.version:
        raise too_new(wanted, store.version)
    if (token is None and not asked.is_exact) or wanted == _PRESENT:
        return store.version, store.all(resource)
    try:
        if wanted < store.oldest:
            raise Forgotten
        return wanted, store.at(resource, wanted)
    except Forgotten:
        if token is None:
            raise Refusal(410, f"The resourceVersion for the provided list is too old: {wanted}") from None
        anew = _written(_Token(rv=_PRESENT, start=token.start))
        raise Refusal(410, EXPIRED_CONTINUE, metadata={"continue": anew}) from None


def _read(asked: Listing) -> _Token | None:
    if not asked.token:
        return None
    if asked.version:
        raise bad_request("specifying resource version is not allowed when using continue")
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(asked.token + "=="), type=_Token)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error


def _written(token: _Token) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def _place(name: Name) -> str:
    """Sorts as names do."""
    return f"{name[0]}\0{name[1]}"


def _as_item(resource: Resource, document: Document) -> Document:
    """Items of the kinds that are built in do not repeat what the list says."""
    if resource.is_custom:
        return document
    return {key: value for key, value in document.items() if key not in ("kind", "apiVersion")}
