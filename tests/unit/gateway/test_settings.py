from __future__ import annotations

import pytest

from gateway.settings import Settings
from shared.settings import SettingsError, load

COMPLETE = {
    f"HEADRACE_{service}_UPSTREAMS": "http://127.0.0.1:8001"
    for service in ("EXPERIMENT", "PIPELINE_REGISTRY", "RUN", "JOB_SCHEDULER", "METRICS")
}


def test_upstreams_are_lists_of_addresses_and_names() -> None:
    settings = load(Settings, COMPLETE | {"HEADRACE_RUN_UPSTREAMS": "http://10.0.0.1:80, dns+http://run:8080"})

    assert settings.run_upstreams == ("http://10.0.0.1:80", "dns+http://run:8080")
    assert (settings.listen_host, settings.listen_port) == ("127.0.0.1", 8888)


@pytest.mark.parametrize(
    "upstreams", ["", "run:80", "https://run:443", "http://run", "http://run:80/api", "http://user:word@run:80", "://"]
)
def test_an_upstream_that_cannot_be_reached_is_refused_by_name(upstreams: str) -> None:
    with pytest.raises(SettingsError, match="run_upstreams"):
        load(Settings, COMPLETE | {"HEADRACE_RUN_UPSTREAMS": upstreams})


def test_a_service_without_upstreams_is_refused_by_name() -> None:
    environment = {name: value for name, value in COMPLETE.items() if "METRICS" not in name}

    with pytest.raises(SettingsError, match="HEADRACE_METRICS_UPSTREAMS is not set"):
        load(Settings, environment)
