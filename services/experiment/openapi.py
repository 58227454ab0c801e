"""What the experiment service publishes about its operations."""

from __future__ import annotations

from typing import Final

from shared.listing import ListRequest
from shared.openapi import HOST, Operation, captured

from . import store
from .wire import WireExperiment, WireExperiments, WireStorageState

_TAG: Final = "ExperimentService"
_COLLECTION: Final = "/apis/v1beta1/experiments"
_NEW: Final = captured("EXPERIMENT", f"""curl -sS {HOST}{_COLLECTION} -d '{{"name":"docs-'$(date +%s%N)'"}}'""") + "\n"
_ONE: Final = f"{HOST}{_COLLECTION}/$EXPERIMENT"

NAMES: Final = {
    WireExperiments: "apiListExperimentsResponse",
    WireStorageState: "apiExperimentStorageState",
}

OPERATIONS: Final = (
    Operation(
        id="CreateExperiment",
        method="POST",
        path=_COLLECTION,
        tag=_TAG,
        summary="Creates an experiment.",
        notes="A name can be given once: a second experiment of the same name is refused with 409.",
        may_be_repeated=True,
        body=WireExperiment,
        body_example={"name": "nightly training", "description": "Everything that is trained after midnight."},
        answer=WireExperiment,
        example=f"""curl -sS {HOST}{_COLLECTION} -d '{{"name":"nightly-'$(date +%s%N)'"}}'""",
    ),
    Operation(
        id="ListExperiment",
        method="GET",
        path=_COLLECTION,
        tag=_TAG,
        summary="Lists experiments.",
        query=ListRequest,
        query_without=frozenset({"resource_key"}),
        lists=store.LISTING,
        answer=WireExperiments,
        example=f"curl -sS '{HOST}{_COLLECTION}?page_size=5&sort_by=created_at%20desc'",
    ),
    Operation(
        id="GetExperiment",
        method="GET",
        path=f"{_COLLECTION}/{{id}}",
        tag=_TAG,
        summary="Shows an experiment.",
        answer=WireExperiment,
        example=f"{_NEW}curl -sS {_ONE}",
    ),
    Operation(
        id="DeleteExperiment",
        method="DELETE",
        path=f"{_COLLECTION}/{{id}}",
        tag=_TAG,
        summary="Deletes an experiment; its runs and jobs stay.",
        example=f"{_NEW}curl -sS -X DELETE {_ONE}",
    ),
    Operation(
        id="ArchiveExperiment",
        method="POST",
        path=f"{_COLLECTION}/{{id}}:archive",
        tag=_TAG,
        summary="Archives an experiment with its runs, and disables its jobs.",
        example=f"{_NEW}curl -sS -X POST {_ONE}:archive",
    ),
    Operation(
        id="UnarchiveExperiment",
        method="POST",
        path=f"{_COLLECTION}/{{id}}:unarchive",
        tag=_TAG,
        summary="Brings an experiment back. Its runs stay archived and its jobs disabled.",
        example=f"{_NEW}curl -sS -X POST {_ONE}:archive\ncurl -sS -X POST {_ONE}:unarchive",
    ),
)
