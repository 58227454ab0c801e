"""The port, over a cluster: workflows are objects that Argo's controller carries out, and their states come by a watch.

Nothing is kept that the cluster and the records do not know. One entry per workflow remembers what was said of it last,
so that only what changes is reported; of what is over it holds no more than its name. Whatever is lost here (a crash, a
shard that went to another controller) is found again by listing, and by what the controller submits again.

One observation of a workflow is out at a time: what happens until it is recorded is told at once by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from services.run.engine import About, NameTaken, NodeId, Observation, Submission, WorkflowName
from services.run.engine.shards import ALL, shard_of
from services.run.engine.turns import LOOK_SECONDS
from shared.errors import Unavailable
from shared.telemetry import continue_trace

from . import shapes, watching
from .cluster import AlreadyExists, Cluster, Conflict, Missing, Rejected, TooLarge, pauses
from .submitting import Queue, Submitting

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
"""How many requests of a kind are under way at a time."""
_MOST_HELD_BYTES: Final = 64 * 1024 * 1024
"""Of states that are not told yet; what is listed waits for room."""
_SWEEP_SECONDS: Final = 60.0
"""Between two looks at what has outlived its time, of which there may be many."""
_CHECK_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.2
_MOST_CONFLICTS: Final = 4
"""Of one that is to be created or to go on; then it is put off."""
_PUT_OFF_SECONDS: Final = 3.0
_TERMINATED: Final = "terminated"


class _Stage(Enum):
    WAITING = "waiting"
    STARTING = "starting"
    """It is its turn; whether there is an object will be known."""
    LIVE = "live"
    """There is an object."""
    OVER = "over"
    """The end is recorded, or it is erased: events of the object are only its echoes."""


class _Entry:
    """What is known here of one workflow."""

    def __init__(self, name: WorkflowName, run_id: str, namespace: str, attempt: int) -> None:
        self.name = name
        self.run_id = run_id
        self.namespace = namespace
        self.attempt = attempt
        self.stage = _Stage.WAITING
        self.submission: Submission | None = None
        """Until there is an object; without its workflow."""
        self.packed = b""
        """The workflow: a queue may be long, and a manifest is large."""
        self.lock = asyncio.Lock()
        """Held while the cluster is told of it."""
        self.was_given = False
        """It has been its turn before: there may be an object that nobody has seen."""
        self.is_gone = False
        """Given up or erased: whoever waited to do something with it does nothing."""
        self.is_erased = False
        self.is_new_here = False
        """Its record may know nodes that the object does not have."""
        self.is_on_record = False
        """It has been told that there is an object."""
        self.seen: shapes.Seen | None = None
        """The latest state that is not told yet."""
        self.word: Observation | None = None
        """What is told beside: a place in the queue, a refusal, a loss."""
        self.told: tuple[Any, ...] = ()
        self.nodes: dict[str, int] = {}
        """Node id → the hash of what was told of it last."""
        self.outstanding: Observation | None = None
        self.is_queued = False
        """For whoever observes."""
        self.is_ending = False
        """The last observation was, or will be, the end."""
        self.has_object = False
        self.version = ""
        """Of the object in its final state."""

    def is_of(self, metadata: shapes.Metadata) -> bool:
        """Whether the object stands in this one's place, and for its run."""
        return (self.namespace, self.run_id) == (metadata.namespace, metadata.run_id)

    @property
    def is_before_object(self) -> bool:
        return self.stage in (_Stage.WAITING, _Stage.STARTING)


