"""What goes wrong on purpose."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Collection

import msgspec

from tests.support.kubernetes.statuses import Refusal

ALL_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_REMEMBERED_REQUESTS = 10_000


class Trouble(msgspec.Struct, kw_only=True):
    """What meets the next requests of its kind."""

    left: int
    methods: Collection[str]
    path: str
    """Part of the paths that it meets."""

    def strikes(self, method: str, path: str) -> bool:
        """Whether it is this request's turn; it is over with the last."""
        if self.left == 0 or method not in self.methods or self.path not in path:
            return False
        self.left -= 1
        return True


class Refused(Trouble, kw_only=True):
    status: int


class Requests:
    """What was asked: the latest in order, and how often each method came."""

    def __init__(self) -> None:
        self.latest: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED_REQUESTS)
        self.counts: Counter[str] = Counter()

    def note(self, method: str, path: str) -> None:
        self.latest.append((method, path))
        self.counts[method] += 1

    def of(self, method: str, path: str = "") -> int:
        """How many of the latest were such, by a part of their path."""
        return sum(1 for asked, where in self.latest if asked == method and path in where)

    def clear(self) -> None:
        self.latest.clear()
        self.counts.clear()


class Faults:
    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(16)
        self.controller_token = secrets.token_urlsafe(16)
        """Whoever shows it is part of the cluster: nothing goes wrong for it, and it is not counted."""
        self.delay_seconds = 0.0
        self.refused: list[Refused] = []
        self.lost: list[Trouble] = []
        self.expires_with_status = False
        """A watch from a forgotten version is answered with 410, as older servers do, and not with an event."""
        self._is_expired = False

    def expire_token(self) -> None:
        self._is_expired = True

    def rotate_token(self) -> str:
        self.token, self._is_expired = secrets.token_urlsafe(16), False
        return self.token

    def is_of_controller(self, header: str | None) -> bool:
        return header == f"Bearer {self.controller_token}"

    def demand_token(self, header: str | None) -> None:
        if self._is_expired or header != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized")

    def demand_luck(self, method: str, path: str) -> None:
        """Raises Refusal where this request is one of those to be refused."""
        for refused in self.refused:
            if refused.strikes(method, path):
                raise Refusal(refused.status, "refused on purpose")

    def loses(self, method: str, path: str) -> bool:
        """Whether the answer to this request gets lost."""
        return any(lost.strikes(method, path) for lost in self.lost)
