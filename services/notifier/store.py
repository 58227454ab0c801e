"""Every SQL statement of the notifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shared.database import Connection, Row, Transaction
from shared.listing import Column, Kind, Listing

from .domain import (
    About,
    Attempt,
    Delivery,
    DeliveryId,
    DeliveryStatus,
    Format,
    NewWebhook,
    Result,
    Wanted,
    Webhook,
    WebhookId,
)

_WEBHOOK = (
    "id, name, url, format, resources, facts, experiment_id, pipeline_id, job_id, paused_at, pause_reason, "
    "failing_since, created_by, created_at, updated_at"
)
_DELIVERY = (
    "id, webhook_id, event_id, type, owner, subject, position, event, status, tries, code, reason, created_at, "
    "attempted_at"
)

WEBHOOKS = Listing(
    model="Webhook",
    table="webhooks",
    columns=_WEBHOOK,
    fields={
        "id": Column("id"),
        "name": Column("name"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "created_by": Column("nullif(created_by, '')", is_nullable=True),
    },
)

DELIVERIES = Listing(
    model="Delivery",
    table="deliveries",
    columns=_DELIVERY,
    fields={
        "id": Column("id"),
        "created_at": Column("created_at", Kind.TIMESTAMP),
        "status": Column("status"),
        "type": Column("type"),
        "subject": Column("subject"),
        "event_id": Column("event_id"),
    },
)


# Webhooks.


async def insert(tx: Transaction, webhook_id: str, new: NewWebhook, secret: str, created_by: str) -> Webhook:
    row = await tx.fetchrow(
        f"""
        with now as materialized (select clock_timestamp() as now)
        insert into webhooks (
            id, name, url, format, resources, facts, experiment_id, pipeline_id, job_id, secret, created_by,
            created_at, updated_at
        )
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, now, now from now
        returning {_WEBHOOK}
        """,  # noqa: S608
        webhook_id,
        new.name,
        new.url,
        new.format.value,
        sorted(new.wanted.owners),
        sorted(new.wanted.whats),
        new.wanted.about.experiment_id,
        new.wanted.about.pipeline_id,
        new.wanted.about.job_id,
        secret,
        created_by,
    )
    assert row is not None
    return to_webhook(row)


async def count(connection: Connection) -> int:
    number: int = await connection.fetchval("select count(*) from webhooks")
    return number


async def find(connection: Connection, webhook_id: str) -> Webhook | None:
    row = await connection.fetchrow(f"select {_WEBHOOK} from webhooks where id = $1", webhook_id)  # noqa: S608
    return None if row is None else to_webhook(row)


async def lock(tx: Transaction, webhook_id: str) -> Webhook | None:
    row = await tx.fetchrow(
        f"select {_WEBHOOK} from webhooks where id = $1 for no key update",  # noqa: S608
        webhook_id,
    )
    return None if row is None else to_webhook(row)


async def update(tx: Transaction, webhook_id: str, new: NewWebhook) -> Webhook:
    row = await tx.fetchrow(
        f"""
        update webhooks set
            name = $2, url = $3, format = $4, resources = $5, facts = $6, experiment_id = $7, pipeline_id = $8,
            job_id = $9, updated_at = clock_timestamp()
        where id = $1
        returning {_WEBHOOK}
        """,  # noqa: S608
        webhook_id,
        new.name,
        new.url,
        new.format.value,
        sorted(new.wanted.owners),
        sorted(new.wanted.whats),
        new.wanted.about.experiment_id,
        new.wanted.about.pipeline_id,
        new.wanted.about.job_id,
    )
    assert row is not None, "the caller holds its lock"
    return to_webhook(row)


async def rotate(connection: Connection, webhook_id: str, secret: str, *, former_hours: float) -> bool:
    """Whether there is such a webhook."""
    found = await connection.fetchval(
        """
        update webhooks set
            former_secret = secret, former_until = clock_timestamp() + make_interval(secs => $3 * 3600),
            secret = $2, updated_at = clock_timestamp()
        where id = $1
        returning 1
        """,
        webhook_id,
        secret,
        former_hours,
    )
    return found is not None


async def delete(connection: Connection, webhook_id: str) -> bool:
    """With its deliveries. Whether there was one."""
    return await connection.fetchval("delete from webhooks where id = $1 returning 1", webhook_id) is not None


async def pause(connection: Connection, webhook_id: str, reason: str) -> bool:
    """Whether there is such a webhook; one that is paused keeps its reason."""
    found = await connection.fetchval(
        """
        update webhooks set
            paused_at = coalesce(paused_at, clock_timestamp()),
            pause_reason = case when paused_at is null then $2 else pause_reason end
        where id = $1
        returning 1
        """,
        webhook_id,
        reason,
    )
    return found is not None


async def resume(tx: Transaction, webhook_id: str) -> bool:
    """Whether there is such a webhook. What waits is due at once, as if it had never been tried."""
    found = await tx.fetchval(
        """
        with resumed as (
            update webhooks set paused_at = null, pause_reason = '', failing_since = null where id = $1 returning id
        ), fresh as (
            update deliveries set tries = 0 from resumed
            where webhook_id = resumed.id and status = 'waiting' and tries > 0
        ), due as (
            update queues set due_at = clock_timestamp() from resumed
            where webhook_id = resumed.id and due_at is not null and not is_claimed
        )
        select 1 from resumed
        """,
        webhook_id,
    )
    return found is not None


async def note_success(connection: Connection, webhook_id: str) -> None:
    await connection.execute(
        "update webhooks set failing_since = null where id = $1 and failing_since is not null", webhook_id
    )


async def note_failure(
    connection: Connection, webhook_id: str, reason: str, *, is_gone: bool, pause_after_seconds: float
) -> bool:
    """Whether the webhook is paused then, as it is where its receiver is gone, or nothing has succeeded for so long."""
    is_paused: bool | None = await connection.fetchval(
        """
        update webhooks set
            failing_since = coalesce(failing_since, clock_timestamp()),
            paused_at = coalesce(paused_at, case when due then clock_timestamp() end),
            pause_reason = case when paused_at is null and due then $2 else pause_reason end
        from (
            select $3 or failing_since <= clock_timestamp() - make_interval(secs => $4) as due
            from webhooks where id = $1
        ) as pause
        where id = $1
        returning paused_at is not null
        """,
        webhook_id,
        reason,
        is_gone,
        pause_after_seconds,
    )
    return bool(is_paused)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a delivery goes, and what it is signed with."""

    url: str
    format: Format
    secrets: tuple[str, ...]


