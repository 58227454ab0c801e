"""A cluster in memory, as several controllers' engines see it: workflows that go on by themselves, whoever looks.

Notes how often each was made, so that a run that was started twice is found out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime

import msgspec

from services.run.engine import About, NodeId, Observation, Submission, WorkflowName
from services.run.engine.shards import shard_of

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


class PlayedCluster:
    def __init__(self) -> None:
        self.workflows: dict[WorkflowName, Observation] = {}
        self.made: Counter[str] = Counter()
        """Run → how many workflows were made for it."""
        self._engines: list[ClusterEngine] = []

    def engine(self) -> ClusterEngine:
        engine = ClusterEngine(self)
        self._engines.append(engine)
        return engine

    def make(self, submission: Submission) -> None:
        if submission.workflow_name in self.workflows:
            return
        self.made[submission.run_id] += 1
        self._changed(
            Observation(
                workflow_name=submission.workflow_name,
                run_id=submission.run_id,
                attempt=submission.attempt,
                phase="Running",
                started_at=STARTED,
            )
        )

    def end_all(self) -> None:
        for observation in self.workflows.values():
            if observation.finished_at is None:
                self._changed(msgspec.structs.replace(observation, phase="Succeeded", finished_at=STARTED))

    def _changed(self, observation: Observation) -> None:
        self.workflows[observation.workflow_name] = observation
        for engine in self._engines:
            engine.see(observation)


class ClusterEngine:
    """One controller's."""

    def __init__(self, cluster: PlayedCluster) -> None:
        self.owned: frozenset[int] = frozenset()
        self._cluster = cluster
        self._seen: asyncio.Queue[Observation] = asyncio.Queue()
        self._recorded: set[str] = set()

    def see(self, observation: Observation) -> None:
        if shard_of(observation.run_id) in self.owned:
            self._seen.put_nowait(observation)

    async def submit(self, submission: Submission) -> None:
        self._cluster.make(submission)

    async def terminate(self, workflow_name: WorkflowName) -> None: ...

    async def erase(self, run_id: str, *, up_to_attempt: int | None = None) -> None:
        for observation in self._own():
            if observation.run_id == run_id:
                del self._cluster.workflows[observation.workflow_name]

    async def own(self, shards: frozenset[int]) -> None:
        new, self.owned = shards - self.owned, shards
        for observation in self._own():
            if shard_of(observation.run_id) in new:
                self.see(observation)

    async def known(self) -> set[str]:
        return {observation.run_id for observation in self._own()}

    async def leftovers(self) -> dict[str, int]:
        return {each.run_id: each.attempt for each in self._own() if each.run_id in self._recorded}

    async def observe(self) -> AsyncIterator[Observation]:
        while True:
            yield await self._seen.get()

    async def recorded(self, observation: Observation) -> None:
        if observation.finished_at is not None:
            self._recorded.add(observation.run_id)

    async def logs(
        self, workflow_name: WorkflowName, node_id: NodeId, *, follow: bool, offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        # Whoever is asked can read any: a cluster keeps them.
        yield f"{workflow_name} says".encode()[offset:]

    async def about(self) -> About:
        return About(name="argo", runtime="none")

    async def check(self) -> None: ...

    async def work(self) -> None:
        await asyncio.Event().wait()

    def _own(self) -> list[Observation]:
        return [each for each in self._cluster.workflows.values() if shard_of(each.run_id) in self.owned]
