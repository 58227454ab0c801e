create table runs (
    id                     text        not null,
    name                   text        not null,
    description            text        not null default '',
    storage_state          text        not null default 'available',
    status                 text        not null default '',
    error                  text        not null default '',
    experiment_id          text        not null,
    namespace              text        not null,
    -- What the record meant when it was made, in the order that replies use.
    resource_references    jsonb       not null,
    pipeline_id            text,
    pipeline_name          text,
    pipeline_version_id    text,
    job_id                 text,
    service_account        text        not null,
    parameters             jsonb       not null,
    -- No foreign key: every creation would lock the row of the one manifest that everybody runs.
    manifest_digest        text        not null,
    engine                 text        not null default 'embedded',
    workflow_name          text        not null,
    attempt                integer     not null default 1,
    version                bigint      not null default 1,
    -- The subject of the caller; empty where nobody is asked who they are, and then in no index.
    created_by             text        not null default '',
    traceparent            text        not null,
    created_at             timestamptz not null default clock_timestamp(),
    scheduled_at           timestamptz,
    -- How many runs led to it, each triggered by the end of the one before.
    trigger_depth          integer     not null default 0,
    started_at             timestamptz,
    finished_at            timestamptz,
    -- The last retry; a deadline of the whole run counts from it.
    retried_at             timestamptz,
    -- What the engine was told, and what it still has to be told.
    submitted_at           timestamptz,
    terminate_requested_at timestamptz,
    terminate_sent_at      timestamptz,
    constraint runs_pkey primary key (id),
    constraint runs_workflow_name_key unique (workflow_name),
    constraint runs_name_check check (name <> ''),
    constraint runs_storage_state_check check (storage_state in ('available', 'archived')),
    constraint runs_status_check check (
        status in ('', 'Pending', 'Running', 'Terminating', 'Succeeded', 'Skipped', 'Failed', 'Error')
    ),
    constraint runs_engine_check check (engine in ('embedded', 'external')),
    constraint runs_workflow_name_check check (length(workflow_name) between 1 and 63),
    constraint runs_attempt_check check (attempt > 0),
    constraint runs_trigger_depth_check check (trigger_depth >= 0),
    constraint runs_retried_check check ((attempt > 1) = (retried_at is not null)),
    constraint runs_version_check check (version > 0),
    -- The state machine, as far as one row can tell: a new run has not started, a running one has, a final one and
    -- no other has an end, and nobody terminates unasked.
    constraint runs_new_check check (status <> '' or started_at is null),
    constraint runs_running_check check (status <> 'Running' or started_at is not null),
    constraint runs_final_check check (
        (status in ('Succeeded', 'Skipped', 'Failed', 'Error')) = (finished_at is not null)
    ),
    constraint runs_terminating_check check (status <> 'Terminating' or terminate_requested_at is not null),
    constraint runs_terminate_sent_check check (terminate_sent_at is null or terminate_requested_at is not null),
    constraint runs_error_check check (error = '' or status <> '')
);

-- Lists. Full indexes instead of partial ones where the predicate is a parameter: a cached plan knows no values.
create index runs_created_at_idx on runs (created_at, id);
create index runs_storage_state_idx on runs (storage_state, created_at, id);
create index runs_experiment_id_idx on runs (experiment_id, created_at, id);
create index runs_experiment_id_storage_state_idx on runs (experiment_id, storage_state, created_at, id);
create index runs_status_idx on runs (status, created_at, id);
create index runs_pipeline_id_idx on runs (pipeline_id, created_at, id) where pipeline_id is not null;
create index runs_created_by_idx on runs (nullif(created_by, ''), created_at, id)
    where nullif(created_by, '') is not null;
create index runs_finished_at_idx on runs (finished_at, id) where finished_at is not null;
create index runs_job_id_idx on runs (job_id, created_at, id) where job_id is not null;
create index runs_pipeline_version_id_idx on runs (pipeline_version_id, created_at, id)
    where pipeline_version_id is not null;
create index runs_name_idx on runs (name, id);
create index runs_name_trgm_idx on runs using gin (name gin_trgm_ops);

-- What the controller looks for. Finished runs are in none of them, and those of an external engine are not its own.
create index runs_unsubmitted_idx on runs (created_at, id)
    where engine = 'embedded' and submitted_at is null and finished_at is null;
create index runs_termination_idx on runs (terminate_requested_at, id)
    where terminate_requested_at is not null and terminate_sent_at is null and finished_at is null;
create index runs_active_idx on runs (id) where engine = 'embedded' and finished_at is null;

-- One row per node, one small write per transition. `json` keeps the text as it came: a step may write U+0000,
-- which jsonb cannot hold.
create table nodes (
    run_id     text        not null,
    id         text        not null,
    phase      text        not null,
    body       json        not null,
    changed_at timestamptz not null default clock_timestamp(),
    constraint nodes_pkey primary key (run_id, id)
) with (fillfactor = 85);

-- Each distinct manifest once. Immutable.
create table manifests (
    digest text not null,
    body   text not null,
    constraint manifests_pkey primary key (digest),
    constraint manifests_digest_check check (digest ~ '^[0-9a-f]{64}$')
);

-- Typed copy of what the metrics service has recorded.
create table run_metrics (
    run_id  text             not null,
    node_id text             not null,
    name    text             not null,
    number  double precision not null,
    format  text             not null,
    constraint run_metrics_pkey primary key (run_id, node_id, name),
    constraint run_metrics_format_check check (format in ('UNSPECIFIED', 'RAW', 'PERCENTAGE'))
);

-- What a step left that succeeded, under the key of all steps that are the same. It goes with the run that it was of.
create table step_cache (
    key     text        not null,
    run_id  text        not null,
    outputs json        not null,
    kept_at timestamptz not null default clock_timestamp(),
    constraint step_cache_pkey primary key (key),
    constraint step_cache_key_check check (key ~ '^[0-9a-f]{64}$')
);

create index step_cache_run_id_idx on step_cache (run_id);

-- Deleted runs whose engine objects, nodes and metrics are still to be erased.
create table erasures (
    run_id        text        not null,
    workflow_name text        not null,
    requested_at  timestamptz not null default clock_timestamp(),
    constraint erasures_pkey primary key (run_id)
);

create index erasures_requested_at_idx on erasures (requested_at, run_id);

-- Deleted runs of jobs that another engine fires: they stay deleted, though their workflows are still reported.
create table deleted_runs (
    run_id text not null,
    job_id text not null,
    constraint deleted_runs_pkey primary key (run_id)
);

create index deleted_runs_job_id_idx on deleted_runs (job_id);

-- Kept counts: every change adds a delta in its own transaction, a ticker folds them. The empty experiment id
-- stands for all experiments.
create table run_count_deltas (
    experiment_id text    not null,
    storage_state text    not null,
    delta         integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

create table run_counts (
    experiment_id text   not null,
    storage_state text   not null,
    total         bigint not null,
    constraint run_counts_pkey primary key (experiment_id, storage_state)
) with (fillfactor = 50);
