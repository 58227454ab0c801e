"""Who asks: the identity that the gateway found out, signed, and believed by the services for a minute.

The gateway authenticates clients; services only need to know that it did, and whom it saw. It says so in one header: a
JWT signed with a key that the gateway and the services share. A service that holds the key refuses whatever comes
without such a header, so that nobody can go around the gateway; without the key nothing is signed and nothing checked.

A header serves all requests of its caller until it is half-way through its life, and each service remembers the ones it
has verified: neither side computes a signature per request. This module knows neither tokens nor identity providers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

import msgspec

from shared.errors import PermissionDenied

HEADER: Final = "x-headrace-identity"
LIFETIME_SECONDS: Final = 60
SHORTEST_KEY_BYTES: Final = 32
"""What HMAC-SHA-256 needs to be as strong as its hash."""

_ISSUER: Final = "headrace-gateway"
_AUDIENCE: Final = "headrace-services"
_ALGORITHM: Final = "HS256"
_CLOCK_LEEWAY_SECONDS: Final = 30
_MOST_REMEMBERED: Final = 4096
_REFUSED: Final = "Requests are accepted from the gateway alone."

K = TypeVar("K")
V = TypeVar("V")

Clock = Callable[[], float]
"""Seconds since the epoch."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every process that takes or forwards requests is told about identities."""

    identity_key: str = ""
    """The secret that the gateway signs identities with and services check them by. Empty: nobody is asked."""

    def __post_init__(self) -> None:
        check_key(self.identity_key)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody whom the gateway has authenticated."""

    subject: str
    """Tells callers apart and stays the same: `token:<name>` or `oidc:<the provider's subject>`."""
    name: str
    """What people call them."""


def check_key(key: str) -> None:
    """Raises ValueError for a key that could be guessed."""
    if key and len(key.encode()) < SHORTEST_KEY_BYTES:
        raise ValueError(f"identity_key must have at least {SHORTEST_KEY_BYTES} bytes")


def current_caller() -> Caller | None:
    """For whom the running code works; None where authentication is off, and outside of requests."""
    return _caller.get()


def caller_subject() -> str:
    """Who made what is being made, as records keep it; empty where nobody was asked."""
    caller = current_caller()
    return "" if caller is None else caller.subject


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Work for this caller."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


class Signer:
    """The gateway's side."""

    def __init__(self, key: str, *, clock: Clock = time.time) -> None:
        self._key = key
        self._clock = clock
        self._signed: dict[Caller, tuple[str, float]] = {}
        """The header and when to stop using it."""

    def header_for(self, caller: Caller) -> str:
        now = self._clock()
        known = self._signed.get(caller)
        if known is not None and now < known[1]:
            return known[0]
        header = self._sign(caller, now)
        _make_room(self._signed)
        self._signed[caller] = (header, now + LIFETIME_SECONDS / 2)
        return header

    def _sign(self, caller: Caller, now: float) -> str:
        import jwt  # With its cryptography it takes some 20 MiB, which a house without authentication keeps.

        claims = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "sub": caller.subject,
            "name": caller.name,
            "exp": int(now) + LIFETIME_SECONDS,
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)


class Verifier:
    """A service's side."""

    def __init__(self, key: str, *, clock: Clock = time.time) -> None:
        self._key = key
        self._clock = clock
        self._verified: dict[str, tuple[Caller, float]] = {}
        """The caller and when the header ends."""

    def caller_of(self, header: str | None) -> Caller:
        """Raises PermissionDenied unless the gateway signed this header a short time ago."""
        if not header:
            raise PermissionDenied(_REFUSED, cause="no identity")
        caller, ends_at = self._verified.get(header) or self._verify(header)
        if self._clock() > ends_at + _CLOCK_LEEWAY_SECONDS:
            raise PermissionDenied(_REFUSED, cause="the identity has expired")
        return caller

    def _verify(self, header: str) -> tuple[Caller, float]:
        import jwt

        try:
            claims = jwt.decode(
                header,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                audience=_AUDIENCE,
                options={"require": ["exp", "sub"], "verify_exp": False},  # The end is judged at every use.
            )
        except jwt.InvalidTokenError as error:
            raise PermissionDenied(_REFUSED, cause="the identity is not the gateway's") from error
        verified = Caller(subject=claims["sub"], name=str(claims.get("name", ""))), float(claims["exp"])
        _make_room(self._verified)
        self._verified[header] = verified
        return verified


def _make_room(remembered: dict[K, V]) -> None:
    """Drop the oldest when full; what is still in use is computed once more."""
    if len(remembered) >= _MOST_REMEMBERED:
        del remembered[next(iter(remembered))]


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
