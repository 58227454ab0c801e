"""Which kinds there are. Custom ones come and go with their definitions; none of them is special to the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """What a path names: a kind in one of its versions."""

    group: str = ""
    version: str = "v1"
    plural: str
    kind: str
    is_namespaced: bool = True
    has_status: bool = False
    """Its status is written through a path of its own alone."""
    is_custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


NAMESPACES = Resource(plural="namespaces", kind="Namespace", is_namespaced=False, has_status=True)
PODS = Resource(plural="pods", kind="Pod", has_status=True)
SERVICE_ACCOUNTS = Resource(plural="serviceaccounts", kind="ServiceAccount")
DEFINITIONS = Resource(
    group="apiextensions.k8s.io",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    is_namespaced=False,
    has_status=True,
)

_BUILT_IN = (
    NAMESPACES,
    PODS,
    SERVICE_ACCOUNTS,
    DEFINITIONS,
    Resource(plural="configmaps", kind="ConfigMap"),
    Resource(plural="secrets", kind="Secret"),
    Resource(plural="events", kind="Event"),
    Resource(plural="persistentvolumeclaims", kind="PersistentVolumeClaim", has_status=True),
    Resource(group="coordination.k8s.io", plural="leases", kind="Lease"),
)

WORKFLOW_DEFINITION: Mapping[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workflows.argoproj.io"},
    "spec": {
        "group": "argoproj.io",
        "names": {
            "kind": "Workflow",
            "listKind": "WorkflowList",
            "plural": "workflows",
            "singular": "workflow",
            "shortNames": ["wf"],
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "metadata": {"type": "object"},
                            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                        "required": ["metadata", "spec"],
                    }
                },
            }
        ],
    },
}
"""As Argo's own minimal one: everything is kept as it comes, and the status has no path of its own."""


class Catalogue:
    """The kinds that are served now."""

    def __init__(self) -> None:
        self._resources = {_place(resource): resource for resource in _BUILT_IN}

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._resources.get((group, version, plural))

    def all(self) -> Iterator[Resource]:
        yield from self._resources.values()

    def define(self, definition: Mapping[str, Any]) -> None:
        for resource in defined(definition):
            self._resources[_place(resource)] = resource

    def forget(self, definition: Mapping[str, Any]) -> None:
        for resource in defined(definition):
            self._resources.pop(_place(resource), None)


def defined(definition: Mapping[str, Any]) -> Iterator[Resource]:
    """The kind that a definition describes, in each version that it serves."""
    spec = definition["spec"]
    for version in spec["versions"]:
        if version["served"]:
            yield Resource(
                group=spec["group"],
                version=version["name"],
                plural=spec["names"]["plural"],
                kind=spec["names"]["kind"],
                is_namespaced=spec["scope"] == "Namespaced",
                has_status="status" in version.get("subresources", {}),
                is_custom=True,
            )


def _place(resource: Resource) -> tuple[str, str, str]:
    return resource.group, resource.version, resource.plural
