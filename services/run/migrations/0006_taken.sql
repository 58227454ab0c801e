-- The latest attempt that the engine is known to have had, of engines that somebody else may clear away.
alter table runs add column taken_attempt integer not null default 0;
