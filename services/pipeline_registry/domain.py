"""What pipelines and their versions are, and what is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NewType

import msgspec

from shared.addresses import is_of_the_web
from shared.errors import AlreadyExists, InvalidInput, NotFound
from shared.lengths import check_length

PipelineId = NewType("PipelineId", str)
VersionId = NewType("VersionId", str)

LONGEST_NAME_BYTES: Final = 100
LARGEST_PACKAGE_BYTES: Final = 32 * 1024 * 1024


class NameTaken(AlreadyExists):
    """Uploads answer it with a status of its own."""


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
    created_by: str
    created_at: datetime


class Version(msgspec.Struct, frozen=True, kw_only=True):
    id: VersionId
    pipeline_id: PipelineId
    name: str
    description: str
    code_source_url: str
    parameters: tuple[Parameter, ...]
    manifest_digest: str
    created_by: str
    created_at: datetime


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline as clients see it."""

    pipeline: Pipeline
    default_version: Version | None


def check_name(name: str) -> None:
    """API specification, section 8.4."""
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise InvalidInput(f"Pipeline name too long. Support maximum length of {LONGEST_NAME_BYTES}")


def check_version_name(name: str) -> None:
    """Of a version made from a URL, which may be called by nothing at all (API specification, section 8.4)."""
    check_length("version name", name)


def check_size(size_bytes: int, largest_bytes: int = LARGEST_PACKAGE_BYTES) -> None:
    """API specification, section 1.4. The largest size is allowed itself."""
    if size_bytes > largest_bytes:
        raise InvalidInput(
            f"File size too large. Maximum supported size: {largest_bytes}",
            cause="the setting HEADRACE_LARGEST_PACKAGE_BYTES says so",
        )


def check_url(url: str) -> None:
    """API specification, section 8.5: of the kinds of URL, those of the web."""
    if not url:
        raise InvalidInput("Pipeline URL is empty. Please specify a valid URL.")
    if not is_of_the_web(url):
        raise InvalidInput(f"Invalid Pipeline URL {url}. Please specify a valid URL")


def last_element(url: str) -> str:
    """What a package from the URL is called: its last path element with everything that follows."""
    return url.rstrip("/").rpartition("/")[2]


def unparsable(cause: str) -> InvalidInput:
    return InvalidInput("Failed to parse the workflow template.", cause=cause)


def unknown_pipeline(pipeline_id: str) -> NotFound:
    return NotFound.of("Pipeline", pipeline_id)


def unknown_version(version_id: str) -> NotFound:
    return NotFound.of("Version", version_id)


def foreign_version() -> InvalidInput:
    return InvalidInput("pipeline ID should be parent of pipeline version.")


def missing_pipeline() -> InvalidInput:
    return InvalidInput("Create pipeline version failed due to missing pipeline id")


def pipeline_name_taken(name: str) -> NameTaken:
    return NameTaken(f"Failed to create a new pipeline. The name {name} already exist. Please specify a new name.")


def version_name_taken(name: str) -> NameTaken:
    return NameTaken(
        f"Failed to create a new pipeline version. The name {name} already exist. Please specify a new name."
    )
