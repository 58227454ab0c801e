"""What the gateway answers by itself: unknown paths, wrong methods, health and figures."""

from __future__ import annotations

import pytest

from tests.integration.gateway.house import GatewayUnderTest, RecordingService


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "404 page not found\n"),
        ("/ui/index.html", "404 page not found\n"),
        ("/apis/v1beta1/nothing", "Not Found\n"),
        ("/apis/v1beta1/runs/a:b", "Not Found\n"),
    ],
)
async def test_an_unknown_path_is_answered_in_plain_text(
    gateway: GatewayUnderTest, service: RecordingService, path: str, text: str
) -> None:
    async with gateway.client() as client:
        answer = await client.get(path)

    assert (answer.status_code, answer.text) == (404, text)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert service.seen == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH"])
async def test_a_wrong_method_is_answered_without_an_allow_header(
    gateway: GatewayUnderTest, service: RecordingService, method: str
) -> None:
    async with gateway.client() as client:
        answer = await client.request(method, "/apis/v1beta1/runs", headers={"Origin": "http://elsewhere"})

    assert answer.status_code == 405
    assert answer.text == ("" if method == "HEAD" else "Method Not Allowed\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "allow" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert service.seen == []


async def test_a_path_that_is_not_clean_is_redirected_with_its_query(gateway: GatewayUnderTest) -> None:
    answer = await gateway.exchange(
        b"GET /apis//v1beta1/./runs?a=%2F&b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 301 ")
    assert b"\r\nlocation: /apis/v1beta1/runs?a=%2F&b\r\n" in answer


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_healthz_answers_every_method_with_json_as_plain_text(gateway: GatewayUnderTest, method: str) -> None:
    async with gateway.client() as client:
        answer = await client.request(method, "/apis/v1beta1/healthz")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.json() == {"commit_sha": "abc123", "tag_name": "1.0", "multi_user": False}


async def test_readiness_drops_when_draining_while_requests_are_still_answered(gateway: GatewayUnderTest) -> None:
    async with gateway.client() as client:
        assert (await client.get("/readyz")).text == "ok\n"
        gateway.app.health.draining = True
        unready = await client.get("/readyz")
        alive = await client.get("/livez")
        forwarded = await client.get("/apis/v1beta1/runs")

    assert (unready.status_code, unready.text) == (503, "draining\n")
    assert alive.status_code == 200
    assert forwarded.status_code == 200
    assert forwarded.headers["connection"] == "close"


async def test_requests_are_counted_by_service_method_and_code(gateway: GatewayUnderTest) -> None:
    async def counted(client: object) -> dict[str, float]:
        text = (await client.get("/metrics")).text  # type: ignore[attr-defined]
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("headrace_gateway_requests_t")]
        return {labels: float(value) for labels, _, value in lines}

    name = "headrace_gateway_requests_total"
    expected = {
        f'{name}{{code="200",method="GET",service="experiment"}}': 2.0,
        f'{name}{{code="200",method="POST",service="metrics"}}': 1.0,
        f'{name}{{code="404",method="GET",service="none"}}': 1.0,
        f'{name}{{code="405",method="other",service="none"}}': 1.0,
    }
    async with gateway.client() as client:
        before = await counted(client)
        await client.get("/apis/v1beta1/experiments")
        await client.get("/apis/v1beta1/experiments/with-an-id")
        await client.post("/apis/v1beta1/runs/a:reportMetrics")
        await client.get("/apis/v1beta1/nothing")
        await client.request("TRACE", "/apis/v1beta1/runs")
        after = await counted(client)

    assert {labels: after[labels] - before.get(labels, 0.0) for labels in expected} == expected
    assert not [labels for labels in after if "with-an-id" in labels]
