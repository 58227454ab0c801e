create table webhooks (
    id            text        not null,
    name          text        not null,
    url           text        not null,
    format        text        not null default 'cloudevents',
    -- What it wants; what is empty is any.
    resources     text[]      not null default '{}',
    facts         text[]      not null default '{}',
    experiment_id text        not null default '',
    pipeline_id   text        not null default '',
    job_id        text        not null default '',
    -- What its deliveries are signed with: for a while after it was changed, by the former one as well.
    secret        text        not null,
    former_secret text,
    former_until  timestamptz,
    paused_at     timestamptz,
    pause_reason  text        not null default '',
    -- Since when no attempt has succeeded.
    failing_since timestamptz,
    created_by    text        not null default '',
    created_at    timestamptz not null default clock_timestamp(),
    updated_at    timestamptz not null default clock_timestamp(),
    constraint webhooks_pkey primary key (id),
    constraint webhooks_format_check check (format in ('cloudevents', 'slack')),
    constraint webhooks_secret_check check (secret like 'whsec\_%'),
    constraint webhooks_former_check check ((former_secret is null) = (former_until is null)),
    constraint webhooks_pause_reason_check check (paused_at is not null or pause_reason = '')
);

create index webhooks_created_at_idx on webhooks (created_at, id);

-- One event for one webhook. They are numbered as their owners tell of them.
create table deliveries (
    id           text        not null,
    seq          bigint      generated always as identity,
    webhook_id   text        not null,
    event_id     text        not null,
    type         text        not null,
    owner        text        not null,
    subject      text        not null,
    position     bigint      not null,
    -- A CloudEvent in JSON.
    event        bytea       not null,
    status       text        not null default 'waiting',
    -- Since it was made, or was last taken up again.
    tries        integer     not null default 0,
    code         integer     not null default 0,
    reason       text        not null default '',
    created_at   timestamptz not null default clock_timestamp(),
    attempted_at timestamptz,
    constraint deliveries_pkey primary key (id),
    -- Neither a redelivered fact nor a rebuilt stream makes another one.
    constraint deliveries_event_id_key unique (webhook_id, event_id),
    constraint deliveries_webhook_id_fk foreign key (webhook_id) references webhooks (id) on delete cascade,
    constraint deliveries_status_check check (status in ('waiting', 'delivered', 'gave-up')),
    constraint deliveries_tries_check check (tries >= 0)
);

create index deliveries_waiting_idx on deliveries (webhook_id, owner, subject, seq) where status = 'waiting';
create index deliveries_webhook_id_idx on deliveries (webhook_id, created_at, id);
-- They grow old in the order in which they were made: a few pages say where the old ones lie.
create index deliveries_created_at_idx on deliveries using brin (created_at);

-- What waits for one webhook about one resource, which is sent in order: one delivery at a time, the first one first.
create table queues (
    webhook_id text        not null,
    owner      text        not null,
    subject    text        not null,
    waiting    integer     not null,
    -- When the first one may be tried; while a replica tries it, when that counts as lost. Nothing waits without it.
    due_at     timestamptz,
    is_claimed boolean     not null default false,
    claim      bigint      not null default 0,
    constraint queues_pkey primary key (webhook_id, owner, subject),
    constraint queues_webhook_id_fk foreign key (webhook_id) references webhooks (id) on delete cascade,
    constraint queues_waiting_check check (waiting >= 0),
    constraint queues_due_at_check check ((due_at is null) = (waiting = 0))
);

create index queues_due_at_idx on queues (webhook_id, due_at) where due_at is not null;

-- What was tried, for who looks into it.
create table attempts (
    delivery_id  text        not null,
    nth          bigint      generated always as identity,
    code         integer     not null,
    reason       text        not null,
    milliseconds integer     not null,
    at           timestamptz not null default clock_timestamp(),
    constraint attempts_pkey primary key (delivery_id, nth),
    constraint attempts_delivery_id_fk foreign key (delivery_id) references deliveries (id) on delete cascade
);
