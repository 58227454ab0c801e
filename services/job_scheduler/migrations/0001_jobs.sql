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
    -- What is true of runs whose end triggers it, of those that ended since.
    on_facts            text[],
    on_pipeline_id      text,
    on_experiment_id    text,
    on_job_id           text,
    on_since            timestamptz not null default clock_timestamp(),
    -- In which a cron expression is read.
    time_zone           text        not null default 'UTC',
    -- What becomes of slots that nobody fired in time; none: what no_catchup says.
    missed              text,
    missed_window_seconds bigint,
    -- After how many failed runs in a row it is disabled; 0 is never.
    pause_on_failures   integer     not null default 0,
    -- What becomes of a slot that comes while as many runs are alive as may be.
    overlap             text        not null default 'queue',
    experiment_id       text        not null,
    namespace           text        not null,
    -- What the record meant when it was made, in the order that replies use.
    resource_references jsonb       not null,
    pipeline_id         text,
    pipeline_name       text,
    pipeline_version_id text,
    -- Of which pipeline the version is, whether the client named that or not.
    version_pipeline_id text,
    referred_job_id     text,
    service_account     text        not null,
    parameters          jsonb       not null,
    manifest_digest     text        not null,
    engine              text        not null default 'embedded',
    reported_status     text,
    -- Where its schedule stands: the first slot after the last one, due or not; none where it never comes, or where
    -- somebody else's scheduler fires.
    next_slot_at        timestamptz,
    last_slot           timestamptz,
    last_index          bigint      not null default 0,
    -- How many of its slots are open. A retried run opens its slot again, so it may exceed the concurrency.
    active_runs         integer     not null default 0,
    -- How many slots of the past have been asked for and wait for room.
    pending_slots       integer     not null default 0,
    -- How many ends of runs have triggered it that nothing was made of yet.
    pending_causes      integer     not null default 0,
    -- Why the last slot has no run.
    error               text        not null default '',
    failures            integer     not null default 0,
    -- Why it was disabled by itself.
    pause_reason        text        not null default '',
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
    constraint jobs_trigger_kind_check check (trigger_kind in ('one-off', 'cron', 'periodic', 'run')),
    constraint jobs_cron_check check ((trigger_kind = 'cron') = (cron is not null)),
    constraint jobs_interval_check check ((trigger_kind = 'periodic') = (interval_seconds is not null)),
    constraint jobs_interval_seconds_check check (interval_seconds > 0),
    constraint jobs_window_check check (
        trigger_kind in ('cron', 'periodic') or (starts_at is null and ends_at is null)
    ),
    constraint jobs_on_facts_check check ((trigger_kind = 'run') = (on_facts is not null)),
    constraint jobs_on_check check (
        (trigger_kind = 'run') = (coalesce(on_pipeline_id, on_experiment_id, on_job_id) is not null)
    ),
    constraint jobs_on_engine_check check (trigger_kind <> 'run' or engine = 'embedded' and next_slot_at is null),
    constraint jobs_missed_check check (missed in ('all', 'latest', 'none')),
    constraint jobs_missed_window_seconds_check check (missed_window_seconds > 0),
    constraint jobs_overlap_check check (overlap in ('queue', 'skip', 'replace')),
    constraint jobs_pause_on_failures_check check (pause_on_failures >= 0),
    constraint jobs_failures_check check (failures >= 0),
    constraint jobs_pause_reason_check check (pause_reason = '' or not is_enabled),
    constraint jobs_next_slot_at_check check (engine = 'embedded' or next_slot_at is null),
    constraint jobs_pending_slots_check check (pending_slots >= 0),
    constraint jobs_pending_causes_check check (pending_causes >= 0),
    constraint jobs_order_check check (next_slot_at > last_slot),
    constraint jobs_active_runs_check check (active_runs >= 0),
    constraint jobs_version_check check (version > 0)
);

create index jobs_created_at_idx on jobs (created_at, id);
create index jobs_experiment_id_idx on jobs (experiment_id, created_at, id);
create index jobs_pipeline_version_id_idx on jobs (pipeline_version_id, created_at, id)
    where pipeline_version_id is not null;
create index jobs_referred_job_id_idx on jobs (referred_job_id, created_at, id) where referred_job_id is not null;
create index jobs_name_trgm_idx on jobs using gin (name gin_trgm_ops);

-- What may be fired, the first one first. Neither what is disabled is in it, nor what waits for one of its runs to end.
create index jobs_due_idx on jobs (next_slot_at, id)
    where is_enabled and (active_runs < max_concurrency or overlap <> 'queue') and next_slot_at is not null;

create index jobs_backfilling_idx on jobs (id)
    where pending_slots > 0 and active_runs < max_concurrency and pause_reason = '';

create index jobs_on_idx on jobs (id) where trigger_kind = 'run';

create index jobs_caused_idx on jobs (id)
    where pending_causes > 0 and is_enabled and (active_runs < max_concurrency or overlap <> 'queue');

-- The ends of runs that have triggered a job, each once. Of those that were decided about, the newest are kept for each
-- job.
create table causes (
    job_id     text        not null,
    run_id     text        not null,
    attempt    integer     not null,
    -- When the end was told.
    at         timestamptz not null,
    -- The run as the fact tells of it.
    run        jsonb       not null,
    decided_at timestamptz,
    constraint causes_pkey primary key (job_id, run_id, attempt)
);

create index causes_pending_idx on causes (job_id, at, run_id) where decided_at is null;
create index causes_decided_idx on causes (job_id, decided_at) where decided_at is not null;

-- Slots of the past that somebody has asked for.
create table pending_slots (
    job_id text        not null,
    slot   timestamptz not null,
    constraint pending_slots_pkey primary key (job_id, slot)
);

-- The slots that have come, each with the run that was ordered for it. Open while the run is alive; of those that are
-- not, the newest are kept for each job.
create table slots (
    job_id      text        not null,
    slot        timestamptz not null,
    index       bigint      not null,
    run_id      text        not null,
    fired_at    timestamptz not null default clock_timestamp(),
    ended_at    timestamptz,
    -- When its run had to go for that of a later one.
    replaced_at timestamptz,
    -- The newest that is known of the run.
    run_version bigint      not null default 0,
    -- When somebody last made sure that an open one's run is alive.
    checked_at  timestamptz not null default clock_timestamp(),
    -- A slot of a schedule makes one run; of runs that trigger a job, several may end at one time.
    constraint slots_pkey primary key (job_id, slot, run_id),
    constraint slots_index_key unique (job_id, index),
    constraint slots_index_check check (index > 0)
);

create index slots_open_idx on slots (checked_at) where ended_at is null;

-- What somebody changed of a job at once, each with the job's version since then. The newest are kept for each job.
create table revisions (
    job_id     text        not null,
    version    bigint      not null,
    changed_at timestamptz not null default clock_timestamp(),
    changed_by text        not null,
    -- Field, before and after.
    fields     jsonb       not null,
    constraint revisions_pkey primary key (job_id, version)
);

-- Each distinct manifest once, for replies. Immutable; no foreign key: every creation would lock the popular row.
create table manifests (
    digest text not null,
    body   text not null,
    constraint manifests_pkey primary key (digest),
    constraint manifests_digest_check check (digest ~ '^[0-9a-f]{64}$')
);
