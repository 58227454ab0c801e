"""Who sends a request: a holder of a static token, or somebody whom an identity provider vouches for.

Both come as `Authorization: Bearer …`, the way the published reference says and the SDK's `existing_token` sends. The
token of an external engine's agent comes the same way, and opens the agent's routes alone.

A static token costs one SHA-256 and one look-up. A provider's token (a JWT) is verified by the provider's public keys
once and then remembered until it ends or the keys change. Keys are fetched ahead of need and again when a token names
one that is unknown; a provider that does not answer takes nothing away that was known before.

This module knows neither paths nor services: which requests must be authenticated is the routing table's affair.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from gateway.settings import Settings, is_https_or_loopback
from gateway.tokens import Token, TokenError, read
from shared.bearer import AgentToken, credential_of, digest_of
from shared.errors import Unauthenticated, Unavailable
from shared.identity import Caller
from shared.tasks import Tasks

if TYPE_CHECKING:
    import jwt

CHALLENGE: Final = 'Bearer realm="headrace"'
CHALLENGE_AFTER_REFUSAL: Final = 'Bearer realm="headrace", error="invalid_token"'

AGENT: Final = Caller(subject="agent", name="persistence agent")

LOOK_AT_FILE_EVERY_SECONDS: Final = 0.5
FETCH_KEYS_EVERY_SECONDS: Final = 300.0
FETCH_KEYS_NO_SOONER_SECONDS: Final = 10.0
"""Between two fetches that unknown keys cause: whoever invents key names must not make us flood the provider."""

_FETCH_WITHIN_SECONDS: Final = 5.0
_LONGEST_SUBJECT: Final = 255
"""By OpenID Connect Core, section 2. Services keep it in an index."""
_LARGEST_DOCUMENT_BYTES: Final = 1 << 20
_LEEWAY_SECONDS: Final = 30
_MOST_REMEMBERED: Final = 10_000
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Asymmetric ones alone: with a shared secret among them, a public key could be used as that secret."""

_log = logging.getLogger(__name__)


class Authentication:
    """Finds out who sends a request, by the methods that are switched on."""

    def __init__(self, *, tokens: StaticTokens | None, provider: Provider | None, agent: AgentToken) -> None:
        self._tokens = tokens
        self._provider = provider
        self._agent = agent

    async def caller_of(self, authorization: bytes | None) -> Caller:
        """Raises Unauthenticated; Unavailable when only the provider could tell and it has never answered."""
        credential = _credential(authorization)
        if self._tokens is not None and (caller := self._tokens.find(credential)):
            return caller
        if self._provider is not None and credential.count(".") == 2:
            return await self._provider.caller_of(credential)
        raise Unauthenticated("The token is unknown, expired or revoked.")

    def agent_of(self, authorization: bytes | None) -> Caller:
        """Raises PermissionDenied, and for want of a token too: no client can authenticate itself as the agent."""
        self._agent.check(None if authorization is None else authorization.decode("latin-1"))
        return AGENT

    @asynccontextmanager
    async def running(self, tasks: Tasks) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if self._tokens is not None:
                self._tokens.refresh()
                tasks.spawn("watch-tokens", self._tokens.keep_fresh)
            if self._provider is not None:
                await stack.enter_async_context(self._provider)
                tasks.spawn("fetch-keys", self._provider.keep_fresh)
            yield


def create_authentication(settings: Settings) -> Authentication | None:
    """None where authentication is off."""
    if not settings.authenticates:
        return None
    return Authentication(
        tokens=StaticTokens(Path(settings.auth_tokens_file)) if "tokens" in settings.auth else None,
        provider=(
            Provider(
                issuer=settings.oidc_issuer,
                audience=settings.oidc_audience,
                jwks_url=settings.oidc_jwks_url,
                name_claim=settings.oidc_name_claim,
            )
            if "oidc" in settings.auth
            else None
        ),
        agent=AgentToken(settings.agent_token_sha256),
    )


def _credential(authorization: bytes | None) -> str:
    if not authorization:
        raise Unauthenticated("The request has no token.", cause="the Authorization header is missing")
    credential = credential_of(authorization.decode("latin-1"))
    if credential is None:
        raise Unauthenticated("The request has no token.", cause="the Authorization header is not a bearer's")
    return credential


