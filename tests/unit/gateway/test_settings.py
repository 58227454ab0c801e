from __future__ import annotations

import pytest

from gateway.settings import Settings
from shared.settings import SettingsError, load

COMPLETE = {
    f"HEADRACE_{service}_UPSTREAMS": "http://127.0.0.1:8001"
    for service in ("EXPERIMENT", "PIPELINE_REGISTRY", "RUN", "JOB_SCHEDULER", "METRICS", "NOTIFIER")
}


def test_upstreams_are_lists_of_addresses_and_names() -> None:
    settings = load(Settings, COMPLETE | {"HEADRACE_RUN_UPSTREAMS": "http://10.0.0.1:80, dns+http://run:8080"})

    assert settings.run_upstreams == ("http://10.0.0.1:80", "dns+http://run:8080")
    assert (settings.listen_host, settings.listen_port) == ("127.0.0.1", 8888)


@pytest.mark.parametrize(
    "upstreams", [",", "run:80", "https://run:443", "http://run", "http://run:80/api", "http://user:word@run:80", "://"]
)
def test_an_upstream_that_cannot_be_reached_is_refused_by_name(upstreams: str) -> None:
    with pytest.raises(SettingsError, match="run_upstreams"):
        load(Settings, COMPLETE | {"HEADRACE_RUN_UPSTREAMS": upstreams})


def test_a_service_without_upstreams_is_refused_by_name() -> None:
    environment = {name: value for name, value in COMPLETE.items() if "METRICS" not in name}

    with pytest.raises(SettingsError, match="HEADRACE_METRICS_UPSTREAMS is not set"):
        load(Settings, environment)


KEY = "k" * 32


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gateway.example"])
def test_a_gateway_open_to_others_must_say_how_they_prove_themselves(host: str) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_AUTH"):
        load(Settings, COMPLETE | {"HEADRACE_LISTEN_HOST": host})


def test_a_gateway_open_to_others_without_authentication_must_be_meant() -> None:
    settings = load(Settings, COMPLETE | {"HEADRACE_LISTEN_HOST": "0.0.0.0", "HEADRACE_AUTH": "none"})

    assert not settings.authenticates


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_on_loopback_authentication_is_off_unless_asked_for(host: str) -> None:
    assert not load(Settings, COMPLETE | {"HEADRACE_LISTEN_HOST": host}).authenticates


@pytest.mark.parametrize(
    ("lacking", "environment"),
    [
        ("HEADRACE_IDENTITY_KEY", {"HEADRACE_AUTH": "tokens", "HEADRACE_AUTH_TOKENS_FILE": "t"}),
        ("32 bytes", {"HEADRACE_AUTH": "tokens", "HEADRACE_IDENTITY_KEY": "short"}),
        ("HEADRACE_AUTH_TOKENS_FILE", {"HEADRACE_AUTH": "tokens", "HEADRACE_IDENTITY_KEY": KEY}),
        ("HEADRACE_OIDC_ISSUER", {"HEADRACE_AUTH": "oidc", "HEADRACE_IDENTITY_KEY": KEY}),
        (
            "not an https URL",
            {
                "HEADRACE_AUTH": "oidc",
                "HEADRACE_IDENTITY_KEY": KEY,
                "HEADRACE_OIDC_ISSUER": "http://accounts.example",
                "HEADRACE_OIDC_AUDIENCE": "headrace",
            },
        ),
        ("cannot be combined", {"HEADRACE_AUTH": "none,tokens", "HEADRACE_IDENTITY_KEY": KEY}),
        ("HEADRACE_AUTH=", {"HEADRACE_AUTH": "basic"}),
        ("agent_token_sha256", {"HEADRACE_AGENT_TOKEN_SHA256": "the token itself"}),
    ],
)
def test_a_way_to_authenticate_that_lacks_something_is_refused(lacking: str, environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=lacking):
        load(Settings, COMPLETE | environment)


def test_tokens_and_a_provider_can_both_be_accepted() -> None:
    settings = load(
        Settings,
        COMPLETE
        | {
            "HEADRACE_AUTH": "tokens, oidc",
            "HEADRACE_AUTH_TOKENS_FILE": "tokens.json",
            "HEADRACE_IDENTITY_KEY": KEY,
            "HEADRACE_OIDC_ISSUER": "https://accounts.example",
            "HEADRACE_OIDC_AUDIENCE": "headrace",
        },
    )

    assert settings.auth == ("tokens", "oidc")
