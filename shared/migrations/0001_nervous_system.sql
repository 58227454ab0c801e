-- What every schema needs to tell facts and to hear them. Owned by shared/, applied before a service's own files.

-- One row per fact, written in the transaction that made it true. Facts of one resource are added while the
-- resource's own row is locked, so seq follows the order of their commits.
create table outbox (
    seq         bigint      generated always as identity,
    id          uuid        not null default gen_random_uuid(),
    type        text        not null,
    owner       text        not null,
    what        text        not null,
    resource_id text        not null,
    body        bytea       not null,
    traceparent text        not null,
    added_at    timestamptz not null default clock_timestamp(),
    position    bigint,
    constraint outbox_pkey primary key (seq),
    constraint outbox_id_key unique (id),
    constraint outbox_owner_position_key unique (owner, position),
    constraint outbox_position_check check (position > 0),
    constraint outbox_body_check check (octet_length(body) <= 262144)
);

create index outbox_unpositioned_idx on outbox (owner, seq) where position is null;

-- How far the relay of each owner came: positions handed out without gaps, and those the broker has acknowledged in
-- the stream that was created then. Another moment of creation is another, emptier stream. The bytes are those of the
-- rows with a position that are here still.
create table relay (
    owner             text        not null,
    allocated         bigint      not null default 0,
    published         bigint      not null default 0,
    kept_bytes        bigint      not null default 0,
    stream_created_at timestamptz,
    constraint relay_pkey primary key (owner),
    constraint relay_published_check check (published <= allocated)
);

-- Work that one replica does at a time. The database's clock decides; every change of hands raises the epoch.
create table leases (
    name       text        not null,
    holder     text        not null,
    epoch      bigint      not null default 1,
    expires_at timestamptz not null,
    constraint leases_pkey primary key (name)
);

-- How far this schema has applied each owner's facts.
create table cursors (
    subscriber text   not null,
    owner      text   not null,
    position   bigint not null,
    constraint cursors_pkey primary key (subscriber, owner),
    constraint cursors_position_check check (position >= 0)
);

-- Facts that a subscriber gave up on, written with the cursor that passed them. They wait for somebody who mends what
-- was wrong and has them applied, out of their order.
create table dead_letters (
    seq           bigint      generated always as identity,
    subscriber    text        not null,
    id            text        not null,
    type          text        not null,
    owner         text        not null,
    what          text        not null,
    resource_id   text        not null,
    position      bigint      not null,
    told_at       timestamptz not null,
    traceparent   text        not null,
    body          bytea       not null,
    reason        text        not null,
    tries         integer     not null,
    put_aside_at  timestamptz not null default clock_timestamp(),
    constraint dead_letters_pkey primary key (seq),
    constraint dead_letters_subscriber_id_key unique (subscriber, id)
);

-- Event-fed copies of other services' small records. Only events write them; a deleted resource leaves its
-- tombstone, so that a late fact cannot revive it.
create table replicas (
    kind       text    not null,
    id         text    not null,
    version    bigint  not null,
    is_deleted boolean not null default false,
    state      jsonb   not null,
    constraint replicas_pkey primary key (kind, id)
);
