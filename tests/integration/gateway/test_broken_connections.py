"""Replicas that are gone, leave, or die; clients that leave. Each upstream here misbehaves on purpose."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from gateway.proxy import Call, Proxy, Replicas
from tests.integration.gateway.house import (
    PLAYED,
    WITHIN_SECONDS,
    GatewayUnderTest,
    House,
    RecordingService,
    refusing_url,
)

OK = b"HTTP/1.1 200 OK\r\n%s: 1\r\nContent-Length: 2\r\n\r\n{}" % PLAYED.encode()


class RawUpstream:
    """Speaks through bare sockets: `act(connection, number)` gets every accepted connection and its number from 1."""

    def __init__(self, act: Callable[[RawConnection, int], None], port: int) -> None:
        self._act = act
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._connections: list[RawConnection] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        actors: list[threading.Thread] = []
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                break
            connection = RawConnection(accepted, self.requests)
            self._connections.append(connection)
            actors.append(threading.Thread(target=self._run, args=(connection, len(self._connections))))
            actors[-1].start()
        for actor in actors:
            actor.join(WITHIN_SECONDS)

    def _run(self, connection: RawConnection, number: int) -> None:
        try:
            self._act(connection, number)
        except OSError:
            pass
        finally:
            connection.close()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.hang_up()
        self._thread.join(WITHIN_SECONDS)
        assert not self._thread.is_alive()


class RawConnection:
    def __init__(self, accepted: socket.socket, requests: list[bytes]) -> None:
        self._socket = accepted
        self._requests = requests
        self.is_closed = threading.Event()

    def read_request(self) -> bool:
        """Wait for one whole request; False where the peer closed instead."""
        received = b""
        while b"\r\n\r\n" not in received:
            if not (data := self._socket.recv(65536)):
                return False
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        length = next((int(h[15:]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")), 0)
        while len(body) < length:
            body += self._socket.recv(65536)
        self._requests.append(head.partition(b"\r\n")[0])
        return True

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()
        self.is_closed.set()

    def hang_up(self) -> None:
        with suppress(OSError):  # The actor or the peer may have ended the connection at this very moment.
            self._socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def raw_upstream(act: Callable[[RawConnection, int], None], port: int = 0) -> Iterator[RawUpstream]:
    upstream = RawUpstream(act, port)
    try:
        yield upstream
    finally:
        upstream.stop()


async def test_requests_spread_evenly_over_replicas(house: House) -> None:
    one, two = RecordingService(), RecordingService()
    gateway = house.gateway(house.service(one).url, house.service(two).url)
    async with gateway.client() as client:
        for _ in range(10):
            await client.get("/apis/v1beta1/runs")

    assert (len(one.seen), len(two.seen)) == (5, 5)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_replica_that_is_down_costs_no_request(house: House, method: str) -> None:
    alive = RecordingService()
    gateway = house.gateway(refusing_url(), house.service(alive).url)
    path = "/apis/v1beta1/runs" if method == "POST" else "/apis/v1beta1/runs/a"
    async with gateway.client() as client:
        answers = [await client.request(method, path, content=b"body") for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert [seen.body for seen in alive.seen] == [b"body"] * 4


async def test_a_streamed_upload_reaches_the_replica_that_is_up(house: House) -> None:
    alive = RecordingService()
    gateway = house.gateway(refusing_url(), refusing_url(), house.service(alive).url)
    async with gateway.client() as client:
        for _ in range(3):
            answer = await client.post("/apis/v1beta1/pipelines/upload", content=b"z" * 1_000_000)
            assert answer.status_code == 200

    assert [len(seen.body) for seen in alive.seen] == [1_000_000] * 3


async def test_no_replica_left_is_an_error_of_the_api_that_names_the_service(house: House) -> None:
    gateway = house.gateway(refusing_url(), refusing_url())
    async with gateway.client() as client:
        answer = await client.post("/apis/v1beta1/jobs", content=b"{}", headers={"X-Request-Id": "mine"})

    text = "The job-scheduler service is not reachable."
    error = f"{text}: no replica accepts a connection"
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json() == {
        "error": error,
        "message": error,
        "code": 14,
        "details": [{"@type": "type.googleapis.com/api.Error", "error_message": text, "error_details": error}],
    }


async def test_a_service_that_comes_up_is_reached_at_once(house: House) -> None:
    url = refusing_url()

    def answer_one(connection: RawConnection, _number: int) -> None:
        connection.read_request()
        connection.write(OK)

    gateway = house.gateway(url)
    async with gateway.client() as client:
        assert (await client.get("/apis/v1beta1/runs")).status_code == 503
        with raw_upstream(answer_one, int(url.rpartition(":")[2])):
            assert (await client.get("/apis/v1beta1/runs")).status_code == 200


async def test_a_name_is_resolved_to_its_replicas(house: House, service: RecordingService) -> None:
    port = house.service(service).port
    gateway = house.gateway(f"dns+http://localhost:{port}")
    async with gateway.client() as client:
        answer = await client.get("/apis/v1beta1/runs")

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"],
    ids=["with a length", "in chunks"],
)
async def test_an_answer_cut_by_its_service_is_cut_for_the_client(house: House, head: bytes) -> None:
    def die_within_the_answer(connection: RawConnection, _number: int) -> None:
        connection.read_request()
        connection.write(head + b"begin")

    with raw_upstream(die_within_the_answer) as upstream:
        gateway = house.gateway(upstream.url)
        async with gateway.client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/apis/v1beta1/runs")

    assert len(upstream.requests) == 1


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_a_written_request_that_may_have_been_applied_is_never_sent_again(house: House, method: str) -> None:
    def die_before_the_answer(connection: RawConnection, _number: int) -> None:
        connection.read_request()

    with raw_upstream(die_before_the_answer) as upstream:
        gateway = house.gateway(upstream.url, upstream.url)
        async with gateway.client() as client:
            answer = await client.request(method, "/apis/headrace/v1/runs", content=b"{}")

    assert answer.status_code == 503
    assert answer.json()["details"][0]["error_message"] == (
        "The run service did not answer; the request may have been applied."
    )
    assert len(upstream.requests) == 1


async def test_an_answer_that_is_not_http_is_unavailable(house: House) -> None:
    def babble(connection: RawConnection, _number: int) -> None:
        connection.read_request()
        connection.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    with raw_upstream(babble) as upstream:
        gateway = house.gateway(upstream.url)
        async with gateway.client() as client:
            answer = await client.get("/apis/v1beta1/runs")

    assert (answer.status_code, answer.json()["code"]) == (503, 14)


def _close_while_answering_the_second(connection: RawConnection, number: int) -> None:
    """The first connection serves one request and ends after reading another; later ones serve."""
    connection.read_request()
    connection.write(OK)
    while connection.read_request():
        if number == 1:
            return
        connection.write(OK)


async def test_a_get_on_a_connection_that_closes_under_it_is_sent_once_more(house: House) -> None:
    with raw_upstream(_close_while_answering_the_second) as upstream:
        gateway = house.gateway(upstream.url)
        async with gateway.client() as client:
            answers = [await client.get("/apis/v1beta1/runs") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len(upstream.requests) == 4


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_only_reads_is_answered_by_another_replica_where_one_dies_over_it(house: House, method: str) -> None:
    def die_before_the_answer(connection: RawConnection, _number: int) -> None:
        connection.read_request()

    alive = RecordingService()
    with raw_upstream(die_before_the_answer) as dying:
        gateway = house.gateway(dying.url, house.service(alive).url)
        async with gateway.client() as client:
            answers = [await client.request(method, "/apis/headrace/v1/runs/a/nodes/b/artifacts/c") for _ in range(4)]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(dying.requests) == 2
    assert len(alive.seen) == 4


async def test_a_post_on_a_connection_that_closes_under_it_is_not_sent_once_more(house: House) -> None:
    with raw_upstream(_close_while_answering_the_second) as upstream:
        gateway = house.gateway(upstream.url)
        async with gateway.client() as client:
            answers = [await client.post("/apis/v1beta1/runs") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 503]
    assert len(upstream.requests) == 2


async def test_an_idle_connection_closed_unseen_by_the_event_loop_is_not_written_to() -> None:
    closed = threading.Event()

    def serve_one(connection: RawConnection, number: int) -> None:
        connection.read_request()
        connection.write(OK)
        if number == 1:
            connection.close()
            closed.set()

    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("a request without a body needs nothing from its client")

    async def send(message: Any) -> None:
        answers.append(message)
        if message["type"] == "http.response.body" and len(answers) == 2:
            # Blocks the event loop on purpose: it must not learn of the close by itself.
            closed.wait(WITHIN_SECONDS)

    call = Call(method="POST", target=b"/apis/v1beta1/runs", headers=[], request_id="r", traceparent="t")
    with raw_upstream(serve_one) as upstream:
        replicas = Replicas("run", [upstream.url])
        async with Proxy(connect_timeout_seconds=1) as proxy:
            for _ in range(2):
                assert await proxy.forward(call, replicas, receive, send) == 200

    assert len(upstream.requests) == 2


async def test_a_replica_that_announces_its_end_is_left_alone(house: House) -> None:
    leaving, staying = RecordingService(), RecordingService()
    leaving.answer_headers.append((b"connection", b"close"))
    gateway = house.gateway(house.service(leaving).url, house.service(staying).url)
    async with gateway.client() as client:
        for _ in range(6):
            await client.post("/apis/v1beta1/runs")

    assert (len(leaving.seen), len(staying.seen)) == (1, 5)


class WatchingService:
    """Notes when its own client, the gateway, goes away."""

    def __init__(self) -> None:
        self.was_asked = threading.Event()
        self.was_left = threading.Event()
        self.answers_for_ever = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.was_asked.set()
        if self.answers_for_ever:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.was_left.set()


async def _happens(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, WITHIN_SECONDS)


@pytest.mark.parametrize(
    ("request_bytes", "answers_for_ever"),
    [
        (b"GET /apis/v1beta1/runs HTTP/1.1\r\nHost: h\r\n\r\n", False),
        (b"GET /apis/v1beta1/runs HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"POST /apis/v1beta1/runs HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"POST /apis/v1beta1/runs HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\npart", False),
        (b"POST /apis/v1beta1/runs HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", False),
    ],
    ids=["waiting for an answer", "within an answer", "after a body", "within a body", "within a chunked body"],
)
async def test_a_client_that_leaves_takes_its_request_along(
    house: House, request_bytes: bytes, answers_for_ever: bool
) -> None:
    service = WatchingService()
    service.answers_for_ever = answers_for_ever
    gateway = house.gateway(house.service(service).url)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request_bytes)
    assert await _happens(service.was_asked)
    if answers_for_ever:
        async with asyncio.timeout(WITHIN_SECONDS):
            await reader.readuntil(b"first\n")

    writer.close()

    assert await _happens(service.was_left)


async def test_a_client_that_leaves_within_a_small_body_reaches_no_service(
    house: House, service: RecordingService, gateway: GatewayUnderTest
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /apis/v1beta1/runs HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\npart")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with gateway.client() as client:
        await client.get("/apis/v1beta1/experiments")

    assert [seen.method for seen in service.seen] == ["GET"]


async def test_an_answer_given_before_the_upload_ends_reaches_the_client(house: House) -> None:
    async def refuse(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"too large"})

    gateway = house.gateway(house.service(refuse).url)
    async with asyncio.timeout(WITHIN_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /apis/v1beta1/pipelines/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\npart")
        answer = await reader.readuntil(b"too large")
        writer.close()

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_many_requests_at_once_each_get_their_own_answer(house: House) -> None:
    async def echo(scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["raw_path"]})

    gateway = house.gateway(house.service(echo).url, house.service(echo).url)
    async with gateway.client() as client:
        paths = [f"/apis/v1beta1/runs/{number}" for number in range(200)]
        answers = await asyncio.gather(*(client.get(path) for path in paths))

    assert [answer.text for answer in answers] == paths
