create table experiments (
    id            text        not null,
    name          text        not null,
    description   text        not null default '',
    storage_state text        not null default 'available',
    version       bigint      not null default 1,
    created_by    text        not null default '',
    created_at    timestamptz not null default clock_timestamp(),
    constraint experiments_pkey primary key (id),
    constraint experiments_name_key unique (name),
    constraint experiments_name_check check (name <> ''),
    constraint experiments_storage_state_check check (storage_state in ('available', 'archived')),
    constraint experiments_version_check check (version > 0)
);

create index experiments_created_at_idx on experiments (created_at, id);
create index experiments_name_trgm_idx on experiments using gin (name gin_trgm_ops);

-- Which experiment takes the runs and jobs that name none. The row is always there; its lock makes "make it once"
-- hold with many replicas.
create table default_experiment (
    only_row      boolean not null default true,
    experiment_id text,
    constraint default_experiment_pkey primary key (only_row),
    constraint default_experiment_only_row_check check (only_row),
    constraint default_experiment_experiment_id_fk foreign key (experiment_id)
        references experiments (id) on delete set null
);

insert into default_experiment default values;
