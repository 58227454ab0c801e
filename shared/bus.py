"""The one door to NATS: facts on JetStream, questions over request/reply, pings, dead letters.

It knows subjects, headers and streams; it knows no table and no rule. What makes delivery exact (positions,
cursors, leases) lives in `shared.outbox` and `shared.subscriptions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from shared.contracts.questions import Question
from shared.errors import Internal, Refusal, Unavailable, from_document, to_document
from shared.telemetry import continue_trace, current_traceparent

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

_log = logging.getLogger(__name__)

EVENTS_STREAM = "KFP_EVENTS"
DEAD_STREAM = "KFP_DEAD"

_OLDEST_SERVER = (2, 10)
_DEDUPLICATION_SECONDS = 10 * 60
_ACK_WAIT_SECONDS = 10
_IN_FLIGHT = 256

_REFUSAL = "Nats-Service-Error"
_REFUSAL_CODE = "Nats-Service-Error-Code"

_UNREACHABLE = (
    OSError,
    asyncio.TimeoutError,
    nats.errors.NoServersError,
    nats.errors.ConnectionClosedError,
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.UnexpectedEOF,
    nats.errors.StaleConnectionError,
)


class BusError(Exception):
    """The broker did not take what we gave it, or is not there; trying again later is right."""


class UnsuitableServer(Exception):
    """The server answers and cannot be used; waiting does not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A fact as it travels: CloudEvents attributes, the owner's position, and the body's bytes."""

    id: str
    type: str
    owner: str
    what: str
    resource_id: str
    position: int
    time: datetime
    traceparent: str
    body: bytes

    @property
    def subject(self) -> str:
        return f"kfp.event.{self.owner}.{self.what}.{self.resource_id}"

    @property
    def headers(self) -> dict[str, str]:
        """CloudEvents 1.0, NATS binary binding."""
        return {
            "Nats-Msg-Id": self.id,
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-type": self.type,
            "ce-source": f"/headrace/{self.owner}",
            "ce-subject": self.resource_id,
            "ce-time": self.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "ce-datacontenttype": "application/json",
            "ce-position": str(self.position),
            "content-type": "application/json",
            "traceparent": self.traceparent,
        }


class Bus:
    """One connection of one process. Reconnects for ever; calls made meanwhile fail with Unavailable or BusError."""

    def __init__(self, url: str, *, name: str) -> None:
        """`name` is what the server shows of this process. Nothing is connected before `open`."""
        self._url = url
        self._name = name
        self._reconnected: list[Callable[[], None]] = []
        self._opened: Client | None = None

    async def open(self, *, patience_seconds: float = 60) -> Self:
        """Connect, waiting for a server that is still starting.

        Raises Unavailable when no server answers in time, UnsuitableServer when one older than 2.10 does: older
        servers ignore `filter_subjects` without saying so.
        """

        async def on_reconnect() -> None:
            _log.info("connected to the broker again")
            for callback in self._reconnected:
                callback()

        async def on_error(error: Exception) -> None:
            _log.debug("broker connection: %r", error)

        async def on_disconnect() -> None:
            _log.warning("lost the connection to the broker; reconnecting")

        @retry(
            retry=retry_if_exception_type(_UNREACHABLE),
            wait=wait_exponential_jitter(initial=0.05, max=1),
            stop=stop_after_delay(patience_seconds),
            reraise=True,
        )
        async def connect() -> Client:
            return await nats.connect(
                self._url,
                name=self._name,
                connect_timeout=2,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                ping_interval=10,
                max_outstanding_pings=2,
                reconnected_cb=on_reconnect,
                disconnected_cb=on_disconnect,
                error_cb=on_error,
            )

        try:
            connection = await connect()
        except _UNREACHABLE as error:
            raise Unavailable("The broker does not answer.", cause=repr(error)) from error
        version = connection.connected_server_version
        if (version.major, version.minor) < _OLDEST_SERVER:
            await connection.close()
            raise UnsuitableServer(f"the NATS server is {version.major}.{version.minor}; 2.10 or newer is needed")
        self._opened = connection
        self._stream = connection.jetstream(timeout=5, publish_async_max_pending=_IN_FLIGHT)
        return self

    @property
    def _connection(self) -> Client:
        if self._opened is None:
            raise Unavailable("The broker is not connected yet.")
        return self._opened

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back after each reconnection: what the broker held may be gone."""
        self._reconnected.append(callback)

    @property
    def is_connected(self) -> bool:
        return self._opened is not None and self._opened.is_connected

    async def check(self) -> None:
        if not self.is_connected:
            raise Unavailable("The broker does not answer.")

    async def close(self) -> None:
        """Deliver what was buffered, then leave."""
        if self._opened is None:
            return
        # nats-py can raise ConnectionResetError here when the server died first.
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await asyncio.wait_for(self._connection.drain(), timeout=3)
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await self._connection.close()

    # Facts

    async def declare_streams(self) -> None:
        """Create the streams where they are missing; any process that publishes or consumes may find them gone."""
        for config in _STREAMS:
            try:
                await self._stream.add_stream(config)
            except js_errors.BadRequestError as error:
                if error.err_code != _STREAM_NAME_IN_USE:
                    raise BusError(f"stream {config.name}: {error.description}") from error
            except (*_UNREACHABLE, js_errors.Error) as error:
                raise BusError(f"stream {config.name}: {error!r}") from error

    async def last_position(self, owner: str) -> int:
        """The position of the newest fact of `owner` that the broker holds; 0 when it holds none."""
        try:
            last = await self._stream.get_last_msg(EVENTS_STREAM, f"kfp.event.{owner}.>")
        except js_errors.NotFoundError as error:
            if error.err_code == _NO_MESSAGE:
                return 0
            raise BusError(f"{EVENTS_STREAM}: {error.description}") from error
        except (*_UNREACHABLE, js_errors.Error) as error:
            raise BusError(repr(error)) from error
        return int((last.headers or {}).get("ce-position", "0"))

    async def publish(self, messages: Sequence[Message]) -> int:
        """Publish in order, pipelined, and return how many of them, from the first on, the broker acknowledged.

        A message the broker already holds (same id) counts as acknowledged.
        """
        acknowledgements: list[asyncio.Future[Any]] = []
        try:
            for message in messages:
                acknowledgements.append(  # noqa: PERF401
                    await self._stream.publish_async(
                        message.subject,
                        message.body,
                        wait_stall=5,
                        stream=EVENTS_STREAM,
                        headers=message.headers,
                    )
                )
        except (*_UNREACHABLE, js_errors.Error, nats.errors.Error) as error:
            _log.warning("publishing stopped: %r", error)
        if acknowledgements:
            await asyncio.wait(acknowledgements, timeout=5)
        accepted = 0
        for future in acknowledgements:
            if not future.done() or future.cancelled() or future.exception() is not None:
                break
            accepted += 1
        for future in acknowledgements[accepted:]:
            if future.done() and not future.cancelled() and future.exception() is not None:
                _log.warning("the broker refused a fact: %r", future.exception())
            else:
                future.cancel()
        return accepted

    async def consumer(self, durable: str, owner: str) -> Consumer:
        """The durable pull consumer for all facts of `owner`; created where it is missing. Raises BusError."""
        try:
            await self._stream.add_consumer(
                EVENTS_STREAM,
                api.ConsumerConfig(
                    durable_name=durable,
                    filter_subject=f"kfp.event.{owner}.>",
                    deliver_policy=api.DeliverPolicy.ALL,
                    ack_policy=api.AckPolicy.EXPLICIT,
                    ack_wait=_ACK_WAIT_SECONDS,
                    max_ack_pending=1000,
                ),
            )
            return await Consumer.open(self._connection, durable)
        except (*_UNREACHABLE, js_errors.Error, nats.errors.Error) as error:
            raise BusError(f"consumer {durable}: {error!r}") from error

    async def publish_dead(self, subscriber: str, message: Message, reason: str, attempts: int) -> None:
        """Put a fact aside for people to look at. Raises BusError where the broker does not take it."""
        headers = message.headers | {
            "Nats-Msg-Id": f"{subscriber}:{message.id}",
            "Headrace-Reason": reason.replace("\r", " ").replace("\n", " ")[:500],
            "Headrace-Attempts": str(attempts),
        }
        subject = f"kfp.dead.{subscriber}.{message.owner}.{message.what}.{message.resource_id}"
        try:
            await self._stream.publish(subject, message.body, stream=DEAD_STREAM, headers=headers)
        except (*_UNREACHABLE, js_errors.Error, nats.errors.Error) as error:
            raise BusError(f"dead letter: {error!r}") from error

    # Pings: hints that something was committed; losing one costs a poll interval, never a fact.

    async def ping(self, subject: str) -> None:
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await self._connection.publish(subject)

    async def on_ping(self, subject: str, callback: Callable[[], None]) -> None:
        async def handle(_: Msg) -> None:
            callback()

        await self._connection.subscribe(subject, cb=handle)

    # Questions

    async def ask(self, question: Question[Q, A], request: Q, *, within_seconds: float) -> A:
        """The owner's answer. Raises the owner's refusal, or Unavailable when nobody answers in time."""
        headers = {"traceparent": current_traceparent()}
        try:
            reply = await self._connection.request(
                question.subject, msgspec.json.encode(request), timeout=within_seconds, headers=headers
            )
        except (*_UNREACHABLE, nats.errors.Error) as error:
            raise Unavailable(f"The {question.owner} service does not answer.", cause=repr(error)) from error
        if _REFUSAL in (reply.headers or {}):
            raise from_document(msgspec.json.decode(reply.data))
        return msgspec.json.decode(reply.data, type=question.answer)

    async def answer(self, question: Question[Q, A], handler: Callable[[Q], Awaitable[A]]) -> None:
        """Answer `question`, sharing the work with every other replica that does. Handlers run concurrently."""
        decode = msgspec.json.Decoder(question.request).decode
        running: set[asyncio.Task[None]] = set()

        async def respond(message: Msg) -> None:
            with continue_trace((message.headers or {}).get("traceparent")):
                try:
                    body, headers = msgspec.json.encode(await handler(decode(message.data))), None
                except Refusal as refusal:
                    body, headers = _refused(refusal)
                except Exception as error:  # noqa: BLE001 - whatever it is, the asker must hear of it
                    _log.exception("answering %s failed", question.subject)
                    body, headers = _refused(Internal(f"answering {question.subject} failed", cause=repr(error)))
                with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
                    await self._connection.publish(message.reply, body, headers=headers)

        async def handle(message: Msg) -> None:
            task = asyncio.create_task(respond(message))
            running.add(task)
            task.add_done_callback(running.discard)

        await self._connection.subscribe(question.subject, queue=question.owner, cb=handle)


