"""The one door to NATS: facts on JetStream, questions over request/reply, pings, dead letters.

It knows subjects, headers and streams; it knows no table and no rule. What makes delivery exact (positions,
cursors, leases) lives in `shared.outbox` and `shared.subscriptions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors
from prometheus_client import Counter, Gauge, Histogram

from shared import telemetry
from shared.contracts.questions import Question
from shared.errors import Internal, Refusal, Unavailable, from_document, to_document
from shared.telemetry import child_span, continue_trace, current_traceparent

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

_log = logging.getLogger(__name__)
_opened: WeakSet[Bus] = WeakSet()
"""Those of this process that were opened and not closed."""
_connected = Gauge("headrace_broker_connected", "1 while the broker answers, else 0.", registry=telemetry.metrics)
_connected.set_function(lambda: int(all(bus.is_connected for bus in list(_opened))))
_asked = Histogram(
    "headrace_question_duration_seconds",
    "From a question to its answer, as who asks sees it; `outcome` is answered, refused or unavailable.",
    ("owner", "question", "outcome"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=telemetry.metrics,
)
_answered = Counter(
    "headrace_questions_answered_total",
    "Questions that were answered; `outcome` is answered, refused or failed.",
    ("owner", "question", "outcome"),
    registry=telemetry.metrics,
)

EVENTS_STREAM = "KFP_EVENTS"
DEAD_STREAM = "KFP_DEAD"

_OLDEST_SERVER = (2, 10)
_DEDUPLICATION_SECONDS = 10 * 60
ACK_WAIT_SECONDS = 10.0
_IN_FLIGHT = 256
_READER_KEPT_SECONDS = 60.0
"""After one who has gone without a word."""
_PING_SECONDS = 0.01
"""Between two pings of one subject: under load, whoever is woken finds several facts instead of one."""
_UNACKNOWLEDGED = 1000
"""How many facts a subscriber may hold. More than a relay publishes at once: a fact that overtook another in a broken
connection waits here for the other, which must still find room."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """What the stream of facts holds: whichever limit is reached first."""

    days: float = 8
    bytes: int = 2 * 1024**3
    replicas: int = 1
    """On how many servers of a broker that is a cluster; it applies to what subscribers gave up on, too."""

    @classmethod
    def beyond(cls, *, days: float, bytes: int, replicas: int = 1) -> Self:
        """For owners that keep their facts for so many days: what the stream has outlived they publish no more."""
        return cls(days=days + 1, bytes=bytes, replicas=replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where the stream of facts begins and ends, in its own numbers, which say nothing about another stream's."""

    created_at: datetime
    """One that was lost and declared anew tells another time."""
    first: int
    last: int


