"""The verbs of the server without their HTTP: what becomes of objects that somebody creates, changes and deletes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from tests.support.kubernetes import metadata
from tests.support.kubernetes.resources import (
    DEFINITIONS,
    NAMESPACES,
    PODS,
    SERVICE_ACCOUNTS,
    Catalogue,
    Resource,
    defined,
)
from tests.support.kubernetes.selectors import Predicate
from tests.support.kubernetes.statuses import (
    Refusal,
    already_exists,
    bad_request,
    conflict,
    invalid,
    not_found,
    stale,
    success,
)
from tests.support.kubernetes.store import Document, Name, Store


class Preconditions(msgspec.Struct, frozen=True, kw_only=True):
    """What a deletion takes for granted."""

    uid: str | None = None
    resource_version: str | None = msgspec.field(name="resourceVersion", default=None)


class Objects:
    def __init__(self, store: Store, *, most_bytes: int) -> None:
        self.store = store
        self.catalogue = Catalogue()
        self.most_bytes = most_bytes
        self._uids: set[str] = set()
        self._owned: dict[str, set[tuple[Resource, Name]]] = {}
        """Who names whom as an owner, by the owner's uid; some may have thought better of it since."""

    def get(self, resource: Resource, name: Name) -> Document:
        found = self.store.find(resource, name)
        if found is None:
            raise not_found(resource, name[1])
        return found

    def create(self, resource: Resource, namespace: str, document: Document, *, is_dry: bool = False) -> Document:
        _demand_kind(resource, document)
        self._demand_namespace(resource, namespace)
        if (document.get("metadata") or {}).get("resourceVersion"):
            raise Refusal(500, "resourceVersion should not be set on objects to be created", reason="")
        new = _as_it_begins(resource, metadata.born(resource, namespace, document))
        name = (namespace, new["metadata"]["name"])
        if self.store.find(resource, name) is not None:
            raise already_exists(resource, name[1])
        return self._keep(resource, name, new, is_dry=is_dry)

    def replace(
        self, resource: Resource, name: Name, document: Document, *, is_status: bool = False, is_dry: bool = False
    ) -> Document:
        _demand_kind(resource, document)
        asked = (document.get("metadata") or {}).get("name")
        if asked != name[1]:
            raise bad_request(f"the name of the object ({asked}) does not match the name on the URL ({name[1]})")
        before = self.get(resource, name)
        if resource.is_custom and not document["metadata"].get("resourceVersion"):
            why = "Invalid value: 0x0: must be specified for an update"
            raise invalid(resource, name[1], "metadata.resourceVersion", why)
        return self._change(resource, name, before, document, is_status=is_status, is_dry=is_dry)

    def patch(
        self,
        resource: Resource,
        name: Name,
        patched: Callable[[Document], Document],
        *,
        is_status: bool = False,
        is_dry: bool = False,
    ) -> Document:
        before = self.get(resource, name)
        document = patched(before)
        if not isinstance(document.get("metadata"), Mapping):
            raise bad_request("the patched object is no object")
        _demand_kind(resource, document)
        return self._change(resource, name, before, document, is_status=is_status, is_dry=is_dry)

    def delete(
        self,
        resource: Resource,
        name: Name,
        *,
        preconditions: Preconditions | None = None,
        is_dry: bool = False,
    ) -> Document:
        """The object where it lingers, or else what is said of its end."""
        found = self.get(resource, name)
        _demand(preconditions or Preconditions(), resource, found)
        if is_dry:
            return found if resource == PODS else success(resource, name[1], found["metadata"]["uid"])
        if found["metadata"].get("finalizers"):
            if "deletionTimestamp" in found["metadata"]:
                return found
            return self._keep(resource, name, metadata.marked_for_deletion(found))
        removed = self._remove(resource, name)
        return removed if resource in (PODS, NAMESPACES) else success(resource, name[1], removed["metadata"]["uid"])

    def delete_all(self, resource: Resource, namespace: str, matches: Predicate, *, is_dry: bool) -> list[Document]:
        """Those that were there."""
        found = [(name, each) for name, each in self.listed(resource, namespace) if matches(each)]
        for name, _ in found:
            self.delete(resource, name, is_dry=is_dry)
        return [each for _, each in found]

    def listed(
        self, resource: Resource, namespace: str, at: Mapping[Name, Document] | None = None
    ) -> Iterator[tuple[Name, Document]]:
        """In the order of pages; of all namespaces where none is named."""
        objects = self.store.all(resource) if at is None else at
        for name in sorted(objects):
            if not namespace or name[0] == namespace:
                yield name, objects[name]

    # What becomes of a change

    def _change(
        self, resource: Resource, name: Name, before: Document, document: Document, *, is_status: bool, is_dry: bool
    ) -> Document:
        asked = document["metadata"]
        if asked.get("uid") and asked["uid"] != before["metadata"]["uid"]:
            why = f"UID in precondition: {asked['uid']}, UID in object meta: {before['metadata']['uid']}"
            raise conflict(resource, name[1], f"Precondition failed: {why}")
        if asked.get("resourceVersion", before["metadata"]["resourceVersion"]) != before["metadata"]["resourceVersion"]:
            raise stale(resource, name[1])
        after = metadata.carried_over(before, _of_its_path(resource, before, document, is_status=is_status))
        metadata.demand_sound(resource, after["metadata"])
        if after == before:
            return before
        if resource.is_custom and _counts(resource, before) != _counts(resource, after):
            after = metadata.of_next_generation(after)
        if "deletionTimestamp" in after["metadata"] and not after["metadata"].get("finalizers"):
            if not is_dry:
                self._remove(resource, name)
            return after
        return self._keep(resource, name, after, is_dry=is_dry)

    def _keep(self, resource: Resource, name: Name, document: Document, *, is_dry: bool = False) -> Document:
        if len(msgspec.json.encode(document)) > self.most_bytes:
            raise Refusal(500, "etcdserver: request is too large", reason="")
        if is_dry:
            return document
        kept = self.store.put(resource, name, document)
        self._uids.add(kept["metadata"]["uid"])
        for owner in kept["metadata"].get("ownerReferences", ()):
            self._owned.setdefault(owner["uid"], set()).add((resource, name))
            if owner["uid"] not in self._uids:
                _soon(self._collect, owner["uid"])
        if resource == DEFINITIONS:
            self.catalogue.define(kept)
        elif resource == NAMESPACES and (name[1], "default") not in self.store.all(SERVICE_ACCOUNTS):
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
            self.create(SERVICE_ACCOUNTS, name[1], account)
        return kept

    def _remove(self, resource: Resource, name: Name) -> Document:
        removed = self.store.remove(resource, name)
        self._uids.discard(removed["metadata"]["uid"])
        if removed["metadata"]["uid"] in self._owned:
            _soon(self._collect, removed["metadata"]["uid"])
        if resource == DEFINITIONS:
            for kind in defined(removed):
                self._empty(kind, "")
            self.catalogue.forget(removed)
        elif resource == NAMESPACES:
            for kind in self.catalogue.all():
                if kind.is_namespaced:
                    self._empty(kind, name[1])
        return removed

    def _empty(self, resource: Resource, namespace: str) -> None:
        for name, _ in list(self.listed(resource, namespace)):
            self._remove(resource, name)

    def _collect(self, uid: str) -> None:
        """Delete what no living owner holds any more, as the collector of garbage does behind everybody's back."""
        for resource, name in self._owned.pop(uid, ()):
            found = self.store.find(resource, name)
            owners = () if found is None else [each["uid"] for each in found["metadata"].get("ownerReferences", ())]
            if uid in owners and not self._uids.intersection(owners):
                self.delete(resource, name)

    def _demand_namespace(self, resource: Resource, namespace: str) -> None:
        if resource.is_namespaced and self.store.find(NAMESPACES, ("", namespace)) is None:
            raise not_found(NAMESPACES, namespace)


