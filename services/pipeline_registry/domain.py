"""What pipelines and their versions are, and what is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NewType

import msgspec

from shared.errors import AlreadyExists, InvalidInput, NotFound

PipelineId = NewType("PipelineId", str)
VersionId = NewType("VersionId", str)

LONGEST_NAME_BYTES: Final = 100
LARGEST_PACKAGE_BYTES: Final = 32 * 1024 * 1024


class Parameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A declared parameter; without a default its value is None."""

    name: str
    value: str | None = None


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in the bytes that a client brought."""

    text: str
    """As the client wrote it, after unpacking."""
    manifest: str
    """The workflow in one canonical JSON form. Its SHA-256 is the identity of what will run."""
    parameters: tuple[Parameter, ...]


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    id: PipelineId
    name: str
    description: str
    parameters: tuple[Parameter, ...]
    """Those of the first version, whatever the default is (API specification, section 8.1)."""
    default_version_id: VersionId | None
    revision: int
    """Orders the pipeline's facts."""
    created_at: datetime


class Version(msgspec.Struct, frozen=True, kw_only=True):
    id: VersionId
    pipeline_id: PipelineId
    name: str
    description: str
    code_source_url: str
    parameters: tuple[Parameter, ...]
    manifest_digest: str
    created_at: datetime


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline as clients see it."""

    pipeline: Pipeline
    default_version: Version | None


def check_name(name: str) -> None:
    """API specification, section 8.4."""
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise InvalidInput(f"Pipeline name too long. Support maximum length of {LONGEST_NAME_BYTES}")


def check_size(size_bytes: int) -> None:
    """API specification, section 1.4. The largest size is allowed itself."""
    if size_bytes > LARGEST_PACKAGE_BYTES:
        raise InvalidInput(f"File size too large. Maximum supported size: {LARGEST_PACKAGE_BYTES}")


def unparsable(cause: str) -> InvalidInput:
    return InvalidInput("Failed to parse the workflow template.", cause=cause)


def unknown_pipeline(pipeline_id: str) -> NotFound:
    return NotFound.of("Pipeline", pipeline_id)


def unknown_version(version_id: str) -> NotFound:
    return NotFound.of("Version", version_id)


def foreign_version() -> InvalidInput:
    return InvalidInput("pipeline ID should be parent of pipeline version.")


def pipeline_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(f"Failed to create a new pipeline. The name {name} already exist. Please specify a new name.")


def version_name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"Failed to create a new pipeline version. The name {name} already exist. Please specify a new name."
    )
