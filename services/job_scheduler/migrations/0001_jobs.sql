create table jobs (
    id                  text        not null,
    -- What the scheduler object is called: the base of its workflows' names.
    object_name         text        not null,
    name                text        not null,
    description         text        not null default '',
    is_enabled          boolean     not null,
    no_catchup          boolean     not null,
    max_concurrency     integer     not null,
    trigger_kind        text        not null,
    cron                text,
    interval_seconds    bigint,
    starts_at           timestamptz,
    ends_at             timestamptz,
    experiment_id       text        not null,
    namespace           text        not null,
    -- What the record meant when it was made, in the order that replies use.
    resource_references jsonb       not null,
    pipeline_id         text,
    pipeline_name       text,
    pipeline_version_id text,
    referred_job_id     text,
    service_account     text        not null,
    parameters          jsonb       not null,
    manifest_digest     text        not null,
    engine              text        not null default 'embedded',
    reported_status     text,
    version             bigint      not null default 1,
    created_by          text        not null default '',
    created_at          timestamptz not null default clock_timestamp(),
    updated_at          timestamptz not null default clock_timestamp(),
    constraint jobs_pkey primary key (id),
    constraint jobs_object_name_key unique (object_name),
    -- Another engine's scheduler calls its objects as it likes.
    constraint jobs_object_name_check check (engine = 'external' or object_name ~ '^[a-z0-9][-a-z0-9]{5,29}$'),
    constraint jobs_engine_check check (engine in ('embedded', 'external')),
    constraint jobs_reported_status_check check (
        reported_status is null or engine = 'external'
        and reported_status in ('NO_STATUS', 'Enabled', 'Disabled', 'Running', 'Succeeded', 'Error')
    ),
    constraint jobs_max_concurrency_check check (max_concurrency between 1 and 10),
    constraint jobs_trigger_kind_check check (trigger_kind in ('one-off', 'cron', 'periodic')),
    constraint jobs_cron_check check ((trigger_kind = 'cron') = (cron is not null)),
    constraint jobs_interval_check check ((trigger_kind = 'periodic') = (interval_seconds is not null)),
    constraint jobs_interval_seconds_check check (interval_seconds > 0),
    constraint jobs_window_check check (trigger_kind <> 'one-off' or (starts_at is null and ends_at is null)),
    constraint jobs_version_check check (version > 0)
);

create index jobs_created_at_idx on jobs (created_at, id);
create index jobs_experiment_id_idx on jobs (experiment_id, created_at, id);
create index jobs_pipeline_version_id_idx on jobs (pipeline_version_id, created_at, id)
    where pipeline_version_id is not null;
create index jobs_referred_job_id_idx on jobs (referred_job_id, created_at, id) where referred_job_id is not null;
create index jobs_name_trgm_idx on jobs using gin (name gin_trgm_ops);

-- Each distinct manifest once, for replies. Immutable; no foreign key: every creation would lock the popular row.
create table manifests (
    digest text not null,
    body   text not null,
    constraint manifests_pkey primary key (digest),
    constraint manifests_digest_check check (digest ~ '^[0-9a-f]{64}$')
);
