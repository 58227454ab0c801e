"""The other services as one under test sees them: facts they state, questions they answer."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from shared.bus import Bus, Message
from shared.contracts.events import FactKind
from shared.contracts.questions import AppliedRequest, applied
from shared.contracts.states import State


class Peer:
    """One owner: tells its facts in order, with the positions its relay would give them."""

    def __init__(self, owner: str, bus: Bus) -> None:
        self.owner = owner
        self.bus = bus
        self._position = 0

    async def tell(self, kind: FactKind[State], state: State, *, at: datetime | None = None) -> int:
        """Publish a fact, of now or another time; returns its position."""
        self._position += 1
        await self.bus.declare_streams()
        message = Message(
            id=str(uuid.uuid4()),
            type=kind.type,
            owner=kind.owner,
            what=kind.what,
            resource_id=state.id,
            position=self._position,
            time=at or datetime.now(UTC),
            traceparent="",
            body=msgspec.json.encode(state),
        )
        assert await self.bus.publish([message]) == 1
        return self._position

    def begin_again(self) -> None:
        """Tell everything anew, as is done for a broker that has lost what it held."""
        self._position = 0

    async def until_applied_by(self, subscriber: str) -> None:
        request = AppliedRequest(owner=self.owner, position=self._position, within_seconds=15)
        answer = await self.bus.ask(applied(subscriber), request, within_seconds=16)
        assert answer.is_applied


async def open_buses(urls: Mapping[str, str], *names: str) -> dict[str, Bus]:
    return {name: await Bus(urls[name], name=f"test-{name}").open() for name in names}
