from __future__ import annotations

from ipaddress import ip_address

import pytest

from services.notifier.settings import Settings as NotifierSettings
from services.pipeline_registry.settings import Settings
from shared.addresses import Reach, is_public
from shared.settings import ReachSettings, SettingsError, load


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "192.0.0.192",
        "168.63.129.16",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "2002:a00:1::",
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
    ],
)
def test_what_belongs_to_a_machine_a_link_a_site_or_a_cloud_does_not_pass(address: str) -> None:
    assert not Reach().passes(ip_address(address))
    assert Reach(any_network=True).passes(ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "151.101.1.6", "2606:4700::6810:1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"]
)
def test_what_is_public_passes(address: str) -> None:
    assert Reach().passes(ip_address(address))


def test_a_listed_network_passes_and_its_neighbours_do_not() -> None:
    some = Reach(("10.1.0.0/16", "fd00:1::/32"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:1::9", "8.8.8.8"):
        assert some.passes(ip_address(address))
    for address in ("10.2.0.1", "127.0.0.1", "fd00:2::9", "169.254.169.254"):
        assert not some.passes(ip_address(address))


def test_only_the_outermost_form_is_judged_by_what_it_stands_for() -> None:
    assert is_public(ip_address("2606:4700::1"))
    assert not is_public(ip_address("64:ff9b::8.8.8.8")), "by itself it is no address of anybody"


def test_an_address_in_a_url_is_seen_and_a_name_is_not() -> None:
    for url in ("http://127.0.0.1/x", "https://[::1]:8080/", "http://10.0.0.1"):
        assert not Reach().passes_as_written(url)
        assert Reach(any_network=True).passes_as_written(url)
    for url in ("http://8.8.8.8/x", "https://localhost/"):
        assert Reach().passes_as_written(url)


@pytest.mark.parametrize("settings", [Settings, NotifierSettings])
def test_a_network_that_is_none_is_refused_at_the_start(settings: type[ReachSettings]) -> None:
    environment = {
        "HEADRACE_DATABASE_URL": "x",
        "HEADRACE_NATS_URL": "x",
        "HEADRACE_OBJECT_STORE_URL": "x",
        "HEADRACE_OBJECT_STORE_ACCESS_KEY": "x",
        "HEADRACE_OBJECT_STORE_SECRET_KEY": "x",
    }
    loaded = load(settings, environment | {"HEADRACE_FETCH_ALLOWED_NETWORKS": "10.0.0.0/8, fd00::/8"})
    assert loaded.fetch_allowed_networks == ("10.0.0.0/8", "fd00::/8")
    assert not loaded.fetch_any_network
    with pytest.raises(SettingsError, match=r"10\.0\.0\.0/99"):
        load(settings, environment | {"HEADRACE_FETCH_ALLOWED_NETWORKS": "10.0.0.0/99"})