async def find_target(connection: Connection, webhook_id: str) -> Target | None:
    row = await connection.fetchrow(
        """
        select url, format, secret, case when former_until > clock_timestamp() then former_secret end as former_secret
        from webhooks where id = $1
        """,
        webhook_id,
    )
    return None if row is None else _target(row)


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook waits for. What had happened before it was made is not its own."""

    webhook_id: WebhookId
    wanted: Wanted
    since: Any


async def list_watching(connection: Connection) -> list[Watching]:
    rows = await connection.fetch(
        "select id, resources, facts, experiment_id, pipeline_id, job_id, created_at from webhooks"
    )
    return [Watching(webhook_id=WebhookId(row["id"]), wanted=_wanted(row), since=row["created_at"]) for row in rows]


# Deliveries. Whoever changes what waits changes its queue in the same statement.


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery to be made."""

    id: str
    webhook_id: WebhookId
    event_id: str
    type: str
    owner: str
    subject: str
    position: int
    event: bytes


async def insert_deliveries(tx: Transaction, new: Sequence[Waiting]) -> int:
    """How many had not been there."""
    number: int = await tx.fetchval(
        """
        with added as (
            insert into deliveries (id, webhook_id, event_id, type, owner, subject, position, event)
            select * from unnest(
                $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bytea[]
            )
            on conflict on constraint deliveries_event_id_key do nothing
            returning webhook_id, owner, subject
        ), queued as (
            insert into queues (webhook_id, owner, subject, waiting, due_at)
            select webhook_id, owner, subject, count(*), clock_timestamp() from added
            group by webhook_id, owner, subject order by webhook_id, owner, subject
            on conflict on constraint queues_pkey do update
            set waiting = queues.waiting + excluded.waiting, due_at = coalesce(queues.due_at, excluded.due_at)
        )
        select count(*) from added
        """,
        [each.id for each in new],
        [each.webhook_id for each in new],
        [each.event_id for each in new],
        [each.type for each in new],
        [each.owner for each in new],
        [each.subject for each in new],
        [each.position for each in new],
        [each.event for each in new],
    )
    return number


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    webhook_id: WebhookId
    owner: str
    subject: str
    claim: int
    """Who claims it later has another one."""