class Consumer:
    """A durable pull consumer: batches of facts, acknowledged when their effects are committed.

    A pull request is left standing at the broker, so that a fact arrives as soon as it is stored. (The client's
    own `fetch` waits for a full batch until its time is up.)
    """

    def __init__(self, connection: Client, durable: str, inbox: str, subscription: Subscription) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{durable}"
        self._inbox = inbox
        self._subscription = subscription
        self._standing = 0
        self._stands_until = 0.0

    @classmethod
    async def open(cls, connection: Client, durable: str) -> Self:
        inbox = connection.new_inbox()
        return cls(connection, durable, inbox, await connection.subscribe(inbox))

    async def fetch(self, most: int, *, within_seconds: float) -> list[Delivery]:
        """Up to `most` facts in the stream's order; empty when none came in time. Raises BusError."""
        try:
            await self._keep_standing(most, within_seconds)
            messages = [await self._subscription.next_msg(timeout=within_seconds + 1)]
            while self._subscription.pending_msgs and len(messages) < most:
                messages.append(await self._subscription.next_msg(timeout=1))
        except (TimeoutError, nats.errors.TimeoutError):
            self._standing = 0
            return []
        except (*_UNREACHABLE, nats.errors.Error) as error:
            raise BusError(repr(error)) from error
        facts = [message for message in messages if _STATUS not in (message.headers or {})]
        self._standing -= len(facts)
        for message in messages:
            self._note_status((message.headers or {}).get(_STATUS))
        return [Delivery(message) for message in facts]

    async def close(self) -> None:
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await self._subscription.unsubscribe()

    async def _keep_standing(self, most: int, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        if self._standing > 0 and now < self._stands_until:
            return
        request = {"batch": most, "expires": int(seconds * 1e9)}
        await self._connection.publish(self._subject, msgspec.json.encode(request), reply=self._inbox)
        self._standing = most
        self._stands_until = now + seconds

    def _note_status(self, status: str | None) -> None:
        if status is None:
            return
        self._standing = 0
        if status not in _PULL_ENDED:
            raise BusError(f"{self._subject}: status {status}")


class Delivery:
    """One delivered fact, to be acknowledged, extended or given back."""

    def __init__(self, message: Msg) -> None:
        self._raw = message
        self.message = _read(message)

    async def acknowledge(self) -> None:
        await self._tell(self._raw.ack)

    async def extend(self) -> None:
        """Keep the delivery ours for another while."""
        await self._tell(self._raw.in_progress)

    async def give_back(self, *, delay_seconds: float) -> None:
        """Let the broker deliver it again, to whichever replica is active then."""
        await self._tell(lambda: self._raw.nak(delay=delay_seconds))

    async def _tell(self, what: Callable[[], Awaitable[None]]) -> None:
        # A lost acknowledgement means a redelivery, which the cursor skips.
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await what()


async def declare_streams(url: str) -> None:
    """Create the streams with the credentials in `url`; for whoever sets a system up."""
    bus = await Bus(url, name="declare-streams").open()
    try:
        await bus.declare_streams()
    finally:
        await bus.close()


def _refused(refusal: Refusal) -> tuple[bytes, dict[str, str]]:
    text = refusal.error.replace("\r", " ").replace("\n", " ")[:200]
    return msgspec.json.encode(to_document(refusal)), {_REFUSAL: text, _REFUSAL_CODE: str(refusal.status)}


def _read(raw: Msg) -> Message:
    """Tolerant on purpose: what cannot be read must still reach the subscriber, who puts it aside as dead."""
    headers = raw.headers or {}
    _, _, owner, what, resource_id = [*raw.subject.split(".", 4), "", "", ""][:5]
    try:
        position = int(headers.get("ce-position", "0"))
    except ValueError:
        position = 0
    try:
        time = datetime.fromisoformat(headers.get("ce-time", ""))
    except ValueError:
        time = datetime.fromtimestamp(0, UTC)
    return Message(
        id=headers.get("ce-id") or str(uuid.uuid4()),
        type=headers.get("ce-type", ""),
        owner=owner,
        what=what,
        resource_id=resource_id,
        position=position,
        time=time,
        traceparent=headers.get("traceparent", ""),
        body=raw.data,
    )


_STATUS = "Status"
_PULL_ENDED = frozenset({"404", "408"})  # nothing there; the request's time is up
_STREAM_NAME_IN_USE = 10058
_NO_MESSAGE = 10037

_STREAMS = (
    api.StreamConfig(
        name=EVENTS_STREAM,
        subjects=["kfp.event.>"],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=7 * 24 * 3600,
        max_bytes=2 * 1024**3,
        duplicate_window=_DEDUPLICATION_SECONDS,
        allow_direct=True,
    ),
    api.StreamConfig(
        name=DEAD_STREAM,
        subjects=["kfp.dead.>"],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=30 * 24 * 3600,
        max_bytes=256 * 1024**2,
        duplicate_window=_DEDUPLICATION_SECONDS,
    ),
)
