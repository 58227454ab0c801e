-- Creations that a client named by an Idempotency-Key, each written in the transaction that created something.
create table idempotency_keys (
    caller   text        not null,
    route    text        not null,
    key      text        not null,
    -- SHA-256 of the request, and the body of its answer.
    request  bytea       not null,
    answer   bytea       not null,
    kept_at  timestamptz not null default clock_timestamp(),
    constraint idempotency_keys_pkey primary key (caller, route, key),
    constraint idempotency_keys_request_check check (octet_length(request) = 32)
);

create index idempotency_keys_kept_at_idx on idempotency_keys (kept_at);