class Bus:
    """One connection of one process. Reconnects for ever; calls made meanwhile fail with Unavailable or BusError."""

    def __init__(self, url: str, *, name: str, limits: StreamLimits | None = None) -> None:
        """`name` is what the server shows of this process. Nothing is connected before `open`.

        `limits`: of a stream that is declared here.
        """
        self._url = url
        self._limits = limits or StreamLimits()
        self._name = name
        self._reconnected: list[Callable[[], None]] = []
        self._connections = 0
        self._is_closing = False
        self._unacknowledged: list[asyncio.Future[Any]] = []
        self._pinged: dict[str, list[Callable[[], None]]] = {}
        self._just_pinged: dict[str, bool] = {}
        """Subjects of the last few milliseconds, and whether there is something to ping them for since."""
        self._pinging: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Subscription] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._opened: Client | None = None

    async def open(self, *, patience_seconds: float = 60) -> Self:
        """Connect, waiting for a server that is still starting.

        Raises Unavailable when no server answers in time, UnsuitableServer when one older than 2.10 does: older
        servers ignore `filter_subjects` without saying so.
        """

        async def on_reconnect() -> None:
            _log.info("connected to the broker again")
            self._connections += 1
            for callback in self._reconnected:
                callback()

        async def on_error(error: Exception) -> None:
            is_ours = "permissions violation" in str(error).lower()
            _log.log(logging.ERROR if is_ours else logging.DEBUG, "broker connection: %r", error)

        async def on_disconnect() -> None:
            if not self._is_closing:
                _log.warning("lost the connection to the broker; reconnecting")
            self._connections += 1
            for future in self._unacknowledged:
                future.cancel()

        connection = Client()
        try:
            # The client itself tries again for ever, here as after a lost connection; the bound is ours.
            async with asyncio.timeout(patience_seconds):
                await connection.connect(
                    self._url,
                    name=self._name,
                    inbox_prefix=f"_REPLY.{urlsplit(self._url).username or self._name}",
                    connect_timeout=2,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type] # it only sleeps that long
                    ping_interval=10,
                    max_outstanding_pings=2,
                    reconnected_cb=on_reconnect,
                    disconnected_cb=on_disconnect,
                    error_cb=on_error,
                )
        except (*_UNREACHABLE, nats.errors.Error) as error:
            reason = connection.last_error or error
            with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
                await connection.close()
            raise Unavailable("The broker does not answer.", cause=repr(reason)) from error
        version = connection.connected_server_version
        if (version.major, version.minor) < _OLDEST_SERVER:
            await connection.close()
            raise UnsuitableServer(f"the NATS server is {version.major}.{version.minor}; 2.10 or newer is needed")
        self._opened = connection
        _opened.add(self)
        # Room for two windows: `publish` never waits for it, because the client turns a cancellation of that wait into
        # another error.
        self._stream = connection.jetstream(timeout=5, publish_async_max_pending=2 * _IN_FLIGHT)
        return self

    @property
    def _connection(self) -> Client:
        if self._opened is None:
            raise Unavailable("The broker is not connected yet.")
        return self._opened

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back after each reconnection: what the broker held may be gone. Saying it twice is saying it once."""
        if callback not in self._reconnected:
            self._reconnected.append(callback)

    @property
    def is_connected(self) -> bool:
        return self._opened is not None and self._opened.is_connected

    async def check(self) -> None:
        if not self.is_connected:
            raise Unavailable("The broker does not answer.")

    async def close(self) -> None:
        """Take no more questions, finish the answers that were begun, deliver what was buffered, then leave."""
        if self._opened is None:
            return
        self._is_closing = True
        _opened.discard(self)
        if self._answers and self.is_connected:
            drained = (subscription.drain() for subscription in self._answers.values())  # type: ignore[no-untyped-call]
            # What is sent to us until then would be lost: a machine that is very busy gets its time.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await asyncio.gather(*drained, return_exceptions=True)
        if self._answering:
            _, unfinished = await asyncio.wait(self._answering, timeout=3)
            for answering in unfinished:
                answering.cancel()
        # nats-py can raise ConnectionResetError here when the server died first.
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await asyncio.wait_for(self._connection.drain(), timeout=3)
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await self._connection.close()

    # Facts

    async def declare_streams(self, *, change: bool = False) -> None:
        """Create the streams where they are missing; any process that publishes or consumes may find them gone.

        `change`: give those that are there the limits of this declaration; only the broker's administrator may.
        """
        self._require_connection()
        for config in (_events_stream(self._limits), _dead_stream(self._limits)):
            try:
                await self._stream.add_stream(config)
            except js_errors.BadRequestError as error:
                if error.err_code != _STREAM_NAME_IN_USE:
                    raise BusError(f"stream {config.name}: {error.description}") from error
                if change:
                    await self._stream.update_stream(config)
            except js_errors.APIError as error:
                raise BusError(f"stream {config.name}: {error.description}") from error
            except (*_UNREACHABLE, js_errors.Error) as error:
                raise BusError(f"stream {config.name}: {error!r}") from error

    async def last_position(self, owner: str) -> int:
        """The position of the newest fact of `owner` that the broker holds; 0 when it holds none."""
        self._require_connection()
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

        A message the broker already holds (same id) counts as acknowledged. Messages behind the first that was not
        acknowledged may have been stored.
        """
        accepted = 0
        while accepted < len(messages):
            window = messages[accepted : accepted + _IN_FLIGHT]
            taken = await self._publish_window(window)
            accepted += taken
            if taken < len(window):
                break
        return accepted

    async def _publish_window(self, messages: Sequence[Message]) -> int:
        self._require_connection()
        connection = self._connections
        # Acknowledgements do not outlive the connection: losing it cancels them.
        acknowledgements = self._unacknowledged = list[asyncio.Future[Any]]()
        try:
            for message in messages:
                if connection != self._connections:
                    break  # What was written before may be lost: these must not overtake it.
                acknowledgements.append(
                    await self._stream.publish_async(
                        message.subject, message.body, stream=EVENTS_STREAM, headers=message.headers
                    )
                )
            if acknowledgements:
                await asyncio.wait(acknowledgements, timeout=5)
        except (*_UNREACHABLE, nats.errors.Error) as error:
            _log.warning("publishing stopped: %r", error)
        finally:
            for future in acknowledgements:
                future.cancel()
        for nth, future in enumerate(acknowledgements):
            if not future.cancelled() and (refusal := future.exception()) is not None:
                _log.warning("the broker refused a fact: %r", refusal)
            if future.cancelled() or future.exception() is not None:
                return nth
        return len(acknowledgements)

    async def consumer(self, durable: str, owner: str, *, ack_wait_seconds: float = ACK_WAIT_SECONDS) -> Consumer:
        """The durable pull consumer for all facts of `owner`; created where it is missing. Raises BusError."""
        self._require_connection()
        try:
            await self._stream.add_consumer(
                EVENTS_STREAM,
                api.ConsumerConfig(
                    durable_name=durable,
                    filter_subject=f"kfp.event.{owner}.>",
                    deliver_policy=api.DeliverPolicy.ALL,
                    ack_policy=api.AckPolicy.EXPLICIT,
                    ack_wait=ack_wait_seconds,
                    max_ack_pending=_UNACKNOWLEDGED,
                ),
            )
            return await Consumer.open(self._connection, durable)
        except (*_UNREACHABLE, js_errors.Error, nats.errors.Error) as error:
            raise BusError(f"consumer {durable}: {error!r}") from error

    async def reader(self, subjects: Sequence[str], *, start: int | datetime) -> Reader:
        """Read the stream of facts from a place or a time on, for oneself; the subjects must not overlap.

        `start`: the stream's own number of the first message, or the earliest time at which it was stored. The broker
        keeps nothing for a reader: whoever is cut off opens another one behind the last message seen. Raises BusError.
        """
        self._require_connection()
        place, at = (start, None) if isinstance(start, int) else (None, start)
        config = api.ConsumerConfig(
            name=f"reader-{uuid.uuid4().hex}",
            filter_subjects=list(subjects),
            deliver_policy=api.DeliverPolicy.BY_START_TIME if place is None else api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=place,
            opt_start_time=at,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=_READER_KEPT_SECONDS,
            mem_storage=True,
        )
        try:
            info = await self._stream.add_consumer(EVENTS_STREAM, config)
            consumer = await Consumer.open(self._connection, info.name)
        except (*_UNREACHABLE, js_errors.Error, nats.errors.Error) as error:
            raise BusError(f"reading {EVENTS_STREAM}: {error!r}") from error
        return Reader(self._stream, consumer, info.name, pending=info.num_pending or 0)

    async def stand(self) -> Stand:
        """Where the stream of facts is now. Raises BusError."""
        self._require_connection()
        try:
            info = await self._stream.stream_info(EVENTS_STREAM)
        except (*_UNREACHABLE, js_errors.Error) as error:
            raise BusError(repr(error)) from error
        if info.created is None:
            raise BusError(f"the broker does not say when {EVENTS_STREAM} was created")
        return Stand(created_at=info.created, first=info.state.first_seq, last=info.state.last_seq)

    async def find_next(self, owner: str, *, from_: int) -> tuple[int, int] | None:
        """Place and position of the first fact of `owner` that lies at the place `from_` or behind it.

        None where there is none. Raises BusError.
        """
        self._require_connection()
        try:
            found = await self._stream.get_msg(
                EVENTS_STREAM, seq=from_, subject=f"kfp.event.{owner}.>", next=True, direct=True
            )
        except js_errors.NotFoundError:
            return None
        except (*_UNREACHABLE, js_errors.Error) as error:
            raise BusError(repr(error)) from error
        return found.seq or 0, int((found.headers or {}).get("ce-position", "0"))

    async def publish_dead(self, subscriber: str, message: Message, reason: str, attempts: int) -> None:
        """Put a fact aside for people to look at. Raises BusError where the broker does not take it."""
        headers = message.headers | {
            "Nats-Msg-Id": f"{subscriber}:{message.id}",
            "Headrace-Reason": reason.replace("\r", " ").replace("\n", " ")[:500],
            "Headrace-Attempts": str(attempts),
        }
        subject = f"kfp.dead.{subscriber}.{message.owner}.{message.what}.{message.resource_id}"
        self._require_connection()
        try:
            await self._stream.publish(subject, message.body, stream=DEAD_STREAM, headers=headers)
        except (*_UNREACHABLE, js_errors.Error, nats.errors.Error) as error:
            raise BusError(f"dead letter: {error!r}") from error

    # Pings: hints that something was committed; losing one costs a poll interval, never a fact.

    async def ping(self, subject: str) -> None:
        """The first ping leaves at once; those that follow it closely leave as one."""
        if subject in self._just_pinged:
            self._just_pinged[subject] = True
            return
        self._just_pinged[subject] = False
        asyncio.get_running_loop().call_later(_PING_SECONDS, self._ping_again, subject)
        await self._send_ping(subject)

    def _ping_again(self, subject: str) -> None:
        if self._just_pinged.pop(subject):
            task = asyncio.create_task(self.ping(subject))
            self._pinging.add(task)
            task.add_done_callback(self._pinging.discard)

    async def _send_ping(self, subject: str) -> None:
        if self.is_connected:
            with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
                await self._connection.publish(subject)

    async def watch(self, subject: str, callback: Callable[[Message], None]) -> None:
        """Live facts on a subject (wildcards allowed), without memory: what happens while nobody watches is missed."""

        async def handle(message: Msg) -> None:
            callback(_read(message))

        await self._connection.subscribe(subject, cb=handle)

    async def on_ping(self, subject: str, callback: Callable[[], None]) -> None:
        """Call back on each ping. Saying it twice is saying it once."""
        if (callbacks := self._pinged.get(subject)) is not None:
            if callback not in callbacks:
                callbacks.append(callback)
            return
        callbacks = self._pinged[subject] = [callback]

        async def handle(_: Msg) -> None:
            for each in callbacks:
                each()

        await self._connection.subscribe(subject, cb=handle)

    # Questions

    async def ask(self, question: Question[Q, A], request: Q, *, within_seconds: float) -> A:
        """The owner's answer. Raises the owner's refusal, or Unavailable when nobody answers in time."""
        started, outcome = time.perf_counter(), "answered"
        try:
            with child_span(f"ask {question.owner} {question.what}", kind="client"):
                return await self._ask(question, request, within_seconds)
        except Unavailable:
            outcome = "unavailable"
            raise
        except Refusal:
            outcome = "refused"
            raise
        finally:
            _asked.labels(question.owner, question.what, outcome).observe(time.perf_counter() - started)

    async def _ask(self, question: Question[Q, A], request: Q, within_seconds: float) -> A:
        if not self.is_connected:
            raise Unavailable(f"The {question.owner} service does not answer.", cause="the broker is away")
        headers = {"traceparent": current_traceparent()}
        try:
            reply = await self._connection.request(
                question.subject, msgspec.json.encode(request), timeout=within_seconds, headers=headers
            )
        except (*_UNREACHABLE, nats.errors.Error) as error:
            raise Unavailable(f"The {question.owner} service does not answer.", cause=repr(error)) from error
        try:
            if _REFUSAL not in (reply.headers or {}):
                return msgspec.json.decode(reply.data, type=question.answer)
            refusal = from_document(msgspec.json.decode(reply.data))
        except msgspec.MsgspecError as error:
            raise Internal(f"the answer to {question.subject} does not read", cause=str(error)) from error
        raise refusal

    async def answer(self, question: Question[Q, A], handler: Callable[[Q], Awaitable[A]]) -> None:
        """Answer `question`, sharing the work with every other replica that does. Handlers run concurrently.

        Questions asked after this returns are heard. Answering the same question again replaces the handler.
        """
        decode = msgspec.json.Decoder(question.request).decode

        async def respond(message: Msg) -> None:
            traceparent = (message.headers or {}).get("traceparent")
            with continue_trace(traceparent, f"answer {question.owner} {question.what}", kind="server"):
                outcome = "answered"
                try:
                    body, headers = msgspec.json.encode(await handler(decode(message.data))), None
                except Refusal as refusal:
                    outcome = "refused"
                    body, headers = _refused(refusal)
                except Exception as error:  # noqa: BLE001 - whatever it is, the asker must hear of it
                    outcome = "failed"
                    _log.exception("answering %s failed", question.subject)
                    body, headers = _refused(Internal(f"answering {question.subject} failed", cause=repr(error)))
                if len(body) > self._connection.max_payload:
                    _log.error("the answer to %s has %d bytes", question.subject, len(body))
                    body, headers = _refused(Internal(f"the answer to {question.subject} is too large"))
                with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
                    await self._connection.publish(message.reply, body, headers=headers)
                _answered.labels(question.owner, question.what, outcome).inc()

        async def handle(message: Msg) -> None:
            task = asyncio.create_task(respond(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        earlier = self._answers.get(question.subject)
        self._answers[question.subject] = await self._connection.subscribe(
            question.subject, queue=question.owner, cb=handle
        )
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            if earlier is not None:
                await earlier.unsubscribe()
            if self.is_connected:
                await self._everything_said()

    @contextlib.asynccontextmanager
    async def answering(self, question: Question[Q, A], handler: Callable[[Q], Awaitable[A]]) -> AsyncIterator[None]:
        """Answer `question` for as long as the body lasts; for whoever is the one to answer only for a time."""
        await self.answer(question, handler)
        try:
            yield
        finally:
            subscription = self._answers.pop(question.subject)
            with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
                await subscription.unsubscribe()

    async def _everything_said(self) -> None:
        """Wait until the broker has read what we said so far.

        The client's ping overtakes what it has not written yet, so that the first answer shows only that the rest
        is written; the second, that it is read.
        """
        for _ in range(2):
            await self._connection.flush(timeout=2)

    def _require_connection(self) -> None:
        """The client would keep what we say until it is connected again, and let us wait for the answer."""
        if not self.is_connected:
            raise BusError("the broker is away")


class Consumer:
    """A durable pull consumer: batches of facts, acknowledged when their effects are committed.

    A pull request is left standing at the broker, so that a fact arrives as soon as it is stored. (The client's
    own `fetch` waits for a full batch until its time is up, and its `next_msg` makes two tasks for each message.)
    """

    def __init__(self, connection: Client, durable: str) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{durable}"
        self._inbox = connection.new_inbox()
        self._subscription: Subscription | None = None
        self._here: deque[Msg] = deque()
        self._has_come = asyncio.Event()
        self._standing = 0
        self._stands_until = 0.0
        self._stands_on = 0

    @classmethod
    async def open(cls, connection: Client, durable: str) -> Self:
        consumer = cls(connection, durable)
        consumer._subscription = await connection.subscribe(consumer._inbox, cb=consumer._take)
        return consumer

    async def fetch(self, most: int, *, within_seconds: float) -> list[Delivery]:
        """Up to `most` facts in the stream's order; empty when none came in time. Raises BusError."""
        deadline = asyncio.get_running_loop().time() + within_seconds
        try:
            while not (messages := await self._arrived(most, within_seconds)):
                if asyncio.get_running_loop().time() >= deadline:
                    return []
        except (*_UNREACHABLE, nats.errors.Error) as error:
            raise BusError(repr(error)) from error
        facts = [message for message in messages if _STATUS not in (message.headers or {})]
        self._standing -= len(facts)
        ends = {status for message in messages if (status := (message.headers or {}).get(_STATUS))}
        if ends:
            self._standing = 0
        if not facts and (refusals := ends - _PULL_ENDED):
            raise BusError(f"{self._subject}: status {', '.join(sorted(refusals))}")
        return [Delivery(message) for message in facts]

    async def close(self) -> None:
        """Leave, and give back what has arrived and was not fetched."""
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await self.leave()
        while self._here:
            message = self._here.popleft()
            if _STATUS not in (message.headers or {}):
                with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
                    await message.nak()

    async def leave(self) -> None:
        subscription = self._subscription
        if subscription is None:
            return
        # The client throws away what it has not handed over when it is told.
        while subscription.pending_msgs and not self._connection.is_closed:  # noqa: ASYNC110 - it is about to
            await asyncio.sleep(0)
        await subscription.unsubscribe()

    async def _take(self, message: Msg) -> None:
        self._here.append(message)
        self._has_come.set()

    async def _arrived(self, most: int, seconds: float) -> list[Msg]:
        """What is here within a second: that often we look whether the standing request is still there."""
        await self._keep_standing(most, seconds)
        if not self._here:
            self._has_come.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, seconds)):
                    await self._has_come.wait()
        return [self._here.popleft() for _ in range(min(most, len(self._here)))]

    async def _keep_standing(self, most: int, seconds: float) -> None:
        if not self._connection.is_connected:
            raise BusError("the broker is away")
        now = asyncio.get_running_loop().time()
        connection = self._connection.stats["reconnects"]  # A request does not outlive its connection.
        if self._standing > 0 and now < self._stands_until and connection == self._stands_on:
            return
        request = {"batch": most, "expires": int(seconds * 1e9)}
        await self._connection.publish(self._subject, msgspec.json.encode(request), reply=self._inbox)
        self._standing = most
        self._stands_until = now + seconds
        self._stands_on = connection