async def claim(
    tx: Transaction, *, most: int, most_each: int, busy: Mapping[WebhookId, int], seconds: float
) -> list[Queue]:
    """Queues that are due, the longest waiting first; nobody else gets them for so long.

    `busy`: how many of a webhook's the caller is at already, of `most_each`.
    """
    rows = await tx.fetch(
        """
        with clock as materialized (
            -- Once: held against each row, it could be no bound of the index.
            select clock_timestamp() as now
        ), due as (
            select queue.* from clock cross join webhooks
            left join unnest($3::text[], $4::integer[]) as busy (webhook_id, number) on busy.webhook_id = webhooks.id
            cross join lateral (
                select webhook_id, owner, subject, due_at from queues
                where queues.webhook_id = webhooks.id and due_at <= clock.now
                order by due_at limit greatest($2 - coalesce(busy.number, 0), 0) for no key update skip locked
            ) as queue
            where paused_at is null
            order by queue.due_at limit $1
        )
        update queues set
            claim = claim + 1, is_claimed = true, due_at = clock_timestamp() + make_interval(secs => $5)
        from due
        where queues.webhook_id = due.webhook_id and queues.owner = due.owner and queues.subject = due.subject
        returning queues.webhook_id, queues.owner, queues.subject, queues.claim
        """,
        most,
        most_each,
        list(busy),
        list(busy.values()),
        seconds,
    )
    return [
        Queue(webhook_id=WebhookId(row["webhook_id"]), owner=row["owner"], subject=row["subject"], claim=row["claim"])
        for row in rows
    ]


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that is nobody else's for a while."""

    queue: Queue
    id: DeliveryId
    event_id: str
    event: bytes
    tries: int
    made_at: datetime
    is_failing: bool
    """Nothing of the webhook's has succeeded lately."""
    target: Target


async def list_first(tx: Transaction, queues: Sequence[Queue]) -> list[Claimed]:
    """What comes first in each. A statement of its own: it sees what was committed until the queue was claimed."""
    rows = await tx.fetch(
        """
        select nth, first.id, event_id, event, tries, first.created_at, failing_since is not null as is_failing,
            url, format, secret,
            case when former_until > clock_timestamp() then former_secret end as former_secret
        from unnest($1::text[], $2::text[], $3::text[]) with ordinality as queue (webhook_id, owner, subject, nth)
        join webhooks on webhooks.id = queue.webhook_id
        cross join lateral (
            select deliveries.id, event_id, event, tries, deliveries.created_at from deliveries
            where deliveries.webhook_id = queue.webhook_id and deliveries.owner = queue.owner
              and deliveries.subject = queue.subject and status = 'waiting'
            order by seq limit 1
        ) as first
        """,
        [queue.webhook_id for queue in queues],
        [queue.owner for queue in queues],
        [queue.subject for queue in queues],
    )
    return [
        Claimed(
            queue=queues[row["nth"] - 1],
            id=DeliveryId(row["id"]),
            event_id=row["event_id"],
            event=row["event"],
            tries=row["tries"],
            made_at=row["created_at"],
            is_failing=row["is_failing"],
            target=_target(row),
        )
        for row in rows
    ]


async def count_waiting(connection: Connection, most: int) -> int:
    """Deliveries that are not over, up to `most`."""
    found: int = await connection.fetchval(
        "select count(*) from (select from deliveries where status = 'waiting' limit $1) as waiting", most
    )
    return found


async def seconds_until_due(connection: Connection, *, besides: Sequence[WebhookId]) -> float | None:
    """By the database's clock; not positive where something is due already, None where nothing is going to be."""
    seconds: float | None = await connection.fetchval(
        """
        select extract(epoch from min(queue.due_at) - clock_timestamp())::float8 from webhooks
        cross join lateral (
            select due_at from queues where webhook_id = webhooks.id and due_at is not null order by due_at limit 1
        ) as queue
        where paused_at is null and id <> all ($1::text[])
        """,
        list(besides),
    )
    return seconds


