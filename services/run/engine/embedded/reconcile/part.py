"""What every kind of template has of the walk in which it takes part."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.run.engine.embedded.reconcile.walk import Walk


class Part:
    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._state = walk.state
        self._plan = walk.plan
        self._graph = walk.graph
        self._tasks = walk.tasks
        self._now = walk.now
