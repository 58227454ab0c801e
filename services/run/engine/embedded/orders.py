"""Orders: everything a step process must be told, with every name resolved (specification §9).

An order is complete: whoever carries it out needs neither the workflow nor the other nodes. What only the place of
execution knows (values of secrets, addresses of hosts) stays structured in `env` and `env_from`; once those values are
there, `expand_variables` finishes command, arguments and env values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from services.run.engine.embedded.manifest import EnvFrom, EnvVar, Resource, ValueFrom, Volume, VolumeMount


class StepKind(Enum):
    CONTAINER = "container"
    SCRIPT = "script"
    RESOURCE = "resource"


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Process(_Part, frozen=True, kw_only=True):
    """One container of the step: the main one, an init container or a sidecar."""

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    """Empty: the image's own entrypoint, which only an image map can tell."""
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    """Later entries win; a value may refer to earlier ones."""
    env_from: tuple[EnvFrom, ...] = ()
    working_dir: str = ""
    mounts: tuple[VolumeMount, ...] = ()
    memory_bytes: int | None = None
    """The most memory it may have; None: all there is."""
    cpu_millis: int | None = None
    """The most processor time it may have, in thousandths of a processor."""


class PlacedArtifact(_Part, frozen=True, kw_only=True):
    """A file or directory to be put at `path` before the step starts; one of raw, s3 and http says what it is."""

    name: str
    path: str
    raw: str | None = None
    s3: Mapping[str, Any] | None = None
    http: Mapping[str, Any] | None = None
    """`url`, and `headers` of `name` and `value`."""
    mode: int | None = None
    archive: Mapping[str, Any] | None = None
    """`{"none": {}}`: the object is placed as it is, even if it is a tar."""


class WantedParameter(_Part, frozen=True, kw_only=True):
    """An output parameter: a literal `value` needs no collecting; else `value_from` says where the text is."""

    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class WantedArtifact(_Part, frozen=True, kw_only=True):
    name: str
    path: str
    optional: bool = False
    archive: Mapping[str, Any] | None = None
    s3: Mapping[str, Any] | None = None
    """An explicit destination; its `key` is used as written."""
    owns_key: bool = False
    """Nobody else stores below that key."""
    mode: int | None = None


class StepOrder(_Part, frozen=True, kw_only=True):
    """One execution of a leaf template. `node_id` is the step's identity: the same id is the same execution."""

    node_id: str
    node_name: str
    attempt: int = 0
    """The number of the attempt under a Retry node; 0 also where there is none."""
    template_name: str
    kind: StepKind
    main: Process
    init: tuple[Process, ...] = ()
    sidecars: tuple[Process, ...] = ()
    source: str | None = None
    """The program of a script: written to a file whose path is appended to command and args."""
    resource: Resource | None = None
    input_parameters: Mapping[str, str] = msgspec.field(default_factory=dict)
    """What the template was called with. It is filled in already; here it tells two calls apart."""
    input_artifacts: tuple[PlacedArtifact, ...] = ()
    output_parameters: tuple[WantedParameter, ...] = ()
    output_artifacts: tuple[WantedArtifact, ...] = ()
    needs_result: bool = False
    """Whether anyone asks for what the step prints (`outputs.result`)."""
    volumes: tuple[Volume, ...] = ()
    deadline_seconds: int | None = None
    """Wall clock from the start of this attempt; the reconciler orders the kill itself, too."""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    service_account: str = ""


_USUAL_COMPRESSION = 6


def compression_level(archive: Mapping[str, Any] | None) -> int:
    """How hard an artifact is packed, from 0 to 9. Raises ValueError where the template says something else."""
    tar = (archive or {}).get("tar")
    level = tar.get("compressionLevel") if isinstance(tar, Mapping) else None
    if level is None or level == -1:
        return _USUAL_COMPRESSION
    if not isinstance(level, int) or not 0 <= level <= 9:
        raise ValueError(f"archive.tar.compressionLevel '{level}' is not an integer from 0 to 9")
    return level


_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")


def expand_variables(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` from the environment, as Kubernetes does: `$$` is a `$`, and unknown names stay as they are.

    That a shell's `$(mktemp)` survives depends on the last rule; `$$(NAME)` becomes `$(NAME)`.
    """

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] is None else env.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text) if "$" in text else text