def _demand_kind(resource: Resource, document: Document) -> None:
    """Kinds that are built in may leave it to the path."""
    for field, what, expected in (("apiVersion", "API version", resource.api_version), ("kind", "kind", resource.kind)):
        said = document.get(field) or ("" if resource.is_custom else expected)
        if not said:
            raise bad_request(f"Object '{field}' is missing")
        if said != expected and field == "kind" and resource.is_custom:
            raise invalid(resource, "", "kind", f'Invalid value: "{said}": must be {expected}')
        if said != expected:
            raise bad_request(f"the {what} in the data ({said}) does not match the expected {what} ({expected})")


def _demand(preconditions: Preconditions, resource: Resource, found: Document) -> None:
    for what, asked, field in (
        ("UID", preconditions.uid, "uid"),
        ("ResourceVersion", preconditions.resource_version, "resourceVersion"),
    ):
        is_ = found["metadata"][field]
        if asked is not None and asked != is_:
            why = f"Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is_}"
            raise conflict(resource, found["metadata"]["name"], why)


def _as_it_begins(resource: Resource, document: Document) -> Document:
    document = {"apiVersion": resource.api_version, "kind": resource.kind, **document}
    if not resource.has_status:
        return document
    given: dict[str, Any] = {key: value for key, value in document.items() if key != "status"}
    if resource == PODS:
        given["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    elif resource == NAMESPACES:
        given["status"] = {"phase": "Active"}
    elif resource == DEFINITIONS:
        conditions = [{"type": kind, "status": "True"} for kind in ("NamesAccepted", "Established")]
        given["status"] = {"conditions": conditions, "acceptedNames": given["spec"]["names"]}
    return given


def _of_its_path(resource: Resource, before: Document, document: Document, *, is_status: bool) -> Document:
    """Where the status has a path of its own, each path changes its part alone."""
    if not resource.has_status:
        return document
    if is_status:
        return {**before, "metadata": before["metadata"], **_only(document, "status")}
    return {**{key: value for key, value in document.items() if key != "status"}, **_only(before, "status")}


def _only(document: Document, field: str) -> dict[str, Any]:
    return {field: document[field]} if field in document else {}


def _counts(resource: Resource, document: Document) -> dict[str, Any]:
    """A change of this makes a new generation."""
    without = {"metadata", "status"} if resource.has_status else {"metadata"}
    return {key: value for key, value in document.items() if key not in without}


def _soon(work: Callable[[str], None], uid: str) -> None:
    asyncio.get_running_loop().call_soon(work, uid)
