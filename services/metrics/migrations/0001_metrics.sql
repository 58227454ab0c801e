-- The key is the rule "the first report wins".
create table metrics (
    run_id      text             not null,
    node_id     text             not null,
    name        text             not null,
    number      double precision not null,
    format      text             not null default 'UNSPECIFIED',
    reported_at timestamptz      not null default clock_timestamp(),
    constraint metrics_pkey primary key (run_id, node_id, name),
    constraint metrics_node_id_check check (node_id <> '' and octet_length(node_id) <= 128),
    constraint metrics_name_check check (name ~ '^[a-zA-Z]([-_a-zA-Z0-9]{0,62}[a-zA-Z0-9])?$'),
    constraint metrics_number_check check (number not in ('NaN', 'Infinity', '-Infinity')),
    constraint metrics_format_check check (format in ('UNSPECIFIED', 'RAW', 'PERCENTAGE'))
);

-- How often a run has recorded something: the version that orders its facts.
create table reported_runs (
    run_id  text   not null,
    version bigint not null,
    constraint reported_runs_pkey primary key (run_id),
    constraint reported_runs_version_check check (version > 0)
);
