from __future__ import annotations

import jwt
import pytest

from shared.errors import PermissionDenied
from shared.identity import LIFETIME_SECONDS, Caller, Signer, Verifier, calling, check_key, current_caller

KEY = "a key that only the house knows, 32+"
ANNA = Caller(subject="oidc:4711", name="anna@example.org")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_who_was_signed_is_who_is_believed(clock: Clock) -> None:
    assert Verifier(KEY, clock=clock).caller_of(Signer(KEY, clock=clock).header_for(ANNA)) == ANNA


@pytest.mark.parametrize("header", [None, "", "nonsense", "a.b.c"])
def test_a_request_without_an_identity_is_refused(clock: Clock, header: str | None) -> None:
    with pytest.raises(PermissionDenied):
        Verifier(KEY, clock=clock).caller_of(header)


def test_an_identity_signed_with_another_key_is_refused(clock: Clock) -> None:
    forged = Signer("another key, of the same length as it", clock=clock).header_for(ANNA)

    with pytest.raises(PermissionDenied):
        Verifier(KEY, clock=clock).caller_of(forged)


def test_an_identity_without_a_signature_is_refused(clock: Clock) -> None:
    claims = {"iss": "headrace-gateway", "aud": "headrace-services", "sub": "x", "exp": clock.now + 60}

    with pytest.raises(PermissionDenied):
        Verifier(KEY, clock=clock).caller_of(jwt.encode(claims, "", algorithm="none"))


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "exp"])
def test_an_identity_that_lacks_a_claim_is_refused(clock: Clock, claim: str) -> None:
    claims = {"iss": "headrace-gateway", "aud": "headrace-services", "sub": "x", "exp": clock.now + 60}
    del claims[claim]

    with pytest.raises(PermissionDenied):
        Verifier(KEY, clock=clock).caller_of(jwt.encode(claims, KEY, algorithm="HS256"))


def test_an_identity_ends_also_for_a_service_that_has_seen_it(clock: Clock) -> None:
    verifier = Verifier(KEY, clock=clock)
    header = Signer(KEY, clock=clock).header_for(ANNA)
    assert verifier.caller_of(header) == ANNA

    clock.now += LIFETIME_SECONDS + 31

    with pytest.raises(PermissionDenied, match="expired"):
        verifier.caller_of(header)
    with pytest.raises(PermissionDenied, match="expired"):
        Verifier(KEY, clock=clock).caller_of(header)


def test_one_header_serves_until_it_is_half_way_through_its_life(clock: Clock) -> None:
    signer = Signer(KEY, clock=clock)
    first = signer.header_for(ANNA)

    clock.now += LIFETIME_SECONDS / 2 - 1
    assert signer.header_for(ANNA) == first

    clock.now += 1
    second = signer.header_for(ANNA)
    assert second != first
    assert Verifier(KEY, clock=clock).caller_of(second) == ANNA


def test_the_caller_is_known_within_the_request_alone() -> None:
    assert current_caller() is None
    with calling(ANNA):
        assert current_caller() == ANNA
    assert current_caller() is None


def test_a_key_that_could_be_guessed_is_refused() -> None:
    check_key("")
    check_key("x" * 32)
    with pytest.raises(ValueError, match="32 bytes"):
        check_key("x" * 31)