class StaticTokens:
    """The file of tokens as it was a moment ago."""

    def __init__(self, file: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._file = file
        self._now = now
        self._by_digest: dict[str, tuple[Token, Caller]] = {}
        self._seen: tuple[int, int, int] | None = None

    def find(self, credential: str) -> Caller | None:
        found = self._by_digest.get(digest_of(credential))
        if found is None or found[0].has_expired(self._now()):
            return None
        return found[1]

    def refresh(self) -> None:
        """Read the file if it is not the one that was read. A damaged one changes nothing until it is mended."""
        state = _state_of(self._file)
        if state == self._seen:
            return
        self._seen = state
        try:
            tokens = read(self._file)
        except TokenError as error:
            _log.error("the tokens stay as they were: %s", error)
            return
        self._by_digest = {
            token.sha256: (token, Caller(subject=f"token:{token.name}", name=token.name)) for token in tokens
        }
        _log.info("%s holds %d tokens", self._file, len(tokens))

    async def keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AT_FILE_EVERY_SECONDS)
            self.refresh()


def _state_of(file: Path) -> tuple[int, int, int]:
    """Differs from one writing of the file to the next; zeros where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)


class _Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a provider's discovery document."""

    issuer: str
    jwks_uri: str


class Provider:
    """An OpenID Connect provider, of which only the public keys are needed."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        jwks_url: str = "",
        name_claim: str = "sub",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._jwks_url = jwks_url
        self._name_claim = name_claim
        self._clock = clock
        self._document: dict[str, Any] | None = None
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._fetching = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._verified: dict[bytes, tuple[Caller, float]] = {}
        """By the token's hash: the caller, and when the token ends."""

    async def __aenter__(self) -> Provider:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_FETCH_WITHIN_SECONDS))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def caller_of(self, token: str) -> Caller:
        digest = hashlib.sha256(token.encode("latin-1")).digest()
        remembered = self._verified.get(digest)
        if remembered is not None:
            if time.time() <= remembered[1] + _LEEWAY_SECONDS:
                return remembered[0]
            del self._verified[digest]
        verified = await self._verify(token)
        if len(self._verified) >= _MOST_REMEMBERED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = verified
        return verified[0]

    async def keep_fresh(self) -> None:
        while True:
            await self._fetch()
            await asyncio.sleep(FETCH_KEYS_EVERY_SECONDS if self._keys else FETCH_KEYS_NO_SOONER_SECONDS)

    async def _verify(self, token: str) -> tuple[Caller, float]:
        import jwt  # With its cryptography it takes some 20 MiB, which a gateway without a provider keeps.

        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated("The token is not valid.", cause=str(error)) from error
        subject, name = claims["sub"], claims.get(self._name_claim)
        if len(subject) > _LONGEST_SUBJECT:
            raise Unauthenticated("The token is not valid.", cause="its subject is longer than OpenID Connect allows")
        caller = Caller(subject=f"oidc:{subject}", name=str(name or subject))
        return caller, float(claims["exp"])

    async def _key(self, kid: str | None) -> jwt.PyJWK:
        if (key := self._known(kid)) is None:
            await self._fetch(unless=lambda: self._known(kid) is not None or self._has_just_fetched())
            key = self._known(kid)
        if key is not None:
            return key
        if not self._keys:
            raise Unavailable("The identity provider does not answer.", cause="none of its keys is known yet")
        raise Unauthenticated(
            "The token is not valid.", cause="it is signed with a key that the provider does not have"
        )

    def _known(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _has_just_fetched(self) -> bool:
        return self._fetched_at is not None and self._clock() - self._fetched_at < FETCH_KEYS_NO_SOONER_SECONDS

    async def _fetch(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Replace the keys by the provider's present ones; where it does not answer, they stay."""
        import jwt

        async with self._fetching:
            if unless():
                return
            self._fetched_at = self._clock()
            try:
                url = self._jwks_url or await self._discovered()
                document = msgspec.json.decode(await self._get(url), type=dict[str, Any])
                keys = jwt.PyJWKSet.from_dict(document).keys
            except (aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
                _log.warning("the keys of %s cannot be fetched: %s", self._issuer, str(error) or type(error).__name__)
                return
            if document != self._document:
                self._verified.clear()
                self._document = document
                self._keys = {key.key_id: key for key in keys if key.public_key_use in (None, "sig")}

    async def _discovered(self) -> str:
        content = await self._get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        found = msgspec.json.decode(content, type=_Configuration)
        if found.issuer != self._issuer:
            raise ValueError(f"it calls itself {found.issuer!r}")
        if not is_https_or_loopback(found.jwks_uri):
            raise ValueError(f"it has its keys at {found.jwks_uri!r}, which is not https")
        return found.jwks_uri

    async def _get(self, url: str) -> bytes:
        assert self._session is not None, "the provider is not started"
        async with self._session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise ValueError(f"{url} is answered with {answer.status}")
            content = await answer.content.read(_LARGEST_DOCUMENT_BYTES + 1)
            while len(content) <= _LARGEST_DOCUMENT_BYTES and (more := await answer.content.read(65536)):
                content += more
        if len(content) > _LARGEST_DOCUMENT_BYTES:
            raise ValueError(f"{url} is answered with more than {_LARGEST_DOCUMENT_BYTES} bytes")
        return content