async def finish(connection: Connection, claimed: Claimed, status: DeliveryStatus, result: Result) -> bool | None:
    """The delivery waits no more. Whether more waits behind it; None where the claim had expired."""
    waiting: int | None = await connection.fetchval(
        """
        with queue as (
            update queues set
                is_claimed = false, waiting = waiting - 1,
                due_at = case when waiting > 1 then clock_timestamp() end
            where webhook_id = $1 and owner = $2 and subject = $3 and claim = $4
            returning waiting
        ), finished as (
            update deliveries set
                status = $6, tries = tries + 1, code = $7, reason = $8, attempted_at = clock_timestamp()
            from queue where id = $5
            returning id
        ), logged as (
            insert into attempts (delivery_id, code, reason, milliseconds) select id, $7, $8, $9 from finished
        )
        select waiting from queue
        """,
        *_proof(claimed),
        status.value,
        result.code,
        result.reason,
        result.milliseconds,
    )
    return None if waiting is None else waiting > 0


async def try_later(connection: Connection, claimed: Claimed, result: Result, *, delay_seconds: float) -> None:
    """The delivery was not taken, and what is behind it waits with it."""
    await connection.execute(
        """
        with queue as (
            update queues set is_claimed = false, due_at = clock_timestamp() + make_interval(secs => $9)
            where webhook_id = $1 and owner = $2 and subject = $3 and claim = $4
            returning webhook_id
        ), tried as (
            update deliveries set tries = tries + 1, code = $6, reason = $7, attempted_at = clock_timestamp()
            from queue where id = $5
            returning id
        )
        insert into attempts (delivery_id, code, reason, milliseconds) select id, $6, $7, $8 from tried
        """,
        *_proof(claimed),
        result.code,
        result.reason,
        result.milliseconds,
        delay_seconds,
    )


async def release(connection: Connection, claimed: Claimed) -> None:
    """Let somebody else have it; nobody knows whether it was taken."""
    queue = claimed.queue
    await connection.execute(
        """
        update queues set is_claimed = false, due_at = clock_timestamp()
        where webhook_id = $1 and owner = $2 and subject = $3 and claim = $4
        """,
        queue.webhook_id,
        queue.owner,
        queue.subject,
        queue.claim,
    )


async def lock_queue(tx: Transaction, delivery_id: str) -> None:
    """The queue of a delivery, where it has one. It is locked before the delivery is, by everybody."""
    await tx.execute(
        """
        select from queues where (webhook_id, owner, subject) in (
            select webhook_id, owner, subject from deliveries where id = $1
        ) for no key update
        """,
        delivery_id,
    )


async def redeliver(tx: Transaction, webhook_id: str, delivery_id: str) -> bool:
    """Let it wait anew, ahead of what came after it. Whether there is such a delivery."""
    row = await tx.fetchrow(
        """
        with asked as materialized (
            select id, webhook_id, owner, subject, status <> 'waiting' as is_over from deliveries
            where webhook_id = $1 and id = $2 for no key update
        ), fresh as (
            update deliveries set status = 'waiting', tries = 0 from asked where deliveries.id = asked.id
        )
        insert into queues (webhook_id, owner, subject, waiting, due_at)
        select webhook_id, owner, subject, 1, clock_timestamp() from asked
        on conflict on constraint queues_pkey do update
        set waiting = queues.waiting + (select is_over::integer from asked),
            due_at = case when queues.is_claimed then queues.due_at else excluded.due_at end
        returning webhook_id
        """,
        webhook_id,
        delivery_id,
    )
    return row is not None


async def find_delivery(connection: Connection, webhook_id: str, delivery_id: str) -> Delivery | None:
    row = await connection.fetchrow(
        f"select {_DELIVERY} from deliveries where webhook_id = $1 and id = $2",  # noqa: S608
        webhook_id,
        delivery_id,
    )
    return None if row is None else to_delivery(row)


