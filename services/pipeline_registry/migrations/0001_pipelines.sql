create table pipelines (
    id                 text        not null,
    name               text        not null,
    description        text        not null default '',
    parameters         jsonb       not null,
    default_version_id text,
    revision           bigint      not null default 1,
    created_by         text        not null default '',
    created_at         timestamptz not null default clock_timestamp(),
    constraint pipelines_pkey primary key (id),
    constraint pipelines_name_key unique (name),
    constraint pipelines_parameters_check check (jsonb_typeof(parameters) = 'array'),
    constraint pipelines_revision_check check (revision > 0)
);

create index pipelines_created_at_idx on pipelines (created_at, id);
create index pipelines_name_trgm_idx on pipelines using gin (name gin_trgm_ops);

-- Rows appear when their package is stored: what can be read here can be run.
create table pipeline_versions (
    id              text        not null,
    pipeline_id     text        not null,
    name            text        not null,
    description     text        not null default '',
    code_source_url text        not null default '',
    parameters      jsonb       not null,
    manifest_digest text        not null,
    created_by      text        not null default '',
    created_at      timestamptz not null default clock_timestamp(),
    constraint pipeline_versions_pkey primary key (id),
    constraint pipeline_versions_pipeline_id_name_key unique (pipeline_id, name),
    constraint pipeline_versions_pipeline_id_id_key unique (pipeline_id, id),
    constraint pipeline_versions_pipeline_id_fk foreign key (pipeline_id) references pipelines (id) on delete cascade,
    constraint pipeline_versions_parameters_check check (jsonb_typeof(parameters) = 'array'),
    constraint pipeline_versions_manifest_digest_check check (manifest_digest ~ '^[0-9a-f]{64}$')
);

create index pipeline_versions_created_at_idx on pipeline_versions (pipeline_id, created_at, id);

-- The default is one of the pipeline's own versions. Both rows of a new pipeline come in one transaction.
alter table pipelines add constraint pipelines_default_version_id_fk
    foreign key (id, default_version_id) references pipeline_versions (pipeline_id, id)
    deferrable initially deferred;

-- Objects to erase once they are due. An upload dooms its object before it writes it and spares it in the transaction
-- that needs it: whatever happens in between, nothing is left over. A deletion dooms at once.
create table doomed_objects (
    key    text        not null,
    due_at timestamptz not null,
    constraint doomed_objects_pkey primary key (key)
);

create index doomed_objects_due_at_idx on doomed_objects (due_at);
