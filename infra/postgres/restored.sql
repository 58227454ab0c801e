-- To be run once by psql, as a superuser, after the database was restored from a backup and before anything of Headrace
-- starts on it. The streams of the broker are dropped at the same time: they tell of what is not in the database.
--
-- Positions that came after the backup were given to facts that are lost now, and subscribers outside have seen them. A
-- position never tells of two things, so that owners go on a billion further; to a subscriber that is a gap, and says
-- that facts are gone. Our own, where they had applied everything, are put in front of the next fact.
\set ON_ERROR_STOP on
\set QUIET on
begin;

create temporary table reached (owner text not null, allocated bigint not null) on commit drop;

do $$
declare
    home name;
begin
    for home in select schemaname from pg_tables where tablename = 'relay' loop
        execute format('insert into reached select owner, allocated from %I.relay', home);
        execute format('update %I.relay set allocated = allocated + 1000000000', home);
    end loop;
    for home in select schemaname from pg_tables where tablename = 'cursors' loop
        execute format(
            'update %I.cursors set position = position + 1000000000 from reached '
            'where reached.owner = cursors.owner and reached.allocated = cursors.position',
            home
        );
    end loop;
end
$$;

commit;
