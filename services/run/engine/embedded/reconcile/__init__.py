"""The heart of the engine: a workflow and what happened to it → what is true now and what to do next.

`advance(state, events, now)` is pure in all that matters: no I/O, no clock, no randomness; the same state, events and
time give the same turn. For the sake of cost it moves the state it is given instead of copying it, so a state has one
owner. Nothing in it is irreplaceable: `State.resume` builds an equal one from the manifest and the stored nodes.

How it works. Every open node has a *frame*, which knows its caller and how many things it waits for. An event ends a
step; the end of a node is told to its caller's frame, which starts what has become possible or ends in turn. Only
frames on that path are touched, and a work list carries the news instead of recursion, so neither wide nor deep
workflows make a step dearer. Creating a node and finding it already stored are one operation: a resumed state walks
down from the entry exactly as a new one does, and skips whatever is fulfilled.

Where things are: `turn` has what goes in and out, `state` what is kept between turns, `frames` what is open in it;
`walk` is the work list of one turn, `graph` its nodes, `tasks` what tasks refer to; `life` begins and ends the run;
`leaves`, `retries`, `dags`, `step_groups` and `hooks` each know one kind of template.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import assert_never

from services.run.engine.embedded.nodes import Phase
from services.run.engine.embedded.reconcile.frames import Leaf, Pause, Retry
from services.run.engine.embedded.reconcile.state import State
from services.run.engine.embedded.reconcile.turn import (
    Collected,
    Event,
    Kill,
    KillReason,
    Limits,
    StepFinished,
    StepLost,
    StepStarted,
    StepWaits,
    Terminated,
    Turn,
    exit_message,
)
from services.run.engine.embedded.reconcile.walk import Walk

__all__ = [
    "Collected",
    "Event",
    "Kill",
    "KillReason",
    "Limits",
    "State",
    "StepFinished",
    "StepLost",
    "StepStarted",
    "StepWaits",
    "Terminated",
    "Turn",
    "advance",
    "exit_message",
]


def advance(state: State, events: Sequence[Event], now: datetime) -> Turn:
    """Take in what happened up to `now`, and say what follows.

    Events about nodes that are over, or that never were, are ignored: reports may come twice.
    """
    walk = Walk(state, now.astimezone(UTC))
    if state.finished_at is None:
        if not state.awake:
            walk.life.begin()
            walk.work()
            walk.life.let_in()
        walk.work()
        for event in events:
            _take(walk, event)
            walk.work()
        if state.finished_at is None:
            _ring(walk)
            walk.work()
    return walk.turn()


def _take(walk: Walk, event: Event) -> None:
    match event:
        case Terminated():
            walk.state.terminated = True
            walk.stop(KillReason.TERMINATED)
        case StepWaits():
            walk.leaves.waits(event)
        case StepStarted():
            walk.leaves.started(event)
        case StepFinished():
            walk.leaves.finished(event)
        case StepLost():
            walk.leaves.lost(event)
        case _:
            assert_never(event)


def _ring(walk: Walk) -> None:
    """Whatever was due by now."""
    deadline = walk.state.run_deadline()
    if deadline is not None and walk.now >= deadline:
        walk.stop(KillReason.RUN_DEADLINE)
        walk.work()
    timers = walk.state.timers
    while timers and timers[0][0] <= walk.now:
        due, _, frame_id = heapq.heappop(timers)
        _ring_frame(walk, frame_id, due)
        walk.work()


def _ring_frame(walk: Walk, frame_id: str, due: datetime) -> None:
    frame = walk.state.frames.get(frame_id)
    match frame:
        case Leaf() if frame.killing is None and frame.deadline is not None and frame.deadline <= due:
            walk.leaves.kill(frame, KillReason.STEP_DEADLINE)
        case Pause() if frame.until <= due:
            walk.end(frame, Phase.SUCCEEDED)
        case Retry() if frame.wait_until is not None and frame.wait_until <= due:
            walk.retries.next_attempt(frame)
        case _:
            pass  # The timer of something that ended, or of an attempt with the same name before it.