class Reader:
    """Facts from one place of the stream on, each once and in the stream's order, until the connection breaks."""

    def __init__(self, stream: JetStreamContext, consumer: Consumer, name: str, *, pending: int) -> None:
        self._stream = stream
        self._consumer = consumer
        self._name = name
        self._read = 0
        self.pending = pending
        """How many facts lay ahead when the last one was read."""

    async def fetch(self, most: int, *, within_seconds: float) -> list[tuple[int, Message]]:
        """Up to `most` facts, each with its place; empty when none came in time.

        Raises BusError, also where one was lost on the way.
        """
        facts = []
        for delivery in await self._consumer.fetch(most, within_seconds=within_seconds):
            place, number, self.pending = delivery.reading
            self._read += 1
            if number != self._read:
                raise BusError("a fact was lost on the way")
            facts.append((place, delivery.message))
        return facts

    async def close(self) -> None:
        with contextlib.suppress(*_UNREACHABLE, js_errors.Error, nats.errors.Error):
            await self._consumer.leave()
            await self._stream.delete_consumer(EVENTS_STREAM, self._name)


class Delivery:
    """One delivered fact, to be acknowledged, extended or given back."""

    def __init__(self, message: Msg) -> None:
        self._raw = message
        self.message = _read(message)

    @property
    def reading(self) -> tuple[int, int, int]:
        """The fact's place in the stream, its number among those that the consumer delivered, and how many are left."""
        metadata = self._raw.metadata
        return metadata.sequence.stream, metadata.sequence.consumer, metadata.num_pending or 0

    async def acknowledge(self) -> None:
        await self._tell(self._raw.ack)

    async def extend(self) -> None:
        """Keep the delivery ours for another while."""
        await self._tell(self._raw.in_progress)

    async def give_back(self, *, delay_seconds: float = 0) -> None:
        """Let the broker deliver it again, to whichever replica is active then."""
        await self._tell(lambda: self._raw.nak(delay=delay_seconds or None))

    async def _tell(self, what: Callable[[], Awaitable[None]]) -> None:
        # A lost acknowledgement means a redelivery, which the cursor skips.
        with contextlib.suppress(*_UNREACHABLE, nats.errors.Error):
            await what()


async def declare_streams(url: str, limits: StreamLimits | None = None) -> None:
    """Create the streams, or change them, with the credentials in `url`; for whoever sets a system up."""
    bus = await Bus(url, name="declare-streams", limits=limits).open()
    try:
        await bus.declare_streams(change=True)
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


def _events_stream(limits: StreamLimits) -> api.StreamConfig:
    return api.StreamConfig(
        name=EVENTS_STREAM,
        subjects=["kfp.event.>"],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=limits.days * 24 * 3600,
        max_bytes=limits.bytes,
        num_replicas=limits.replicas,
        duplicate_window=_DEDUPLICATION_SECONDS,
        allow_direct=True,
    )


def _dead_stream(limits: StreamLimits) -> api.StreamConfig:
    return api.StreamConfig(
        name=DEAD_STREAM,
        subjects=["kfp.dead.>"],
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=30 * 24 * 3600,
        max_bytes=256 * 1024**2,
        num_replicas=limits.replicas,
        duplicate_window=_DEDUPLICATION_SECONDS,
    )
