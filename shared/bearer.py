"""Tokens that come as `Authorization: Bearer …`: how they are read, what is kept of them, and the agent's among them.

The agent of an external engine reports what its workflows do (API specification, sections 1.1 and 12), and proves
itself by a token of its own. What is configured is its SHA-256, the same at the services that take reports and at the
gateway, which lets the agent in by it where clients are asked who they are. Without one nobody is the agent.
"""

from __future__ import annotations

import hashlib
import re
from hmac import compare_digest

from shared.errors import PermissionDenied

_SHA256 = re.compile(r"[0-9a-f]{64}")


def credential_of(authorization: str) -> str | None:
    """The token in the header: a bearer's, or bare, as generated clients send it that nobody told the prefix.

    None where it is another scheme's.
    """
    scheme, _, rest = authorization.strip().partition(" ")
    if not rest:
        return scheme
    return rest.strip() if scheme.lower() == "bearer" else None


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def check_sha256(digest: str) -> None:
    """Raises ValueError for what is no SHA-256, such as the token itself. Empty means that there is no agent."""
    if digest and not _SHA256.fullmatch(digest):
        raise ValueError("agent_token_sha256 must be the token's SHA-256, in 64 lower case hexadecimal digits")


class AgentToken:
    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256

    def check(self, authorization: str | None) -> None:
        """Raises PermissionDenied unless the header holds the agent's token."""
        credential = credential_of(authorization or "")
        # The digest of nothing may be configured by mistake, as that of a variable that was not set.
        if not credential or not compare_digest(digest_of(credential), self._sha256):
            raise PermissionDenied("Reports are accepted from the persistence agent alone.")
