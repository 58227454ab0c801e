"""v1beta1 JSON of experiments (API specification, section 7), to and from the domain."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum

import msgspec

from shared.protojson import named
from shared.references import WireReference

from .domain import Experiment, StorageState


@named("Experiment.StorageState")
class WireStorageState(IntEnum):
    """An experiment's zero value is UNSPECIFIED, so that AVAILABLE shows in replies."""

    STORAGESTATE_UNSPECIFIED = 0
    STORAGESTATE_AVAILABLE = 1
    STORAGESTATE_ARCHIVED = 2


class WireExperiment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str = ""
    name: str = ""
    description: str = ""
    created_at: datetime | None = None
    resource_references: tuple[WireReference, ...] = ()
    storage_state: WireStorageState = WireStorageState.STORAGESTATE_UNSPECIFIED


class WireExperiments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    experiments: tuple[WireExperiment, ...] = ()
    total_size: int = 0
    next_page_token: str = ""


def from_domain(experiment: Experiment) -> WireExperiment:
    return WireExperiment(
        id=experiment.id,
        name=experiment.name,
        description=experiment.description,
        created_at=experiment.created_at,
        storage_state=(
            WireStorageState.STORAGESTATE_ARCHIVED
            if experiment.storage_state is StorageState.ARCHIVED
            else WireStorageState.STORAGESTATE_AVAILABLE
        ),
    )
