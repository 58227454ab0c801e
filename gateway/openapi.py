"""One OpenAPI document of the whole API, merged from what the services publish.

Each service describes its own operations; here they meet, with what is the gateway's: its health answers, how to prove
who one is, and the address that the client sees. The part of a service that does not answer stays as it was; one that
never answered is missed, because a document with holes would be taken for the whole.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.table import Owner
from shared.errors import Refusal
from shared.openapi import HOST

FRESH_SECONDS: Final = 10.0

_TAGS: Final = (
    "ExperimentService",
    "PipelineUploadService",
    "PipelineService",
    "RunService",
    "JobService",
    "EventService",
    "HealthzService",
    "AuthService",
    "ReportService",
    "VisualizationService",
)
_INTRODUCTION: Final = Path(__file__).parent / "docs" / "introduction.md"
_STATUS: Final = {"$ref": "#/components/schemas/apiStatus"}

Document = dict[str, Any]
_log = logging.getLogger(__name__)


class Description:
    """The document, put together when somebody asks and kept for a moment."""

    def __init__(
        self,
        owners: Sequence[Owner],
        part_of: Callable[[Owner], Awaitable[bytes]],
        *,
        needs_token: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owners = owners
        self._part_of = part_of
        self._needs_token = needs_token
        self._clock = clock
        self._parts: dict[Owner, Document] = {}
        self._merged = b""
        self._merged_at: float | None = None
        self._merging = asyncio.Lock()

    async def document(self, origin: str | None) -> bytes:
        """The document for a client that sees us at `origin`. Raises Unavailable."""
        async with self._merging:
            if self._merged_at is None or self._clock() - self._merged_at > FRESH_SECONDS:
                for owner in self._owners:
                    await self._refresh(owner)
                self._merged = msgspec.json.encode(merge(self._parts, needs_token=self._needs_token))
                self._merged_at = self._clock()
        return self._merged if origin is None else self._merged.replace(HOST.encode(), origin.encode("ascii"))

    async def _refresh(self, owner: Owner) -> None:
        try:
            self._parts[owner] = msgspec.json.decode(await self._part_of(owner), type=Document)
        except Refusal as refusal:
            if owner not in self._parts:
                raise
            _log.warning("the description of %s stays as it was: %s", owner.value, refusal)


def merge(parts: Mapping[Owner, Document], *, needs_token: bool) -> Document:
    """Of two schemas of one name the first stays: while services are replaced, two versions of them may be seen."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for owner, part in parts.items():
        for path, operations in part.get("paths", {}).items():
            paths.setdefault(path, {}).update(operations)
        for name, schema in part.get("components", {}).get("schemas", {}).items():
            if schemas.setdefault(name, schema) != schema:
                _log.error("%s describes %s otherwise than another service", owner.value, name)
    paths.update(_OURS)
    schemas["apiGetHealthzResponse"] = _HEALTHZ_ANSWER
    bearer: list[dict[str, list[str]]] = [{"Bearer": []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kubeflow Pipelines API, served by Headrace",
            "version": "v1beta1",
            "description": _INTRODUCTION.read_text(),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in _TAGS],
        "security": bearer if needs_token else [{}, *bearer],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "Bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `headrace token create`, or one of the identity provider's.",
                }
            },
        },
    }


_HEALTHZ: Final[Document] = {
    "operationId": "GetHealthz",
    "tags": ["HealthzService"],
    "summary": "Tells that the API is there, and its version.",
    "description": f"JSON, announced as plain text.\n\n```sh\ncurl -sS {HOST}/apis/v1beta1/healthz\n```",
    "security": [{}],
    "responses": {
        "200": {
            "description": "Done.",
            "content": {"text/plain": {"schema": {"$ref": "#/components/schemas/apiGetHealthzResponse"}}},
        },
        "default": {"description": "Refused, or failed.", "content": {"application/json": {"schema": _STATUS}}},
    },
}
_HEALTHZ_ANSWER: Final[Document] = {
    "type": "object",
    "properties": {
        "commit_sha": {"type": "string"},
        "tag_name": {"type": "string"},
        "multi_user": {"type": "boolean"},
    },
}


def _told_in_text(operation_id: str, path: str, summary: str, *, is_open: bool = True) -> Document:
    """An operation about the gateway's own process."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    answers: Document = {"200": {"description": "Done.", "content": text}}
    if is_open:
        answers["503"] = {"description": "No; the text says why.", "content": text}
    operation: Document = {
        "operationId": operation_id,
        "tags": ["HealthzService"],
        "summary": summary,
        "description": f"```sh\ncurl -sS {HOST}{path}\n```",
        "responses": {
            **answers,
            "default": {"description": "Refused, or failed.", "content": {"application/json": {"schema": _STATUS}}},
        },
    }
    return operation | {"security": [{}]} if is_open else operation


_OURS: Final[Document] = {
    "/apis/v1beta1/healthz": {"get": _HEALTHZ},
    "/livez": {"get": _told_in_text("GetLiveness", "/livez", "Tells whether the gateway's process is of use.")},
    "/readyz": {"get": _told_in_text("GetReadiness", "/readyz", "Tells whether the gateway takes requests.")},
    "/startupz": {"get": _told_in_text("GetStartup", "/startupz", "Tells whether the gateway has been ready once.")},
    "/metrics": {
        "get": _told_in_text("GetMetrics", "/metrics", "Shows the gateway's figures to Prometheus.", is_open=False)
    },
}
