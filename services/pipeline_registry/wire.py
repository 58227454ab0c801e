"""v1beta1 JSON of pipelines and versions (API specification, section 8.1), from the domain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from shared.references import Relationship, ResourceType, WireReference, WireReferenceKey

from .domain import Described, Parameter, Version


class WireParameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str = ""
    value: str = ""


class WireUrl(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a package is to be fetched. Never in an answer."""

    pipeline_url: str = ""


class WireVersion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str = ""
    name: str = ""
    created_at: datetime | None = None
    parameters: tuple[WireParameter, ...] = ()
    code_source_url: str = ""
    package_url: WireUrl | None = None
    resource_references: tuple[WireReference, ...] = ()
    description: str = ""


class WireVersions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    versions: tuple[WireVersion, ...] = ()
    next_page_token: str = ""
    total_size: int = 0


class WirePipeline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str = ""
    created_at: datetime | None = None
    name: str = ""
    description: str = ""
    parameters: tuple[WireParameter, ...] = ()
    url: WireUrl | None = None
    error: str = ""
    default_version: WireVersion | None = None
    resource_references: tuple[WireReference, ...] = ()
    """Only in requests; there is one namespace, whatever they say."""


class WirePipelines(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pipelines: tuple[WirePipeline, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


class WireTemplate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    template: str = ""


class UploadRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The query of both upload routes."""

    name: str = ""
    description: str = ""
    pipelineid: str = ""


class UploadRefusal(msgspec.Struct, frozen=True, kw_only=True):
    """API specification, section 3.3."""

    error_message: str
    error_details: str


def from_described(described: Described) -> WirePipeline:
    pipeline, default_version = described.pipeline, described.default_version
    return WirePipeline(
        id=pipeline.id,
        created_at=pipeline.created_at,
        name=pipeline.name,
        description=pipeline.description,
        parameters=_from_parameters(pipeline.parameters),
        default_version=None if default_version is None else from_version(default_version),
    )


def from_version(version: Version) -> WireVersion:
    """The reference to its pipeline carries no name."""
    owner = WireReference(
        key=WireReferenceKey(type=ResourceType.PIPELINE, id=version.pipeline_id), relationship=Relationship.OWNER
    )
    return WireVersion(
        id=version.id,
        name=version.name,
        created_at=version.created_at,
        parameters=_from_parameters(version.parameters),
        code_source_url=version.code_source_url,
        resource_references=(owner,),
        description=version.description,
    )


def url_of(given: WireUrl | None) -> str:
    return "" if given is None else given.pipeline_url


def owner_of(version: WireVersion) -> str:
    """The pipeline that a new version says it belongs to: the last one counts. Empty where it says none."""
    keys = (
        reference.key
        for reference in reversed(version.resource_references)
        if reference.relationship is Relationship.OWNER
    )
    return next((key.id for key in keys if key is not None and key.type is ResourceType.PIPELINE), "")


def _from_parameters(parameters: Iterable[Parameter]) -> tuple[WireParameter, ...]:
    return tuple(WireParameter(name=parameter.name, value=parameter.value or "") for parameter in parameters)
