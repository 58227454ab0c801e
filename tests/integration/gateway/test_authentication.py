"""Who is let in, whom the services are told about, and what the others are answered."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from litestar import Response

from gateway import tokens
from gateway.auth import FETCH_KEYS_NO_SOONER_SECONDS, Provider
from services.run.reports import Reports
from services.run.routes import report_workflow
from shared import identity
from shared.bearer import AgentToken, digest_of
from shared.errors import Unauthenticated
from shared.identity import Verifier, current_caller
from shared.web import create_app as create_service
from shared.web import get
from tests.integration.gateway.house import GatewayUnderTest, House, RecordingService, refusing_url
from tests.support.eventually import eventually
from tests.support.hooks import httpx_client

KEY = "a key that gateway and services share"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def guarded(house: House, service: RecordingService, file: Path) -> GatewayUnderTest:
    """A gateway that takes static tokens."""
    return house.gateway(house.service(service).url, auth=("tokens",), auth_tokens_file=str(file), identity_key=KEY)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class TestStaticTokens:
    async def test_a_request_without_a_token_is_refused_in_the_apis_shape(
        self, guarded: GatewayUnderTest, service: RecordingService
    ) -> None:
        async with guarded.client() as client:
            answer = await client.get("/apis/v1beta1/runs")

        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="headrace"'
        body = answer.json()
        assert body["code"] == 16
        assert body["details"][0]["error_message"] == "The request has no token."
        assert service.seen == []

    @pytest.mark.parametrize("authorization", ["Bearer nobody", "Bearer a.b.c", "Basic YTpi"])
    async def test_a_token_that_is_not_known_is_refused(
        self, guarded: GatewayUnderTest, service: RecordingService, authorization: str
    ) -> None:
        async with guarded.client() as client:
            answer = await client.post("/apis/v1beta1/runs", headers={"Authorization": authorization}, content=b"{}")

        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert service.seen == []

    @pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "{}"])
    async def test_a_holder_of_a_token_is_let_in_and_named_to_the_service(
        self, house: House, service: RecordingService, file: Path, form: str
    ) -> None:
        token = tokens.create(file, "ci")
        gateway = house.gateway(
            house.service(service).url, auth=("tokens",), auth_tokens_file=str(file), identity_key=KEY
        )

        async with gateway.client() as client:
            answer = await client.get("/apis/v1beta1/runs", headers={"Authorization": form.format(token)})

        assert answer.status_code == 200
        caller = Verifier(KEY).caller_of(service.last.header(identity.HEADER))
        assert (caller.subject, caller.name) == ("token:ci", "ci")

    async def test_a_token_counts_from_its_making_to_its_revocation(
        self, guarded: GatewayUnderTest, file: Path
    ) -> None:
        token = tokens.create(file, "ci")
        async with guarded.client() as client:

            async def status() -> int:
                return (await client.get("/apis/v1beta1/runs", headers=bearer(token))).status_code

            async def is_let_in() -> bool:
                return await status() == 200

            async def is_kept_out() -> bool:
                return await status() == 401

            await eventually(is_let_in)
            tokens.revoke(file, "ci")
            await eventually(is_kept_out)

    async def test_what_watches_the_process_and_the_documentation_need_no_token(
        self, guarded: GatewayUnderTest
    ) -> None:
        async with guarded.client() as client:
            for path in ("/livez", "/readyz", "/startupz", "/apis/v1beta1/healthz", "/docs", "/openapi.json"):
                assert (await client.get(path)).status_code == 200, path

    @pytest.mark.parametrize("path", ["/metrics", "/apis/v1alpha1/runs/a/nodes/b/log", "/apis/headrace/v1/runs"])
    async def test_everything_else_needs_one(self, guarded: GatewayUnderTest, path: str) -> None:
        async with guarded.client() as client:
            assert (await client.get(path)).status_code == 401

    async def test_unknown_paths_and_wrong_methods_are_answered_as_ever(self, guarded: GatewayUnderTest) -> None:
        async with guarded.client() as client:
            assert (await client.get("/apis/v1beta1/nothing")).status_code == 404
            assert (await client.put("/apis/v1beta1/runs")).status_code == 405


async def test_nobody_can_name_himself_to_a_service(gateway: GatewayUnderTest, service: RecordingService) -> None:
    async with gateway.client() as client:
        await client.get("/apis/v1beta1/runs", headers={"X-Headrace-Identity": "root"})

    assert service.last.header(identity.HEADER) is None


class TestServicesBehindTheGateway:
    @pytest.fixture
    def asked(self) -> list[str | None]:
        return []

    @pytest.fixture
    def service_url(self, house: House, asked: list[str | None]) -> str:
        @get("/apis/v1beta1/runs")
        async def list_runs() -> Response[bytes]:
            caller = current_caller()
            asked.append(None if caller is None else caller.subject)
            return Response(b"{}", status_code=200)

        return house.service(create_service(service="run", routes=[list_runs], identity_key=KEY)).url

    async def test_a_service_knows_for_whom_it_works(
        self, house: House, file: Path, service_url: str, asked: list[str | None]
    ) -> None:
        token = tokens.create(file, "ci")
        gateway = house.gateway(service_url, auth=("tokens",), auth_tokens_file=str(file), identity_key=KEY)

        async with gateway.client() as client:
            answer = await client.get("/apis/v1beta1/runs", headers=bearer(token))

        assert (answer.status_code, asked) == (200, ["token:ci"])

    async def test_a_service_refuses_whoever_goes_around_the_gateway(
        self, service_url: str, asked: list[str | None]
    ) -> None:
        forged = identity.Signer("a key that somebody else has made up").header_for(
            identity.Caller(subject="token:ci", name="ci")
        )
        async with httpx_client(base_url=service_url) as client:
            for headers in ({}, {identity.HEADER: "nonsense"}, {identity.HEADER: forged}):
                answer = await client.get("/apis/v1beta1/runs", headers=headers)
                assert answer.status_code == 403
                assert answer.json()["code"] == 7
            assert (await client.get("/readyz")).status_code == 200

        assert asked == []


AGENTS_PATHS = ("/apis/v1beta1/workflows", "/apis/v1beta1/scheduledworkflows")
AGENTS_TOKEN = "the agent's token"
AGENTS_DIGEST = digest_of(AGENTS_TOKEN)


class TestTheAgentOfAnExternalEngine:
    @pytest.fixture
    def guarded(self, house: House, service: RecordingService, file: Path) -> GatewayUnderTest:
        self.clients_token = tokens.create(file, "ci")
        return self.gateway(house, service, file)

    def gateway(
        self, house: House, service: Any, file: Path, *, agent_token_sha256: str = AGENTS_DIGEST
    ) -> GatewayUnderTest:
        return house.gateway(
            house.service(service).url,
            auth=("tokens",),
            auth_tokens_file=str(file),
            identity_key=KEY,
            agent_token_sha256=agent_token_sha256,
        )

    @pytest.mark.parametrize("path", AGENTS_PATHS)
    async def test_nobody_else_reports_and_a_missing_token_is_no_challenge(
        self, guarded: GatewayUnderTest, service: RecordingService, path: str
    ) -> None:
        async with guarded.client() as client:
            for headers in ({}, bearer(self.clients_token), bearer("x"), bearer(AGENTS_DIGEST), bearer("a.b.c")):
                answer = await client.post(path, headers=headers, content=b'"{}"')
                assert (answer.status_code, answer.json()["code"]) == (403, 7)
                assert "www-authenticate" not in answer.headers
        assert service.seen == []

    @pytest.mark.parametrize("path", AGENTS_PATHS)
    async def test_the_agents_token_passes_to_be_looked_at_again_by_the_service(
        self, guarded: GatewayUnderTest, service: RecordingService, path: str
    ) -> None:
        async with guarded.client() as client:
            answer = await client.post(path, headers=bearer(AGENTS_TOKEN), content=b'"{}"')

        assert (answer.status_code, service.last.body) == (200, b'"{}"')
        assert Verifier(KEY).caller_of(service.last.header(identity.HEADER)).subject == "agent"
        assert service.last.header("authorization") == f"Bearer {AGENTS_TOKEN}"

    async def test_the_agents_token_opens_nothing_else(self, guarded: GatewayUnderTest) -> None:
        async with guarded.client() as client:
            answer = await client.get("/apis/v1beta1/runs", headers=bearer(AGENTS_TOKEN))
        assert answer.status_code == 401

    async def test_without_a_configured_token_nobody_is_the_agent(
        self, house: House, service: RecordingService, file: Path
    ) -> None:
        async with self.gateway(house, service, file, agent_token_sha256="").client() as client:
            answer = await client.post(AGENTS_PATHS[0], headers=bearer(AGENTS_TOKEN))
        assert (answer.status_code, service.seen) == (403, [])

    async def test_a_stranger_is_refused_before_the_body_is_read(self, guarded: GatewayUnderTest) -> None:
        head = f"POST {AGENTS_PATHS[0]} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
        assert (await guarded.exchange(head.encode())).startswith(b"HTTP/1.1 403 ")

    @pytest.mark.parametrize("path", AGENTS_PATHS)
    async def test_where_nobody_is_asked_the_service_alone_asks_the_agent(
        self, gateway: GatewayUnderTest, service: RecordingService, path: str
    ) -> None:
        async with gateway.client() as client:
            for headers in ({}, bearer(AGENTS_TOKEN)):
                assert (await client.post(path, headers=headers, content=b'"{}"')).status_code == 200
        assert [seen.header("authorization") for seen in service.seen] == [None, f"Bearer {AGENTS_TOKEN}"]

    @pytest.mark.parametrize("is_authenticated", [True, False])
    async def test_the_agent_comes_through_to_the_run_service(
        self, house: House, file: Path, is_authenticated: bool
    ) -> None:
        reports = RecordingReports()
        app = create_service(
            service="run",
            routes=[report_workflow],
            identity_key=KEY if is_authenticated else "",
            dependencies={"agent": AgentToken(AGENTS_DIGEST), "reports": reports},
        )
        gateway = self.gateway(house, app, file) if is_authenticated else house.gateway(house.service(app).url)

        async with gateway.client() as client:
            statuses = [
                (await client.post(AGENTS_PATHS[0], headers=bearer(token), content=b'"{}"')).status_code
                for token in ("x", AGENTS_TOKEN)
            ]

        assert (statuses, reports.taken_in) == ([403, 200], ["{}"])


class RecordingReports(Reports):
    """In the place of what the run service does with a report."""

    def __init__(self) -> None:
        self.taken_in: list[str] = []

    async def take_in(self, text: str) -> None:
        self.taken_in.append(text)


class IdentityProvider:
    """Serves its discovery document and its public keys, and signs tokens."""

    def __init__(self) -> None:
        self.url = ""
        self.answers = True
        self.asked = 0
        self._keys: dict[str, rsa.RSAPrivateKey] = {}

    def rotate(self, kid: str) -> None:
        self._keys = {kid: rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    def token(self, *, key_named: str | None = None, **claims: Any) -> str:
        """Signed with the key there is, whatever it is said to be named."""
        kid, key = next(iter(self._keys.items()))
        given = {"iss": self.url, "aud": "headrace", "sub": "4711", "email": "anna@example.org"}
        all_claims = {**given, "exp": time.time() + 60, **claims}
        return jwt.encode(all_claims, key, algorithm="RS256", headers={"kid": key_named or kid})

    @property
    def jwks(self) -> dict[str, Any]:
        return {
            "keys": [
                {**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", "alg": "RS256"}
                for kid, key in self._keys.items()
            ]
        }

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        documents = {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/keys"},
            "/keys": self.jwks,
        }
        self.asked += scope["path"] == "/keys"
        status = 200 if self.answers else 500
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(documents[scope["path"]]).encode()})


class TestIdentityProvider:
    @pytest.fixture
    def provider(self, house: House) -> IdentityProvider:
        provider = IdentityProvider()
        provider.url = house.service(provider).url
        provider.rotate("first")
        return provider

    @pytest.fixture
    def guarded(self, house: House, service: RecordingService, provider: IdentityProvider) -> GatewayUnderTest:
        return house.gateway(
            house.service(service).url,
            auth=("oidc",),
            identity_key=KEY,
            oidc_issuer=provider.url,
            oidc_audience="headrace",
            oidc_name_claim="email",
        )

    async def status(self, gateway: GatewayUnderTest, token: str) -> int:
        async with gateway.client() as client:
            return (await client.get("/apis/v1beta1/runs", headers=bearer(token))).status_code

    async def test_whom_the_provider_vouches_for_is_let_in_by_name(
        self, guarded: GatewayUnderTest, provider: IdentityProvider, service: RecordingService
    ) -> None:
        assert await self.status(guarded, provider.token()) == 200

        caller = Verifier(KEY).caller_of(service.last.header(identity.HEADER))
        assert (caller.subject, caller.name) == ("oidc:4711", "anna@example.org")

    @pytest.mark.parametrize(
        "claims",
        [
            {"aud": "another"},
            {"iss": "https://elsewhere"},
            {"exp": time.time() - 60},
            {"sub": None},
            {"sub": "4711" * 100},
        ],
    )
    async def test_a_token_made_out_otherwise_is_refused(
        self, guarded: GatewayUnderTest, provider: IdentityProvider, claims: dict[str, Any]
    ) -> None:
        token = provider.token(**claims)

        assert await self.status(guarded, token) == 401
        assert await self.status(guarded, token) == 401

    async def test_a_public_key_is_not_taken_for_a_shared_secret(
        self, guarded: GatewayUnderTest, provider: IdentityProvider
    ) -> None:
        claims = {"iss": provider.url, "aud": "headrace", "sub": "4711", "exp": time.time() + 60}
        secret = provider.jwks["keys"][0]["n"]
        forged = jwt.encode(claims, secret, algorithm="HS256", headers={"kid": "first"})
        unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": "first"})

        assert await self.status(guarded, forged) == 401
        assert await self.status(guarded, unsigned) == 401

    async def test_a_token_is_remembered_no_longer_than_it_is_valid(
        self, guarded: GatewayUnderTest, provider: IdentityProvider
    ) -> None:
        ends_soon = provider.token(exp=time.time() - 29)  # clocks may differ by 30 s

        async def is_kept_out() -> bool:
            return await self.status(guarded, ends_soon) == 401

        await eventually(is_kept_out)

    async def test_a_new_key_counts_at_once_and_a_withdrawn_one_no_longer(self, provider: IdentityProvider) -> None:
        now = 0.0
        async with Provider(issuer=provider.url, audience="headrace", clock=lambda: now) as keys:
            old = provider.token()
            assert (await keys.caller_of(old)).subject == "oidc:4711"
            assert (await keys.caller_of(old)).subject == "oidc:4711"
            assert provider.asked == 1

            provider.rotate("second")
            now = FETCH_KEYS_NO_SOONER_SECONDS
            assert (await keys.caller_of(provider.token())).subject == "oidc:4711"

            with pytest.raises(Unauthenticated):
                await keys.caller_of(old)

    async def test_a_provider_that_stops_answering_takes_nothing_away(self, provider: IdentityProvider) -> None:
        now = 0.0
        async with Provider(issuer=provider.url, audience="headrace", clock=lambda: now) as keys:
            await keys.caller_of(provider.token())
            provider.answers = False
            now = FETCH_KEYS_NO_SOONER_SECONDS

            with pytest.raises(Unauthenticated, match="does not have"):
                await keys.caller_of(provider.token(key_named="another"))
            assert (await keys.caller_of(provider.token(sub="new"))).subject == "oidc:new"

    async def test_unknown_keys_do_not_make_us_flood_the_provider(
        self, guarded: GatewayUnderTest, provider: IdentityProvider
    ) -> None:
        assert await self.status(guarded, provider.token()) == 200
        asked = provider.asked
        provider.rotate("second")
        stranger = provider.token()
        for _ in range(5):
            assert await self.status(guarded, stranger) == 401

        assert provider.asked == asked

    async def test_a_provider_that_never_answered_is_an_outage_and_not_a_refusal(
        self, house: House, service: RecordingService, provider: IdentityProvider
    ) -> None:
        gateway = house.gateway(
            house.service(service).url,
            auth=("oidc",),
            identity_key=KEY,
            oidc_issuer=provider.url,
            oidc_audience="headrace",
            oidc_jwks_url=f"{refusing_url()}/keys",
        )

        assert await self.status(gateway, provider.token()) == 503
