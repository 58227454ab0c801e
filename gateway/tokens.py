"""Static tokens: a file of hashes, written by `headrace token` and read by the gateway.

A token is 256 random bits, so that one SHA-256 keeps it as safely as a slow hash keeps a password, and can be paid on
every request. The token itself is shown once and kept nowhere.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from shared.bearer import digest_of

PREFIX = "headrace_"
"""Lets scanners of leaked secrets recognise a token."""


class TokenError(Exception):
    """What cannot be done with the file, in a sentence."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a token."""

    name: str
    """Whom it was given to; unique in the file."""
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and now >= self.expires_at


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[Token, ...] = ()


def create(file: Path, name: str, *, valid_for: timedelta | None = None, now: datetime | None = None) -> str:
    """Make a token and return it: nobody can read it again. Raises TokenError where the name is taken."""
    now = now or datetime.now(UTC)
    if not name or not name.isprintable() or name != name.strip():
        raise TokenError("a token needs a name of printable characters")
    with _held(file):
        kept = read(file)
        if any(token.name == name for token in kept):
            raise TokenError(f"there is a token named {name} already: revoke it, or choose another name")
        secret = PREFIX + secrets.token_urlsafe(32)
        expires_at = None if valid_for is None else now + valid_for
        made = Token(name=name, sha256=digest_of(secret), created_at=now, expires_at=expires_at)
        _write(file, (*kept, made))
    return secret


def revoke(file: Path, name: str) -> None:
    """Raises TokenError where no token has the name."""
    with _held(file):
        kept = read(file)
        remaining = tuple(token for token in kept if token.name != name)
        if len(remaining) == len(kept):
            raise TokenError(f"there is no token named {name}")
        _write(file, remaining)


def read(file: Path) -> tuple[Token, ...]:
    """The tokens, oldest first; none where the file is missing. Raises TokenError for one that cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Content).tokens
    except FileNotFoundError:
        return ()
    except msgspec.DecodeError as error:
        raise TokenError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise TokenError(f"{file} cannot be read: {error.strerror}") from error


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """One writer at a time: two that read the same tokens would lose one of their changes."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TokenError(f"{file} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, tokens: tuple[Token, ...]) -> None:
    """Whole or not at all, readable by us alone."""
    draft = file.with_name(f".{file.name}.draft")
    content = msgspec.json.format(msgspec.json.encode(_Content(tokens=tokens)))
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        raise TokenError(f"{file} cannot be written: {error.strerror}") from error
