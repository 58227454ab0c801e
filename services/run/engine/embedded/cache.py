"""Which executions are the same, so that one need not happen again (specification §15, "Step cache").

Two steps are the same when their containers and all that goes in and comes out agree after every name is replaced: by
a key over exactly that. What the environment holds elsewhere (secrets, claims, clocks) is not asked; who depends on it
says `P0D`. Knows neither who keeps the outputs nor where their artifacts lie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from services.run.engine.embedded.orders import PlacedArtifact, Process, StepKind, StepOrder

_ENABLED_LABEL = "pipelines.kubeflow.org/cache_enabled"
_WANTED_LABEL = "pipelines.kubeflow.org/enable_caching"
_SDK_LABEL = "pipelines.kubeflow.org/pipeline-sdk-type"
_V2_COMPONENT = "pipelines.kubeflow.org/v2_component"
_STALENESS_ANNOTATION = "pipelines.kubeflow.org/max_cache_staleness"
_TFX_PROGRAM = "tfx/orchestration/kubeflow/container_entrypoint.py"

_DURATION = re.compile(
    r"P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?=\d)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_SECONDS = {
    "years": 365 * 86400,
    "months": 30 * 86400,
    "weeks": 7 * 86400,
    "days": 86400,
    "hours": 3600,
    "minutes": 60,
    "seconds": 1,
}
_LONGEST_SECONDS = 1000 * 365 * 86400
"""Beyond it a date cannot be computed with, and nothing kept is as old."""


class Cacheable(msgspec.Struct, frozen=True, kw_only=True):
    """An execution whose outputs may be an earlier one's, and may become a later one's."""

    key: str
    """SHA-256, hex. The same for the same execution."""
    max_age_seconds: float | None = None
    """How long ago the earlier one may have ended; None: ever."""


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a step left when it succeeded."""

    parameters: Mapping[str, str] = msgspec.field(default_factory=dict)
    artifacts: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Name → key in the object store."""
    result: str | None = None
    """None where nobody asked what the step printed."""


class StepCache(Protocol):
    """Who remembers outputs. Both calls raise `shared.errors.Unavailable`; a step runs without them."""

    async def find(self, key: str, *, max_age_seconds: float | None) -> Kept | None: ...

    async def keep(self, key: str, kept: Kept, *, run_id: str) -> None:
        """From now on instead of what there was. It is forgotten with the run."""


def cacheable(order: StepOrder) -> Cacheable | None:
    """None for a step that has to run each time.

    Besides those that the specification names: a step of which `enable_caching` says so, one with a staleness that
    cannot be read, and one that says itself where an artifact goes, because another may write there later.
    """
    if order.labels.get(_ENABLED_LABEL) != "true" or order.labels.get(_WANTED_LABEL) == "false":
        return None
    if order.kind is not StepKind.CONTAINER or _is_v2(order) or _is_tfx(order):
        return None
    if any(wanted.s3 for wanted in order.output_artifacts):
        return None
    staleness = order.annotations.get(_STALENESS_ANNOTATION)
    if staleness is None:
        return Cacheable(key=_key(order))
    max_age_seconds = duration_seconds(staleness)
    return Cacheable(key=_key(order), max_age_seconds=max_age_seconds) if max_age_seconds else None


def _is_v2(order: StepOrder) -> bool:
    return "true" in (order.annotations.get(_V2_COMPONENT), order.labels.get(_V2_COMPONENT))


def _is_tfx(order: StepOrder) -> bool:
    programs = order.main.command[-1:]
    return "tfx" in order.labels.get(_SDK_LABEL, "") or any(each.endswith(_TFX_PROGRAM) for each in programs)


def duration_seconds(text: str) -> float | None:
    """Seconds of an ISO 8601 duration, a month as 30 days and a year as 365; None for what is none."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for unit, number in match.groupdict(default="0").items())
    return min(seconds, _LONGEST_SECONDS)


def _key(order: StepOrder) -> str:
    main = order.main
    document = {
        "container": {
            **_container(main, "image", "command", "args", "env"),
            "volumeMounts": main.mounts,
            # Not in the original's key, and absent from what SDKs compile: without them two programs may look alike.
            **_container(main, "envFrom", "workingDir"),
        },
        "inputs": {"parameters": order.input_parameters, "artifacts": [*map(_placed, order.input_artifacts)]},
        "outputs": {"parameters": order.output_parameters, "artifacts": order.output_artifacts},
        "volumes": order.volumes,
        "initContainers": order.init,
        "sidecars": order.sidecars,
    }
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


def _container(process: Process, *fields: str) -> dict[str, Any]:
    said = msgspec.to_builtins(process)
    return {field: said[field] for field in fields if field in said}


def _placed(artifact: PlacedArtifact) -> Mapping[str, Any]:
    """Without the address of the object store, which is not the same after each start of this machine's own."""
    said: dict[str, Any] = msgspec.to_builtins(artifact)
    return said if artifact.s3 is None else {**said, "s3": artifact.s3.get("key")}
