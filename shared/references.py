"""Resource references as v1beta1 JSON writes them (API specification, section 6): who owns, who created.

Runs, jobs, versions and experiments share the shape; which types each accepts is the service's rule.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class ResourceType(IntEnum):
    """The numbers are the wire's: clients send either the name or the number."""

    UNKNOWN_RESOURCE_TYPE = 0
    EXPERIMENT = 1
    JOB = 2
    PIPELINE = 3
    PIPELINE_VERSION = 4
    NAMESPACE = 5


class Relationship(IntEnum):
    UNKNOWN_RELATIONSHIP = 0
    OWNER = 1
    CREATOR = 2


class WireReferenceKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: ResourceType = ResourceType.UNKNOWN_RESOURCE_TYPE
    id: str = ""


class WireReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`name` is ignored in requests and filled by the server."""

    key: WireReferenceKey | None = None
    name: str = ""
    relationship: Relationship = Relationship.UNKNOWN_RELATIONSHIP
