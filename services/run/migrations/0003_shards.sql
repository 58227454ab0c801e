-- Who drives which of the 64 shards of an engine's runs. Rows change hands and are never added.
create table shards (
    name       text        not null,
    shard      integer     not null,
    holder     text        not null default '',
    epoch      bigint      not null default 0,
    expires_at timestamptz not null default '-infinity',
    constraint shards_pkey primary key (name, shard)
) with (fillfactor = 50);

insert into shards (name, shard) select 'argo', generate_series(0, 63);

-- Who takes part: what a fair share is follows from how many do.
create table shard_members (
    name       text        not null,
    holder     text        not null,
    expires_at timestamptz not null,
    constraint shard_members_pkey primary key (name, holder)
) with (fillfactor = 50);
