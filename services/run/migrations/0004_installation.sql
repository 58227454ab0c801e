-- Who we are among those whose workflows share a cluster. It goes with the records, also into a backup.
create table installation (
    is_only boolean not null default true,
    id      text    not null default gen_random_uuid()::text,
    constraint installation_pkey primary key (is_only),
    constraint installation_is_only_check check (is_only)
);

insert into installation default values;
