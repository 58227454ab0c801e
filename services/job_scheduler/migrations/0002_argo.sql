-- Jobs whose runs Argo Workflows executes. They are fired here, as those of the embedded engine are. The constraints
-- that are replaced were stricter, so the rows that are there need no look.
alter table jobs
    drop constraint jobs_engine_check,
    drop constraint jobs_on_engine_check,
    drop constraint jobs_next_slot_at_check,
    add constraint jobs_engine_check check (engine in ('embedded', 'argo', 'external')) not valid,
    add constraint jobs_on_engine_check check (
        trigger_kind <> 'run' or engine <> 'external' and next_slot_at is null
    ) not valid,
    add constraint jobs_next_slot_at_check check (engine <> 'external' or next_slot_at is null) not valid;
