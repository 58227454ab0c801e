"""What a service sees of a client's request, and a client of a service's answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.integration.gateway.house import GatewayUnderTest, RecordingService

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    "target",
    [
        b"/apis/v1beta1/runs?page_size=5&page_size=6&filter=%7B%22a%22%3A%5B1%5D%7D&empty=&flag",
        b"/apis/v1beta1/runs/a:archive",
        b"/apis/v1beta1/runs/a%3Aarchive",
        b"/apis/v1beta1/runs/a%2Fterminate",
        b"/apis/v1beta1/runs/",
        b"/apis/v1beta1/runs/a%20b%00%ff%E2%82%AC",
        b"/apis/v1beta1/runs/a;b=c,d@e!$&'()*+",
        b"/apis/v1beta1/runs/" + b"x" * 7000,
    ],
)
async def test_path_and_query_arrive_as_they_were_sent(
    gateway: GatewayUnderTest, service: RecordingService, target: bytes
) -> None:
    is_verb = b"archive" in target or b"terminate" in target
    method = b"POST" if is_verb else b"GET"

    answer = await gateway.exchange(method + b" " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")
    path, _, query = target.partition(b"?")
    assert (service.last.method.encode(), service.last.raw_path, service.last.query) == (method, path, query)


async def test_a_body_of_known_length_arrives_with_its_length(
    gateway: GatewayUnderTest, service: RecordingService
) -> None:
    async with gateway.client() as client:
        for size in (0, 1, 70_000, 300_000):
            await client.post("/apis/v1beta1/runs", content=b"x" * size)

            assert len(service.last.body) == size
            assert service.last.header("content-length") == str(size)
            assert service.last.header("transfer-encoding") is None


async def test_a_body_of_unknown_length_arrives_in_chunks(gateway: GatewayUnderTest, service: RecordingService) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"y" * 10_000

    async with gateway.client() as client:
        answer = await client.post("/apis/v1beta1/pipelines/upload", content=chunks())

    assert answer.status_code == 200
    assert service.last.body == b"y" * 500_000
    assert service.last.header("transfer-encoding") == "chunked"
    assert service.last.header("content-length") is None


async def test_a_get_arrives_without_a_body_and_without_invented_headers(
    gateway: GatewayUnderTest, service: RecordingService
) -> None:
    await gateway.exchange(b"GET /apis/v1beta1/runs HTTP/1.1\r\nHost: kfp.example\r\nConnection: close\r\n\r\n")

    assert {name for name, _ in service.last.headers} == {b"host", b"x-request-id", b"traceparent"}
    assert service.last.header("host") == "kfp.example"


async def test_hop_by_hop_headers_stay_on_their_hop(gateway: GatewayUnderTest, service: RecordingService) -> None:
    service.answer_headers = [
        (b"content-type", b"application/json"),
        (b"grpc-metadata-content-type", b"application/grpc"),
        (b"connection", b"keep-alive, x-inner"),
        (b"keep-alive", b"timeout=5"),
        (b"x-inner", b"secret"),
        (b"x-outer", b"caf\xe9"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"server", b"inner"),
    ]
    headers = {
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "secret",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Proxy-Authorization": "Basic eA==",
        "X-Kept": "kept",
        "Cookie": "a=1",
        "Authorization": "Bearer t",
        "Accept-Encoding": "gzip",
    }
    async with gateway.client() as client:
        answer = await client.get("/apis/v1beta1/runs", headers=headers)
    async with gateway.client() as another:
        await another.get("/apis/v1beta1/runs")

    first = service.seen[0]
    sent = {name for name, _ in first.headers}
    assert sent.isdisjoint({b"connection", b"x-mine", b"keep-alive", b"te", b"proxy-authorization"})
    assert (first.header("x-kept"), first.header("cookie"), first.header("authorization")) == (
        "kept",
        "a=1",
        "Bearer t",
    )
    assert first.header("accept-encoding") == "gzip"
    assert answer.headers["grpc-metadata-content-type"] == "application/grpc"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert (b"x-outer", b"caf\xe9") in answer.headers.raw
    assert {"x-inner", "keep-alive", "server"}.isdisjoint(answer.headers)
    assert len(answer.headers.get_list("date")) == 1
    assert service.last.header("cookie") is None, "one client's cookie went to another"


async def test_a_client_s_request_id_is_forwarded_and_answered(
    gateway: GatewayUnderTest, service: RecordingService
) -> None:
    service.answer_headers.append((b"x-request-id", b"the-service-s-own"))
    async with gateway.client() as client:
        answer = await client.get("/apis/v1beta1/runs", headers={"X-Request-Id": "ci/job-7"})

    assert answer.headers.get_list("x-request-id") == ["ci/job-7"]
    assert service.last.header("x-request-id") == "ci/job-7"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a,b", "<script>"])
async def test_a_request_id_that_is_none_is_replaced(
    gateway: GatewayUnderTest, service: RecordingService, given: str
) -> None:
    async with gateway.client() as client:
        answer = await client.get("/apis/v1beta1/runs", headers={"X-Request-Id": given})

    made = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert service.last.header("x-request-id") == made


async def test_every_answer_of_the_gateway_s_own_names_its_request(gateway: GatewayUnderTest) -> None:
    async with gateway.client() as client:
        for path in ("/nothing", "/apis/v1beta1/nothing", "/apis/v1beta1/healthz", "//x", "/metrics", "/readyz"):
            answer = await client.get(gateway.url + path, headers={"X-Request-Id": "mine"})
            assert answer.headers.get_list("x-request-id") == ["mine"]


async def test_a_trace_goes_on_through_the_gateway(gateway: GatewayUnderTest, service: RecordingService) -> None:
    async with gateway.client() as client:
        await client.get("/apis/v1beta1/runs", headers={"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"})

    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-01", service.last.header("traceparent") or "")


async def test_a_trace_begins_where_the_client_has_none(gateway: GatewayUnderTest, service: RecordingService) -> None:
    async with gateway.client() as client:
        await client.get("/apis/v1beta1/runs", headers={"traceparent": "00-garbage"})

    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", service.last.header("traceparent") or "")


async def test_a_form_post_becomes_the_get_it_stands_for(gateway: GatewayUnderTest, service: RecordingService) -> None:
    long = "x" * 50_000
    async with gateway.client() as client:
        answer = await client.post("/apis/v1beta1/runs/a?page_size=2", data={"page_size": "1", "filter": long})

    assert answer.status_code == 200
    assert (service.last.method, service.last.body) == ("GET", b"")
    assert service.last.query == b"page_size=1&filter=" + long.encode() + b"&page_size=2"
    assert service.last.header("content-type") is None
    assert service.last.header("content-length") is None


async def test_a_form_cannot_smuggle_a_second_request(gateway: GatewayUnderTest, service: RecordingService) -> None:
    form = b"a=1 HTTP/1.1\r\nX-Evil: yes\r\n\r\nGET /evil#f\xff"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "X-HTTP-Method-Override": "GET"}
    async with gateway.client() as client:
        await client.post("/apis/v1beta1/runs", content=form, headers=headers)

    assert len(service.seen) == 1
    assert service.last.header("x-evil") is None
    assert service.last.header("x-http-method-override") is None
    assert service.last.query.startswith(b"a=1+HTTP%2F1.1%0D%0AX-Evil")


@pytest.mark.parametrize("value", ["x" * 1_000_000, "\n" * 30_000])
async def test_a_form_too_large_for_a_query_is_refused(
    gateway: GatewayUnderTest, service: RecordingService, value: str
) -> None:
    async with gateway.client() as client:
        answer = await client.post(
            "/apis/v1beta1/runs/a",
            content=f"filter={value}",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )

    assert answer.status_code == 400
    assert answer.json()["code"] == 3
    assert service.seen == []


async def test_a_redirect_of_a_service_is_the_client_s_to_follow(
    gateway: GatewayUnderTest, service: RecordingService
) -> None:
    service.status = 302
    service.answer_headers.append((b"location", b"/apis/v1beta1/runs/b"))
    async with gateway.client() as client:
        answer = await client.get("/apis/v1beta1/runs/a")

    assert (answer.status_code, answer.headers["location"], len(service.seen)) == (302, "/apis/v1beta1/runs/b", 1)


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_keeps_the_connection_usable(
    gateway: GatewayUnderTest, service: RecordingService, status: int
) -> None:
    service.status = status
    async with gateway.client() as client:
        for _ in range(2):
            answer = await client.head("/apis/headrace/v1/runs")
            assert (answer.status_code, answer.content) == (status, b"")


async def test_no_character_in_an_id_is_a_fault_of_ours(gateway: GatewayUnderTest, service: RecordingService) -> None:
    for character in (chr(code) for code in range(0x21, 0x7F) if chr(code) not in "/#?"):
        target = f"/apis/v1beta1/runs/a{character}b/terminate?x={character}".encode()

        answer = await gateway.exchange(b"POST " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

        assert answer.startswith(b"HTTP/1.1 200 "), (character, answer)
        assert service.last.raw_path + b"?" + service.last.query == target


async def test_bytes_beyond_ascii_in_a_path_are_no_fault_of_ours(gateway: GatewayUnderTest) -> None:
    answer = await gateway.exchange(
        b"GET /apis/v1beta1/runs/\xff\xc3\xa9?a=\xff HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    )

    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 4")), answer