class ArgoEngine:
    """Drives the workflows of some shards. `run` must be running for anything to happen."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespaces: tuple[str, ...] = (),
        limits: Submitting | None = None,
        ttl_seconds: float = 86_400.0,
        most_workflow_bytes: int,
        holds: Callable[[int], bool] | None = None,
    ) -> None:
        """`namespaces`: where workflows are; none: all over the cluster.

        `holds`: whether a shard is ours at this moment, which `own` may tell late, if this process was stopped. The
        cluster is asked for nothing that could be wrong by then. By default what is owned is held.

        `ttl_seconds`: how long an object outlives the record of its end, for logs of its pods and those who look at
        Argo itself.
        """
        self.installation = ""
        """What the objects have to say that are ours; nothing: all that Headrace has made. It is said before `run`."""
        self._cluster = cluster
        self._scopes = namespaces or ("",)
        self._ttl = timedelta(seconds=ttl_seconds)
        self._most_workflow_bytes = most_workflow_bytes
        self._holds = holds or (lambda _: True)
        self._shards = ALL
        self._entries: dict[WorkflowName, _Entry] = {}
        self._queue = Queue(limits or Submitting(), now=time.monotonic())
        self._told: asyncio.Queue[_Entry] = asyncio.Queue()
        self._listed: set[str] = set()
        """The scopes of which everything is known."""
        self._all_listed = asyncio.Event()
        self._is_redivided = asyncio.Event()
        self._is_due = asyncio.Event()
        self._marking = asyncio.Semaphore(_AT_ONCE)
        self._held_bytes = 0
        self._is_lighter = asyncio.Event()
        self._chores: set[asyncio.Task[None]] = set()
        self._trouble = ""
        self._swept_at: float | None = None
        self._reopened: set[str] = set()
        """The objects that somebody else was seen to have go on, at the last look."""
        self._checked_at: float | None = None

    @property
    def queued(self) -> int:
        """How many workflows wait to be given to the cluster."""
        return len(self._queue)

    # The port

    async def submit(self, submission: Submission) -> None:
        """Queue it. What the cluster makes of it is observed: a name that another's object has, or a workflow that is
        too large or is refused, ends the run as an Error."""
        name = submission.workflow_name
        entry = self._entries.get(name)
        if entry is not None and not entry.is_erased:
            if entry.run_id != submission.run_id:
                raise NameTaken(name)
            if entry.attempt >= submission.attempt:
                return
        if entry is not None:
            self._forget(entry)
        namespace = shapes.namespace_of(submission)
        entry = self._entries[name] = _Entry(name, submission.run_id, namespace, submission.attempt)
        entry.submission = msgspec.structs.replace(submission, workflow={})
        entry.packed = zlib.compress(msgspec.json.encode(submission.workflow), level=1)
        entry.is_on_record = submission.is_taken
        if self._scopes != ("",) and namespace not in self._scopes:
            self._refuse(entry, f"the namespace {namespace} is none whose workflows are driven")
        elif submission.is_terminating and submission.attempt == 1 and not _has_begun(submission):
            self._end_unbegun(entry)
        else:
            self._put_in_queue(entry, submission)

    async def terminate(self, workflow_name: WorkflowName) -> None:
        entry = self._entries.get(workflow_name)
        if entry is None:
            for metadata in await self._find(fields=f"metadata.name={workflow_name}"):
                await self._stop(metadata.namespace, metadata.name, metadata.run_id)
            return
        async with entry.lock:
            if entry.is_gone or entry.is_ending or entry.stage is _Stage.OVER:
                return
            if not entry.is_before_object or await self._is_there(entry):
                await self._stop(entry.namespace, entry.name, entry.run_id)
            else:
                self._end_unbegun(entry)

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        def is_meant(attempt: int) -> bool:
            return up_to_attempt is None or attempt <= up_to_attempt

        for entry in [each for each in self._entries.values() if each.run_id == run_id and is_meant(each.attempt)]:
            self._let_go(entry)
            entry.stage, entry.is_gone, entry.is_erased = _Stage.OVER, True, True
            async with entry.lock:
                pass  # What was under way has come to the cluster, and is removed with the rest.
        left = await self._find(labels=f"{shapes.RUN_ID}={run_id}")
        for metadata in left:
            await self._delete(metadata, up_to_attempt)
        if not left:
            for entry in [each for each in self._entries.values() if each.run_id == run_id and each.is_erased]:
                self._forget(entry)

    async def own(self, shards: frozenset[int]) -> None:
        if shards == self._shards:
            return
        is_more = not shards <= self._shards
        self._shards = shards
        self._queue.take_part_of(shards)
        given_up = [each for each in self._entries.values() if shard_of(each.run_id) not in shards]
        for entry in given_up:
            self._forget(entry)
        if is_more:
            self._listed.clear()
            self._all_listed.clear()
        self._is_redivided.set()
        self._is_due.set()
        for entry in given_up:
            async with entry.lock:
                pass  # What was under way has come to the cluster: whoever comes after us has it to themselves.

    async def known(self) -> set[str]:
        """Waits until everything is listed: what is not seen yet is not lost."""
        await self._all_listed.wait()
        return {
            entry.run_id for entry in self._entries.values() if entry.stage is not _Stage.OVER and not entry.is_ending
        }

    async def leftovers(self) -> dict[str, int]:
        """Objects that were recorded as over longer ago than their time to live."""
        now = time.monotonic()
        pause_seconds = min(_SWEEP_SECONDS, self._ttl.total_seconds() / 10)
        if self._swept_at is not None and now - self._swept_at < pause_seconds:
            return {}
        before = datetime.now(UTC) - self._ttl
        found = await self._find(labels=f"{self._of_ours()},{shapes.PERSISTED}=true")
        self._swept_at = now
        self._note_reopened([each for each in found if each.is_reopened])
        latest: dict[str, int] = {}
        for metadata in found:
            recorded_at = metadata.recorded_at
            if not metadata.is_reopened and (recorded_at is None or recorded_at <= before):
                latest[metadata.run_id] = max(metadata.attempt, latest.get(metadata.run_id, 0))
        return latest

    def _note_reopened(self, found: list[shapes.Metadata]) -> None:
        """Whoever has it go on behind our back keeps it until it is over; the run has ended as it has ended."""
        for metadata in found:
            if metadata.uid not in self._reopened:
                _log.warning(
                    "workflow %s goes on after its end was recorded, as by argo retry: run %s stays as it ended, "
                    "unless it is retried itself",
                    metadata.name,
                    metadata.run_id,
                )
        self._reopened = {metadata.uid for metadata in found}

    async def observe(self) -> AsyncIterator[Observation]:
        queue = self._told = asyncio.Queue()
        for entry in self._entries.values():
            entry.is_queued = False
            self._tell(entry, is_again=True)
        while True:
            entry = await queue.get()
            entry.is_queued = False
            if self._entries.get(entry.name) is entry and (observation := self._next_of(entry)) is not None:
                yield observation

    async def recorded(self, observation: Observation) -> None:
        entry = self._entries.get(observation.workflow_name)
        if entry is None or entry.outstanding is not observation:
            return
        entry.outstanding = None
        if observation.finished_at is not None:
            self._settle(entry)
        else:
            self._tell(entry)

    async def logs(
        self, workflow_name: WorkflowName, node_id: NodeId, *, follow: bool, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The API server has no offsets: what lies before it is read and dropped."""
        while True:
            try:
                pod = await self._pod_of(workflow_name, node_id)
                if pod is None:
                    return
                async with contextlib.aclosing(self._cluster.log(*pod, follow=follow)) as chunks:
                    async for chunk in chunks:
                        text = chunk[offset:]
                        offset = max(0, offset - len(chunk))
                        if text:
                            yield text
                return
            except Missing:
                return
            except Rejected:  # Its container has not begun.
                if not follow:
                    return
                await asyncio.sleep(_PAUSE_SECONDS)

    async def about(self) -> About:
        return About(name="argo", runtime=f"Kubernetes {await self._cluster.version()}")

    async def check(self) -> None:
        """It is asked every few seconds: what the account may do is looked at now and then."""
        now = time.monotonic()
        if self._checked_at is not None and now - self._checked_at < _CHECK_SECONDS:
            await self._cluster.version()
            return
        self._checked_at = None
        await self._cluster.check(tuple(filter(None, self._scopes)))
        self._checked_at = now

    async def close(self) -> None:
        await self._cluster.close()

    # At work

    async def run(self) -> None:
        """Watch, submit and tell until cancelled; then know no workflow, and leave them all to the cluster."""
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(self._watch(), name="watch workflows")
                together.create_task(self._submit_in_turn(), name="submit workflows")
                together.create_task(self._tell_positions(), name="tell positions in the queue")
        finally:
            for entry in list(self._entries.values()):
                self._forget(entry)
            for chore in self._chores:
                chore.cancel()
            await asyncio.gather(*self._chores, return_exceptions=True)
            self._listed.clear()
            self._all_listed.clear()

    async def _watch(self) -> None:
        while True:
            self._is_redivided.clear()
            async with asyncio.TaskGroup() as together:
                labels = f"{self._of_ours()},{shapes.PERSISTED}!=true"
                followers = [
                    together.create_task(watching.follow(self._cluster, scope, labels, self))
                    for scope in self._scopes
                    if self._shards
                ]
                if not self._shards:
                    self._all_listed.set()
                await self._is_redivided.wait()
                for follower in followers:
                    follower.cancel()

    # What is seen in the cluster

    async def seen(self, seen: shapes.Seen) -> None:
        metadata = seen.metadata
        if shard_of(metadata.run_id) not in self._shards:
            return  # It was asked for before it was given up.
        if not self._is_ours(metadata):
            return
        entry = self._entries.get(WorkflowName(metadata.name))
        if entry is not None and entry.run_id == metadata.run_id and entry.attempt < metadata.attempt:
            self._forget(entry)  # Somebody else has retried it.
            entry = None
        if entry is None:
            if metadata.deletion_timestamp is not None:
                return
            entry = self._adopt(metadata)
        if entry.run_id != metadata.run_id or entry.attempt > metadata.attempt:
            return
        if entry.stage is _Stage.OVER or entry.is_ending:
            return
        self._is_living(entry)
        self._hold(entry, seen)
        while self._held_bytes > _MOST_HELD_BYTES:
            self._is_lighter.clear()
            await self._is_lighter.wait()

    async def deleted(self, metadata: shapes.Metadata) -> None:
        entry = self._entries.get(WorkflowName(metadata.name))
        if entry is None or not entry.is_of(metadata):
            return
        if entry.stage is _Stage.OVER:
            self._forget(entry)
        elif entry.stage is _Stage.LIVE:
            await self._look_for(entry)

    async def listed(self, scope: str, objects: set[tuple[str, str]]) -> None:
        of_scope = [each for each in self._entries.values() if scope in ("", each.namespace)]
        for entry in [each for each in of_scope if (each.namespace, each.name) not in objects]:
            if entry.stage is _Stage.OVER:
                self._forget(entry)
            elif entry.stage is _Stage.LIVE:
                await self._look_for(entry)
        self._listed.add(scope)
        if self._listed.issuperset(self._scopes):
            self._all_listed.set()

    async def _look_for(self, entry: _Entry) -> None:
        """It is not among what is watched: gone, or marked as recorded by somebody. Raises Unavailable."""
        if entry.is_ending:
            return
        try:
            metadata = shapes.read_metadata(await self._cluster.get_metadata(entry.namespace, entry.name))
        except Missing:
            self._lose(entry)
            return
        if metadata.run_id != entry.run_id and (metadata.run_id or not metadata.is_original):
            self._lose(entry)
        elif metadata.is_persisted and metadata.attempt == entry.attempt:
            self._forget(entry)
        elif not metadata.has(self._labels_of(entry)):
            _log.warning("workflow %s has lost labels of ours, and gets them again", entry.name)
            with contextlib.suppress(Missing):  # Its end is told as well.
                await self._label(entry)

    def _is_ours(self, metadata: shapes.Metadata) -> bool:
        """Not a copy that somebody has made, with our labels. What says nothing of that is ours where it has the place
        of one that was submitted."""
        entry = self._entries.get(WorkflowName(metadata.name))
        return metadata.is_original or (entry is not None and entry.is_of(metadata))

    def _adopt(self, metadata: shapes.Metadata) -> _Entry:
        name = WorkflowName(metadata.name)
        entry = self._entries[name] = _Entry(name, metadata.run_id, metadata.namespace, metadata.attempt)
        entry.is_new_here = True
        return entry

    def _is_living(self, entry: _Entry) -> None:
        """There is an object, whoever made it."""
        if entry.is_before_object and not entry.is_gone:
            entry.stage, entry.has_object = _Stage.LIVE, True
            entry.submission, entry.packed, entry.word = None, b"", None
            self._queue.opened(entry.name)

    def _hold(self, entry: _Entry, seen: shapes.Seen) -> None:
        if entry.is_gone:
            return
        self._held_bytes += seen.size - (entry.seen.size if entry.seen is not None else 0)
        entry.seen = seen
        if seen.is_final:
            entry.is_ending, entry.version = True, seen.metadata.resource_version
            self._queue.ended(entry.name)
            self._is_due.set()
        self._tell(entry)

    def _drop_seen(self, entry: _Entry) -> None:
        if entry.seen is not None:
            self._held_bytes -= entry.seen.size
            entry.seen = None
            self._is_lighter.set()

    # What is told of it

    def _tell(self, entry: _Entry, *, is_again: bool = False) -> None:
        has_news = entry.seen is not None or entry.word is not None
        is_ready = has_news if entry.outstanding is None else is_again
        if is_ready and not entry.is_queued:
            entry.is_queued = True
            self._told.put_nowait(entry)

    def _next_of(self, entry: _Entry) -> Observation | None:
        if entry.outstanding is None and entry.seen is not None:
            entry.outstanding = self._changes_of(entry, entry.seen)
            self._drop_seen(entry)
        if entry.outstanding is None and entry.word is not None:
            entry.outstanding, entry.word = entry.word, None
        return entry.outstanding

    def _changes_of(self, entry: _Entry, seen: shapes.Seen) -> Observation | None:
        """What the state says that was not said before; None where that is nothing."""
        try:
            nodes = seen.nodes()
            hashes = {node_id: hash(bytes(node)) for node_id, node in nodes.items()}
            is_complete = entry.is_new_here or not entry.nodes.keys() <= hashes.keys()
            changed = hashes if is_complete else {key for key, each in hashes.items() if entry.nodes.get(key) != each}
            documents = tuple(seen.document(nodes[node_id]) for node_id in hashes if node_id in changed)
        except shapes.Unreadable as error:
            instead = shapes.instead_of_nodes(seen, str(error))
            if instead["id"] not in entry.nodes:
                _log.error("the nodes of workflow %s cannot be read: %s", entry.name, error)
            hashes, is_complete = entry.nodes | {instead["id"]: hash(msgspec.json.encode(instead))}, False
            documents = (instead,) if hashes != entry.nodes else ()
        told = (seen.phase, seen.message, seen.started_at, seen.is_final)
        is_nothing = not documents and told == (entry.told or ("Pending", "", None, False))
        if is_nothing and (entry.is_new_here or not is_complete):
            if entry.is_on_record:
                return None
            is_complete = False
        entry.nodes, entry.told, entry.is_new_here = hashes, told, entry.is_new_here and not is_complete
        is_taken, entry.is_on_record = not entry.is_on_record, True
        return Observation(
            workflow_name=entry.name,
            run_id=entry.run_id,
            attempt=entry.attempt,
            phase=seen.phase,
            message=seen.message,
            started_at=seen.started_at,
            finished_at=seen.finished_at,
            nodes=documents,
            is_complete=is_complete,
            is_taken=is_taken,
        )

    def _say(self, entry: _Entry, word: Observation) -> None:
        if entry.is_gone:
            return
        entry.word = word
        if word.finished_at is not None:
            entry.is_ending = True
            self._queue.ended(entry.name)
            self._is_due.set()
        else:
            entry.told = (word.phase, word.message, word.started_at, False)
        self._tell(entry)

    def _waits(self, entry: _Entry, reason: str) -> None:
        self._say(entry, self._word(entry, "Pending", reason))

    def _refuse(self, entry: _Entry, reason: str) -> None:
        """The cluster will never take it."""
        self._say(entry, self._word(entry, "Error", reason, nodes=_closed(entry, "Error", reason), is_end=True))

    def _end_unbegun(self, entry: _Entry) -> None:
        nodes = _closed(entry, "Failed", _TERMINATED)
        self._say(entry, self._word(entry, "Failed", _TERMINATED, nodes=nodes, is_end=True))

    def _lose(self, entry: _Entry, reason: str = "") -> None:
        """The object is gone, and nobody asked for that."""
        if not entry.is_ending:
            entry.has_object = False
            self._say(entry, self._word(entry, "Error", reason, is_end=True, is_vanished=True))

    def _word(
        self,
        entry: _Entry,
        phase: str,
        message: str,
        *,
        nodes: tuple[dict[str, Any], ...] = (),
        is_end: bool = False,
        is_vanished: bool = False,
    ) -> Observation:
        return Observation(
            workflow_name=entry.name,
            run_id=entry.run_id,
            attempt=entry.attempt,
            phase=phase,
            message=message,
            started_at=entry.submission.started_at if entry.submission is not None else None,
            finished_at=datetime.now(UTC).replace(microsecond=0) if is_end else None,
            nodes=nodes,
            is_vanished=is_vanished,
        )

    # What becomes of it when its end is recorded

    def _settle(self, entry: _Entry) -> None:
        """Nothing more is told of it. Its object is marked, so that it is not seen again, and waits for its time."""
        entry.stage = _Stage.OVER
        self._let_go(entry)
        if entry.has_object:
            self._soon(self._mark(entry), f"mark {entry.name} as recorded")
        else:
            self._forget(entry)

    async def _mark(self, entry: _Entry) -> None:
        async for attempt in _patiently():
            with attempt:
                async with self._marking:
                    if not entry.is_gone:
                        await self._mark_once(entry)

    async def _mark_once(self, entry: _Entry) -> None:
        """Only the state that was recorded is marked: a retry may have come in between."""
        marks = {
            "resourceVersion": entry.version,
            "labels": {shapes.PERSISTED: "true"},
            "annotations": {shapes.RECORDED_AT: datetime.now(UTC).isoformat(timespec="seconds")},
        }
        with contextlib.suppress(Missing):
            try:
                await self._cluster.patch(entry.namespace, entry.name, {"metadata": marks})
            except Conflict:
                metadata = shapes.read_metadata(await self._cluster.get_metadata(entry.namespace, entry.name))
                if metadata.run_id == entry.run_id and metadata.attempt == entry.attempt:
                    entry.version = metadata.resource_version
                    raise

    # What is given to the cluster

    def _put_in_queue(self, entry: _Entry, submission: Submission) -> None:
        is_urgent = submission.attempt > 1 or _has_begun(submission)
        self._queue.put(entry.name, submission.experiment_id, time.monotonic(), is_urgent=is_urgent)
        self._is_due.set()

    async def _submit_in_turn(self) -> None:
        room = asyncio.Semaphore(_AT_ONCE)
        while True:
            await room.acquire()
            entry = await self._next_in_turn()
            entry.stage, entry.was_given = _Stage.STARTING, True
            task = self._soon(self._started_or_forgotten(entry), f"submit {entry.name}")
            task.add_done_callback(lambda _: room.release())

    async def _next_in_turn(self) -> _Entry:
        while True:
            self._is_due.clear()
            now = time.monotonic()
            name = self._queue.take(now)
            if name is not None:
                return self._entries[WorkflowName(name)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._queue.next_in(now)):
                    await self._is_due.wait()

    async def _tell_positions(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for name, word in self._queue.news(time.monotonic(), self._trouble):
                self._waits(self._entries[WorkflowName(name)], word)

    async def _started_or_forgotten(self, entry: _Entry) -> None:
        """Whatever breaks down here, the run is not taken for one that is being driven."""
        try:
            await self._start(entry)
        except Exception:
            self._forget(entry)
            raise

    async def _start(self, entry: _Entry) -> None:
        def troubled(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            if isinstance(error, Unavailable):  # Else it is this one's alone.
                self._trouble = f"the cluster does not take it: {error}"
            if not entry.is_gone and entry.is_before_object and not entry.is_ending:
                self._waits(entry, f"not submitted yet: {error}")

        conflicts = 0
        async for attempt in _patiently(before_sleep=troubled):
            with attempt:
                async with entry.lock:
                    if entry.is_gone or entry.is_ending or entry.stage is not _Stage.STARTING:
                        return
                    if not self._holds(shard_of(entry.run_id)):
                        return  # `own` is about to tell.
                    assert entry.submission is not None, "there is one until there is an object"
                    try:
                        with continue_trace(entry.submission.traceparent or None):
                            await self._give(entry, entry.submission)
                    except Conflict as conflict:
                        conflicts += 1
                        if conflicts < _MOST_CONFLICTS:
                            raise
                        self._put_off(entry, conflict)
                        return
                self._trouble = ""

    def _put_off(self, entry: _Entry, conflict: Conflict) -> None:
        """What is in its way may take any time to go: until then it takes nobody's turn."""
        if entry.stage is _Stage.STARTING and not entry.is_gone:
            self._waits(entry, f"not submitted yet: {conflict}")
            entry.stage = _Stage.WAITING
            self._queue.ended(entry.name)
            self._is_due.set()
            self._soon(self._try_again(entry), f"put {entry.name} into the queue again")

    async def _try_again(self, entry: _Entry) -> None:
        await asyncio.sleep(_PUT_OFF_SECONDS)
        if entry.stage is _Stage.WAITING and not (entry.is_gone or entry.is_ending) and entry.submission is not None:
            self._put_in_queue(entry, entry.submission)

    async def _give(self, entry: _Entry, submission: Submission) -> None:
        workflow = msgspec.json.decode(zlib.decompress(entry.packed))
        submission = msgspec.structs.replace(submission, workflow=workflow, nodes=shapes.of_argo(submission.nodes))
        try:
            if submission.attempt == 1 and not _has_begun(submission):
                await self._create(entry, shapes.new_object(submission))
            elif (text := await self._find_object(entry)) is not None:
                await self._go_on(entry, submission, text)
            elif submission.attempt == 1 or submission.is_taken or shapes.open_steps(submission.nodes):
                self._lose(entry, _UNSEEN)
            elif submission.is_terminating:
                self._end_unbegun(entry)
            else:
                await self._create(entry, shapes.reopened_object(submission))
        except _Refused as refused:
            self._refuse(entry, str(refused))
        except (Rejected, shapes.Unreadable) as error:
            self._refuse(entry, f"the cluster refuses the workflow: {error}")
        except TooLarge as error:
            self._refuse(entry, f"the cluster refuses the workflow: {error}; {_ADVICE}")
        except Missing as missing:
            if missing.kind == "namespaces":
                self._refuse(entry, f"there is no namespace {entry.namespace}")
            else:
                raise Conflict(f"the object has gone meanwhile: {missing}") from missing

    async def _create(self, entry: _Entry, document: dict[str, Any]) -> None:
        try:
            await self._cluster.create(entry.namespace, self._encoded(document))
        except AlreadyExists:
            text = await self._find_object(entry)
            if text is None:
                raise Conflict("the name was taken, and is free again") from None
            await self._accept(entry, text)
            return
        self._is_living(entry)

    async def _go_on(self, entry: _Entry, submission: Submission, text: bytes) -> None:
        """There is an object. It is of this attempt already, or becomes one of it."""
        seen = shapes.read(text)
        if seen.metadata.run_id != submission.run_id or seen.metadata.attempt >= submission.attempt:
            await self._accept(entry, text)
            return
        if seen.metadata.deletion_timestamp is not None:
            raise Conflict("the object of an earlier attempt is being deleted")
        if seen.is_offloaded:
            raise _Refused("it cannot be retried: Argo keeps its nodes in a database of its own (nodeStatusOffLoad)")
        if submission.is_terminating:
            self._end_unbegun(entry)
            return
        document, pods = shapes.reopened(text, submission)
        body = self._encoded(document)
        for pod in pods:
            if entry.is_gone or not self._holds(shard_of(entry.run_id)):
                return  # Where another has retried it, a pod of the new attempt may have the same name.
            await self._cluster.delete_pod(entry.namespace, pod)
        await self._cluster.replace(entry.namespace, entry.name, body)
        self._is_living(entry)

    async def _accept(self, entry: _Entry, text: bytes) -> None:
        """The object that has the name: it is ours from before, or another's."""
        seen = shapes.read(text)
        metadata = seen.metadata
        if metadata.deletion_timestamp is not None:
            raise Conflict(f"an earlier workflow named {entry.name} is being deleted")
        if metadata.run_id != entry.run_id:
            raise _Refused(f"a workflow named {entry.name} runs for somebody else")
        if metadata.attempt < entry.attempt:
            raise Conflict("the object is of an earlier attempt")
        is_labelled = metadata.has(self._labels_of(entry)) and metadata.is_original
        if not is_labelled or (metadata.is_persisted and not seen.is_final):
            await self._label(entry)
        is_terminating = entry.submission is not None and entry.submission.is_terminating
        entry.is_new_here = True
        self._is_living(entry)
        if metadata.is_persisted and seen.is_final:
            self._hold(entry, seen)  # It is not watched any more, and its record says that it is open.
        elif is_terminating and not seen.is_stopping and not seen.is_final:
            await self._stop(entry.namespace, entry.name, entry.run_id)

    def _labels_of(self, entry: _Entry) -> dict[str, str]:
        whose = {shapes.INSTALLATION: self.installation} if self.installation else {}
        return {shapes.RUN_ID: entry.run_id, shapes.SHARD: str(shard_of(entry.run_id)), **whose}

    async def _label(self, entry: _Entry) -> None:
        """As one that is driven. Raises Missing."""
        marks = {
            "labels": {**self._labels_of(entry), shapes.PERSISTED: None},
            "annotations": {shapes.MADE_AS: f"{entry.namespace}/{entry.name}"},
        }
        await self._cluster.patch(entry.namespace, entry.name, {"metadata": marks})

    def _encoded(self, document: dict[str, Any]) -> bytes:
        if self.installation:
            document["metadata"]["labels"][shapes.INSTALLATION] = self.installation
        body = msgspec.json.encode(document)
        most = self._most_workflow_bytes
        if len(body) > most and (document.get("status") or {}).get("nodes"):
            body = msgspec.json.encode(shapes.compressed(document))
        if len(body) > most:
            raise _Refused(
                f"the workflow takes {len(body)} bytes, and the cluster holds {most} of one object "
                f"(HEADRACE_MOST_WORKFLOW_BYTES): {_ADVICE}"
            )
        return body

    async def _stop(self, namespace: str, name: str, run_id: str) -> None:
        """As `argo terminate` of the time did, and Kubeflow Pipelines does."""
        if not self._holds(shard_of(run_id)):
            raise Unavailable("The run is another controller's by now.")
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(Conflict), wait=_wait):
            with attempt, contextlib.suppress(Missing), _refusals_logged(f"stop workflow {name}"):
                await self._cluster.patch(namespace, name, {"spec": {"activeDeadlineSeconds": 0}})

    async def _is_there(self, entry: _Entry) -> bool:
        """Whether it has an object of this attempt after all: the answer to its creation may have been lost."""
        if not entry.was_given:
            return False
        text = await self._find_object(entry)
        if text is None:
            return False
        metadata = shapes.read_metadata(text)
        return metadata.run_id == entry.run_id and metadata.attempt == entry.attempt

    async def _delete(self, metadata: shapes.Metadata, up_to_attempt: int | None) -> None:
        is_bounded = up_to_attempt is not None
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(Conflict), wait=_wait):
            with attempt, _refusals_logged(f"delete workflow {metadata.name}"):
                if up_to_attempt is not None and metadata.attempt > up_to_attempt:
                    return
                version = metadata.resource_version if is_bounded else ""
                try:
                    await self._cluster.delete(metadata.namespace, metadata.name, resource_version=version)
                except Missing:
                    return
                except Conflict:
                    found = await self._find(
                        labels=f"{shapes.RUN_ID}={metadata.run_id}", fields=f"metadata.name={metadata.name}"
                    )
                    if not found:
                        return
                    metadata = found[0]
                    raise

    # Looking things up

    async def _find(self, *, labels: str = "", fields: str = "") -> list[shapes.Metadata]:
        """All of ours that match, wherever they are."""
        found: list[shapes.Metadata] = []
        labels = labels or f"{shapes.RUN_ID},{shapes.SHARD}{self._of_installation()}"
        for scope in self._scopes:
            async for page in self._cluster.list_workflows(
                scope, labels=labels, fields=fields, limit=500, only_metadata=True
            ):
                found += filter(self._is_ours, map(shapes.read_metadata, page.items))
        return found

    async def _find_object(self, entry: _Entry) -> bytes | None:
        try:
            return await self._cluster.get(entry.namespace, entry.name)
        except Missing:
            return None

    async def _pod_of(self, workflow_name: WorkflowName, node_id: NodeId) -> tuple[str, str] | None:
        """Namespace and name."""
        entry = self._entries.get(workflow_name)
        if entry is not None:
            namespaces = [entry.namespace]
        else:
            namespaces = [each.namespace for each in await self._find(fields=f"metadata.name={workflow_name}")]
        for namespace in namespaces:
            pods = await self._cluster.list_pods(namespace, labels=f"workflows.argoproj.io/workflow={workflow_name}")
            if (pod := shapes.pod_of(node_id, workflow_name, pods)) is not None:
                return namespace, pod
        return None

    def _of_ours(self) -> str:
        """What selects the objects of our shards."""
        shards = ",".join(map(str, sorted(self._shards)))
        return f"{shapes.RUN_ID},{shapes.SHARD} in ({shards}){self._of_installation()}"

    def _of_installation(self) -> str:
        return f",{shapes.INSTALLATION}={self.installation}" if self.installation else ""

    # Letting go

    def _let_go(self, entry: _Entry) -> None:
        """Hold nothing for it any more but its name."""
        if self._entries.get(entry.name) is entry:  # Else the place in the queue is a later one's.
            self._queue.ended(entry.name)
            self._is_due.set()
        self._drop_seen(entry)
        entry.word, entry.outstanding, entry.submission, entry.packed = None, None, None, b""
        entry.nodes = {}

    def _forget(self, entry: _Entry) -> None:
        entry.is_gone = True
        self._let_go(entry)
        if self._entries.get(entry.name) is entry:
            del self._entries[entry.name]

    def _soon(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._chores.add(task)
        task.add_done_callback(self._chore_ended)
        return task

    def _chore_ended(self, chore: asyncio.Task[None]) -> None:
        self._chores.discard(chore)
        if not chore.cancelled() and (error := chore.exception()) is not None:
            _log.error("could not %s", chore.get_name(), exc_info=error)


@contextlib.contextmanager
def _refusals_logged(what: str) -> Iterator[None]:
    """The server will never do it. That is the operator's to mend, and no reason to do nothing else."""
    try:
        yield
    except (Rejected, TooLarge) as error:
        _log.error("could not %s: %s", what, error)


class _Refused(Exception):
    """It cannot be given to the cluster, and never will; the text is for the run's user."""


_ADVICE: Final = "hand large values on as artifacts, or make several pipelines of it"


_UNSEEN: Final = (
    "The workflow has vanished from the cluster while no controller watched it. Whether it had ended, and how, is not "
    "known: somebody has deleted it, or Argo by its ttlStrategy."
)


def _has_begun(submission: Submission) -> bool:
    """Whether the record has seen anything of it in a cluster."""
    return bool(submission.nodes) or submission.started_at is not None or submission.is_taken


def _closed(entry: _Entry, phase: str, message: str) -> tuple[dict[str, Any], ...]:
    """The nodes that are open on record, ended: a final run has final nodes."""
    ended_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    nodes = entry.submission.nodes if entry.submission is not None else ()
    ended = {"phase": phase, "message": message, "finishedAt": ended_at}
    return tuple({**node, **ended} for node in nodes if node.get("phase") in ("Pending", "Running"))


_wait = pauses(multiplier=0.1, most_seconds=10)


def _patiently(**how: Any) -> AsyncRetrying:
    """Through outages, and through what others change meanwhile."""
    return AsyncRetrying(retry=retry_if_exception_type((Unavailable, Conflict)), wait=_wait, **how)
