"""How a bearer's token is read, and who is the agent."""

from __future__ import annotations

import pytest

from shared.bearer import AgentToken, check_sha256, credential_of, digest_of
from shared.errors import PermissionDenied

TOKEN = "the agent's token"


@pytest.mark.parametrize(
    ("authorization", "credential"),
    [("Bearer a", "a"), ("bearer  a ", "a"), ("a", "a"), ("Basic YTpi", None), ("", "")],
)
def test_a_token_comes_as_a_bearers_or_bare(authorization: str, credential: str | None) -> None:
    assert credential_of(authorization) == credential


def test_the_holder_of_the_agents_token_is_the_agent() -> None:
    agent = AgentToken(digest_of(TOKEN))
    agent.check(f"Bearer {TOKEN}")
    agent.check(f"bearer {TOKEN} ")


@pytest.mark.parametrize("configured", ["", digest_of(TOKEN), digest_of("")])
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", digest_of(TOKEN)])
def test_nobody_else_is_and_nobody_at_all_without_a_configured_token(
    configured: str, authorization: str | None
) -> None:
    with pytest.raises(PermissionDenied) as refused:
        AgentToken(configured).check(authorization)
    assert (refused.value.status, refused.value.code) == (403, 7)


def test_a_token_is_not_taken_for_its_digest() -> None:
    check_sha256("")
    check_sha256(digest_of(TOKEN))
    for wrong in (TOKEN, digest_of(TOKEN).upper(), digest_of(TOKEN)[:-1], digest_of(TOKEN) + "\n"):
        with pytest.raises(ValueError, match="agent_token_sha256"):
            check_sha256(wrong)
