"""What an experiment is, and what is refused."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NewType

import msgspec

from shared.errors import AlreadyExists, InvalidInput, NotFound, layer
from shared.lengths import check_length

ExperimentId = NewType("ExperimentId", str)

DEFAULT_NAME = "Default"
DEFAULT_DESCRIPTION = "All runs created without specifying an experiment will be grouped here."


class StorageState(StrEnum):
    AVAILABLE = "available"
    ARCHIVED = "archived"


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    id: ExperimentId
    name: str
    description: str
    storage_state: StorageState
    version: int
    created_by: str
    created_at: datetime


def check_name(name: str) -> None:
    """API specification, section 7, E1."""
    with layer("Validate experiment request failed."):
        if not name:
            raise InvalidInput("Experiment name is empty. Please specify a valid experiment name.")
        check_length("experiment name", name)


def unknown(experiment_id: str) -> NotFound:
    return NotFound.of("Experiment", experiment_id)


def name_taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"Failed to create a new experiment. The name {name} already exists. Please specify a new name."
    )
