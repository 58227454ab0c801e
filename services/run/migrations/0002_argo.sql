-- What the controllers of runs that Argo Workflows executes look for, beside the indexes of the other engine's: a row is
-- in those of its own. The shard needs no column: open runs are few, and those of other controllers are passed over as they are met.
create index runs_argo_unsubmitted_idx on runs (created_at, id)
    where engine = 'argo' and submitted_at is null and finished_at is null;
create index runs_argo_active_idx on runs (id) where engine = 'argo' and finished_at is null;

-- The constraint that is replaced was stricter, so the rows that are there need no look. It comes after the indexes,
-- which leave readers of the table alone for as long as they take; it is locked for a moment only.
alter table runs
    drop constraint runs_engine_check,
    add constraint runs_engine_check check (engine in ('embedded', 'argo', 'external')) not valid;

-- Whose controller erases what is left.
alter table erasures
    add column engine text not null default 'embedded',
    add constraint erasures_engine_check check (engine in ('embedded', 'argo', 'external')) not valid;
