"""The documentation through a real gateway: put together from what services publish, and files of this machine."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from litestar import Response

from gateway.table import PAGES
from shared.web import create_app as create_service
from shared.web import get
from tests.integration.gateway.house import GatewayUnderTest, House, refusing_url

ALERTS = Path(__file__).parents[3] / "infra" / "observability" / "alerts.yaml"


@get("/apis/v1beta1/runs")
async def list_runs() -> Response[bytes]:
    return Response(b"{}", status_code=200)


@pytest.fixture
def gateway(house: House) -> GatewayUnderTest:
    return house.gateway(house.service(create_service(service="run", routes=[list_runs])).url)


@pytest.mark.parametrize("path", ["/openapi.json", "/apis/headrace/v1/openapi.json"])
async def test_the_document_names_the_address_that_the_client_used(gateway: GatewayUnderTest, path: str) -> None:
    async with gateway.client() as client:
        answer = await client.get(path, headers={"Host": "pipelines.example:8080"})

    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["openapi"] == "3.1.0"
    assert "http://pipelines.example:8080/apis/v1beta1/healthz" in answer.text


async def test_behind_a_proxy_the_address_is_the_proxys(gateway: GatewayUnderTest) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pipelines.example"}
    async with gateway.client() as client:
        answer = await client.get("/openapi.json", headers=forwarded)

    assert "https://pipelines.example/apis/v1beta1/healthz" in answer.text


@pytest.mark.parametrize("host", ['evil"><script>', "a b", "x/../y", "$(reboot)", "`id`", "a;b"])
async def test_an_address_that_is_none_is_not_repeated(gateway: GatewayUnderTest, host: str) -> None:
    async with gateway.client() as client:
        answer = await client.get("/openapi.json", headers={"X-Forwarded-Host": host})

    assert answer.status_code == 200
    assert host not in answer.text
    assert "http://127.0.0.1:8888/apis/v1beta1/healthz" in answer.text


async def test_a_document_with_holes_is_not_given(house: House) -> None:
    gateway = house.gateway(refusing_url())

    async with gateway.client() as client:
        answer = await client.get("/openapi.json")

    assert answer.status_code == 503
    assert answer.json()["code"] == 14


@pytest.mark.parametrize("path", [path for path in PAGES if path != "/docs/"])
async def test_every_page_is_there_with_its_type_and_policy(gateway: GatewayUnderTest, path: str) -> None:
    async with gateway.client() as client:
        answer = await client.get(path)
        posted = await client.post(path)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(("text/html", "text/javascript", "text/css", "text/plain"))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert len(answer.content) > 100
    assert posted.status_code == 405


WRITTEN = [path for path in PAGES if path.endswith(".md")]


@pytest.mark.parametrize("path", WRITTEN)
async def test_a_browser_is_shown_a_page_whose_links_lead_somewhere(gateway: GatewayUnderTest, path: str) -> None:
    async with gateway.client() as client:
        page = await client.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["vary"] == "accept"
        assert "<h1 id=" in page.text
        for link in re.findall(r'<a href="([^"]+)"', page.text):
            if not link.startswith("https://"):
                there = await client.get(urljoin(path, link), headers={"Accept": "text/html"})
                fragment = urlsplit(link).fragment
                assert there.status_code == 200, link
                assert not fragment or f' id="{fragment}"' in there.text, link


@pytest.mark.parametrize("path", WRITTEN)
async def test_whoever_is_no_browser_reads_a_page_as_it_was_written(gateway: GatewayUnderTest, path: str) -> None:
    async with gateway.client() as client:
        answer = await client.get(path, headers={"Accept": "*/*"})

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("# ")


async def test_the_page_that_an_alert_names_has_its_place(gateway: GatewayUnderTest) -> None:
    named = re.findall(r"runbook: (\S+)", ALERTS.read_text())
    async with gateway.client() as client:
        for page, _, place in (name.partition("#") for name in named):
            answer = await client.get(f"/{page}", headers={"Accept": "text/html"})
            assert f' id="{place}"' in answer.text
    assert named


async def test_the_large_script_is_sent_compressed(gateway: GatewayUnderTest) -> None:
    answer = await gateway.exchange(
        b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    )
    head, _, body = answer.partition(b"\r\n\r\n")

    assert b"content-encoding: gzip" in head
    assert b"SwaggerUIBundle" in gzip.decompress(body)
    assert len(body) < 600_000


async def test_a_slash_at_the_end_leads_to_the_page(gateway: GatewayUnderTest) -> None:
    async with gateway.client() as client:
        answer = await client.get("/docs/")

    assert (answer.status_code, answer.headers["location"]) == (301, "../docs")


@pytest.mark.parametrize(
    "path", ["/docs/../settings.py", "/docs/%2e%2e/settings.py", "/docs/introduction.md", "/docs/x"]
)
async def test_no_other_file_can_be_asked_for(gateway: GatewayUnderTest, path: str) -> None:
    answer = await gateway.exchange(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())

    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 301 "))
