"""The metrics that a step wrote: from its artifact `mlpipeline-metrics` to the metrics service.

Errors never change a run's phase (workflow specification, section 16): what cannot be read is left out and logged.
"""

from __future__ import annotations

import asyncio
import io
import logging
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from shared import protojson
from shared.blobs import Blobs, NoSuchObject
from shared.bus import Bus
from shared.contracts.questions import REPORT_METRICS, ReportRequest
from shared.contracts.states import Metric, MetricFormat, RunId
from shared.database import Database
from shared.errors import MalformedRequest, Unavailable
from shared.subscriptions import until_applied

from . import store

_log = logging.getLogger(__name__)

ARTIFACT = "mlpipeline-metrics"
MOST_PER_RUN = 50
_LARGEST_FILE_BYTES = 1024 * 1024
_APPLIED_WITHIN_SECONDS = 5.0
_ASK_SECONDS = 5.0


class _FileMetric(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    node_id: str = ""
    number_value: float = 0.0
    format: MetricFormat = MetricFormat.UNSPECIFIED


class _File(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str = ""
    metrics: tuple[_FileMetric, ...] = ()


class StepMetrics:
    """Brings the metrics of finished steps to their owner, patiently."""

    def __init__(self, blobs: Blobs, bus: Bus, database: Database) -> None:
        """`database`: where the run's metrics come back to, so that they can be counted."""
        self._blobs = blobs
        self._bus = bus
        self._database = database
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def report(self, run_id: str, node_id: str, key: str) -> None:
        """Read the artifact and have its metrics recorded and applied. Waits out outages; repeating it is harmless.

        The reports of a run come one by one: each needs to know how many metrics there are.
        """
        async with self._turns.setdefault(run_id, asyncio.Lock()):
            await self._report_patiently(run_id, node_id, key)

    async def _report_patiently(self, run_id: str, node_id: str, key: str) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Unavailable), wait=wait_random_exponential(multiplier=0.1, max=10)
        ):
            with attempt:
                await self._report(run_id, node_id, key)

    async def _report(self, run_id: str, node_id: str, key: str) -> None:
        room = MOST_PER_RUN - await store.count_metrics_of_others(self._database, run_id, node_id)
        if room <= 0:
            _log.info("metrics of node %s are left out: run %s has enough", node_id, run_id)
            return
        try:
            packed = await self._blobs.get(key, largest_bytes=_LARGEST_FILE_BYTES)
            metrics = read(packed, node_id)
        except (NoSuchObject, Unreadable) as error:
            _log.info("metrics of node %s are left out: %s", node_id, error)
            return
        if not metrics:
            return
        request = ReportRequest(run_id=RunId(run_id), metrics=metrics[:room])
        answer = await self._bus.ask(REPORT_METRICS, request, within_seconds=_ASK_SECONDS)
        if answer.position:
            within = _APPLIED_WITHIN_SECONDS
            await until_applied(self._bus, ("run",), "metrics", answer.position, within_seconds=within)


class Unreadable(Exception):
    """The artifact is not a file of metrics; the text says why."""


def read(packed: bytes, node_id: str) -> tuple[Metric, ...]:
    """The metrics of a tgz that holds exactly one file of proto JSON. Raises Unreadable."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            members = archive.getmembers()
            if len(members) != 1 or not members[0].isfile():
                raise Unreadable("the archive must hold exactly one file")
            file = archive.extractfile(members[0])
            text = file.read(_LARGEST_FILE_BYTES + 1) if file is not None else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Unreadable(f"not a gzipped tar: {error}") from error
    if len(text) > _LARGEST_FILE_BYTES:
        raise Unreadable(f"more than {_LARGEST_FILE_BYTES} bytes")
    try:
        document = protojson.decode_strictly(text, _File)
    except MalformedRequest as error:
        raise Unreadable(error.message) from error
    return tuple(
        Metric(node_id=node_id, name=each.name, number=each.number_value, format=each.format)
        for each in document.metrics
    )


def artifacts_of(nodes: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Node id and object key of every finished node with metrics. Attempts count, the Retry above them does not.

    A Retry node carries a copy of its last attempt's outputs, and the same numbers are not reported twice.
    """
    found = []
    for node in nodes:
        if not node.get("finishedAt") or node.get("type") != "Pod":
            continue
        for artifact in (node.get("outputs") or {}).get("artifacts") or ():
            key = (artifact.get("s3") or {}).get("key")
            if artifact.get("name") == ARTIFACT and key:
                found.append((str(node["id"]), str(key)))
    return found
