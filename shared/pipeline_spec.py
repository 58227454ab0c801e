"""What a run and a recurring run are both made from (API specification, sections 6, 9.2 and 9.3).

A pipeline spec names a workflow by manifest, pipeline or version, and its parameters; resource references say whose
the record is. Runs and jobs take them by the same rules and refuse them in the same words. Pure: the standard
library, msgspec, `shared.errors` and `shared.lengths`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shared.errors import InvalidInput, NotFound
from shared.lengths import check_length

LARGEST_PARAMETERS_BYTES = 10_000
LONGEST_SHOWN = 16_384
"""Characters of a manifest in the words that refuse it."""


class EngineName(StrEnum):
    """What drives a run, or fires a job."""

    EMBEDDED = "embedded"
    """This installation's own controller, on its machine; its own scheduler."""
    ARGO = "argo"
    """Argo Workflows, told by this installation's own controllers; its own scheduler."""
    EXTERNAL = "external"
    """Another one, of which nothing is known here but what its agent reports (section 12)."""

    @property
    def is_told(self) -> bool:
        """Whether this installation tells it what to do; the other kind only tells."""
        return self is not EngineName.EXTERNAL


class ResourceType(StrEnum):
    """What a record may refer to. Sorted by value, references stand in the order that replies use."""

    EXPERIMENT = "EXPERIMENT"
    JOB = "JOB"
    NAMESPACE = "NAMESPACE"
    PIPELINE_VERSION = "PIPELINE_VERSION"


class Relationship(StrEnum):
    OWNER = "OWNER"
    CREATOR = "CREATOR"


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """As it was when the record was made, name included."""

    type: ResourceType
    id: str
    name: str
    relationship: Relationship


class AskedReference(msgspec.Struct, frozen=True, kw_only=True):
    """A resource reference as a client sent it: the words are not checked."""

    type: str
    id: str
    relationship: str


class Parameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str = ""
    value: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request for a run and one for a job have in common. Empty texts are absent."""

    name: str
    description: str = ""
    service_account: str = ""
    pipeline_id: str = ""
    manifest: str = ""
    parameters: tuple[Parameter, ...] = ()
    references: tuple[AskedReference, ...] = ()

    @property
    def version_id(self) -> str:
        """The version to run: the last one that is referred to as the creator."""
        ids = [each.id for each in self.references if (each.type, each.relationship) == ("PIPELINE_VERSION", "CREATOR")]
        return ids[-1] if ids else ""

    @property
    def experiment_id(self) -> str:
        ids = [each.id for each in self.references if (each.type, each.relationship) == ("EXPERIMENT", "OWNER")]
        return ids[0] if ids else ""


def check_lengths(asked: Asked) -> None:
    """Of what is looked up: nothing that exists has a longer id, and its owner could not be asked for one."""
    check_length("pipeline id", asked.pipeline_id)
    check_length("service account", asked.service_account)
    for reference in asked.references:
        check_length(f"id of the {reference.type}", reference.id)


def check_source(asked: Asked) -> None:
    """Section 9.3: one source, and only one."""
    if not (asked.manifest or asked.pipeline_id or asked.version_id):
        raise InvalidInput(
            "Please specify a pipeline by providing a (workflow manifest) or (pipeline id or/and pipeline version)."
        )
    if asked.manifest and (asked.pipeline_id or asked.version_id):
        raise InvalidInput(
            "Please don't specify a pipeline version or pipeline ID when you specify a workflow manifest."
        )


def check_parameters_size(parameters: tuple[Parameter, ...]) -> None:
    """The size is that of Go's compact JSON, where `<`, `>` and `&` take six bytes."""
    text = msgspec.json.encode(parameters)
    size = len(text) + 5 * sum(text.count(letter) for letter in (b"<", b">", b"&"))
    if parameters and size > LARGEST_PARAMETERS_BYTES:
        raise InvalidInput(f"The input parameter length exceed maximum size of {LARGEST_PARAMETERS_BYTES}.")


def not_a_workflow(manifest: str, cause: str) -> InvalidInput:
    # An answer says this four times.
    shown = manifest if len(manifest) <= LONGEST_SHOWN else f"{manifest[:LONGEST_SHOWN]}…"
    return InvalidInput(f"Invalid argo workflow format. Workflow: {shown}", cause=cause)


def not_our_kind(reason: str) -> InvalidInput:
    return InvalidInput(f"Failed to unmarshal workflow spec manifest. {reason}")


def unrecognized_parameter(name: str) -> InvalidInput:
    return InvalidInput(f"Unrecognized input parameter: {name}")


def invalid_workflow(name: str, reason: str) -> InvalidInput:
    return InvalidInput(f"Failed to validate workflow for ({name}): {reason}")


def manifest_gone(name: str) -> NotFound:
    return NotFound.of("WorkflowSpecManifest", name)


# The same in v1beta1 JSON.


class WireParameter(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    value: str = ""


class WireRuntimeValue(msgspec.Struct, frozen=True, kw_only=True):
    string_value: str | None = None


class WireRuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    parameters: dict[str, WireRuntimeValue] = {}
    pipeline_root: str = ""


class WirePipelineSpec(msgspec.Struct, frozen=True, kw_only=True):
    pipeline_id: str = ""
    pipeline_name: str = ""
    workflow_manifest: str = ""
    pipeline_manifest: str = ""
    parameters: tuple[WireParameter, ...] = ()
    runtime_config: WireRuntimeConfig | None = None


def check_generation(spec: WirePipelineSpec) -> None:
    """Fields of v2 pipelines are read, so that they can be refused by name."""
    config = spec.runtime_config
    if config is not None and (config.parameters or config.pipeline_root):
        if spec.parameters:
            raise InvalidInput("Please don't specify both parameters and runtime config.")
        raise InvalidInput("A runtime config belongs to a v2 pipeline, which is not supported.")
    if spec.pipeline_manifest:
        if spec.workflow_manifest:
            raise InvalidInput("Please don't specify both workflow manifest and pipeline manifest.")
        raise InvalidInput("A pipeline manifest belongs to a v2 pipeline, which is not supported.")