async def list_attempts(connection: Connection, delivery_id: str, most: int) -> list[Attempt]:
    """The latest, the first of them first."""
    rows = await connection.fetch(
        """
        select * from (
            select nth, at, code, reason, milliseconds from attempts where delivery_id = $1 order by nth desc limit $2
        ) as latest order by nth
        """,
        delivery_id,
        most,
    )
    return [
        Attempt(at=row["at"], result=Result(code=row["code"], reason=row["reason"], milliseconds=row["milliseconds"]))
        for row in rows
    ]


# What is kept no longer.


async def forget_finished(connection: Connection, *, days: float, most: int) -> int:
    number: int = await connection.fetchval(
        """
        with old as (
            select id from deliveries
            where created_at < clock_timestamp() - make_interval(secs => $1 * 86400) and status <> 'waiting'
            order by created_at limit $2 for update skip locked
        ), forgotten as (
            delete from deliveries using old where deliveries.id = old.id returning 1
        )
        select count(*) from forgotten
        """,
        days,
        most,
    )
    return number


async def lock_stale(tx: Transaction, *, days: float, most: int) -> list[Queue]:
    """Queues in which something waits for so long, unless it is being tried."""
    rows = await tx.fetch(
        """
        select webhook_id, owner, subject, claim from queues
        where (webhook_id, owner, subject) in (
            select webhook_id, owner, subject from deliveries
            where created_at < clock_timestamp() - make_interval(secs => $1 * 86400) and status = 'waiting'
            order by created_at limit $2
        ) and (not is_claimed or due_at < clock_timestamp())
        for no key update skip locked
        """,
        days,
        most,
    )
    return [Queue(webhook_id=row["webhook_id"], owner=row["owner"], subject=row["subject"], claim=0) for row in rows]


async def forget_stale(tx: Transaction, queues: Sequence[Queue], *, days: float) -> None:
    await tx.execute(
        """
        with gone as (
            delete from deliveries
            using unnest($1::text[], $2::text[], $3::text[]) as queue (webhook_id, owner, subject)
            where deliveries.webhook_id = queue.webhook_id and deliveries.owner = queue.owner
              and deliveries.subject = queue.subject and status = 'waiting'
              and created_at < clock_timestamp() - make_interval(secs => $4 * 86400)
            returning deliveries.webhook_id, deliveries.owner, deliveries.subject
        ), counted as (
            select webhook_id, owner, subject, count(*) as number from gone group by webhook_id, owner, subject
        )
        update queues set waiting = waiting - number, due_at = case when waiting > number then due_at end
        from counted
        where queues.webhook_id = counted.webhook_id and queues.owner = counted.owner
          and queues.subject = counted.subject
        """,
        [queue.webhook_id for queue in queues],
        [queue.owner for queue in queues],
        [queue.subject for queue in queues],
        days,
    )


async def forget_idle(connection: Connection) -> None:
    await connection.execute("delete from queues where due_at is null")


def to_webhook(row: Row) -> Webhook:
    return Webhook(
        id=WebhookId(row["id"]),
        name=row["name"],
        url=row["url"],
        format=Format(row["format"]),
        wanted=_wanted(row),
        paused_at=row["paused_at"],
        pause_reason=row["pause_reason"],
        failing_since=row["failing_since"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def to_delivery(row: Row) -> Delivery:
    return Delivery(
        id=DeliveryId(row["id"]),
        webhook_id=WebhookId(row["webhook_id"]),
        event_id=row["event_id"],
        type=row["type"],
        owner=row["owner"],
        subject=row["subject"],
        position=row["position"],
        event=row["event"],
        status=DeliveryStatus(row["status"]),
        tries=row["tries"],
        last=Result(code=row["code"], reason=row["reason"]),
        created_at=row["created_at"],
        attempted_at=row["attempted_at"],
    )


def _wanted(row: Row) -> Wanted:
    return Wanted(
        owners=frozenset(row["resources"]),
        whats=frozenset(row["facts"]),
        about=About(experiment_id=row["experiment_id"], pipeline_id=row["pipeline_id"], job_id=row["job_id"]),
    )


def _target(row: Row) -> Target:
    secrets = (row["secret"], row["former_secret"])
    return Target(url=row["url"], format=Format(row["format"]), secrets=tuple(filter(None, secrets)))


def _proof(claimed: Claimed) -> tuple[str, str, str, int, str]:
    queue = claimed.queue
    return queue.webhook_id, queue.owner, queue.subject, queue.claim, claimed.id
