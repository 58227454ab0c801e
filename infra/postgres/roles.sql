-- A role and a schema of its own for every service, and nothing shared but the extensions' functions.
-- Run by psql as a superuser, any number of times. Variables: database, and <role>_password for every role.
\set ON_ERROR_STOP on
\set QUIET on
set client_min_messages = warning;

select format('create role %I login nosuperuser nocreatedb nocreaterole noinherit', role)
from unnest(array['experiment', 'pipeline_registry', 'run', 'job_scheduler', 'metrics', 'notifier']) as role
where not exists (select from pg_roles where rolname = role)
\gexec

alter role experiment password :'experiment_password';
alter role pipeline_registry password :'pipeline_registry_password';
alter role run password :'run_password';
alter role job_scheduler password :'job_scheduler_password';
alter role metrics password :'metrics_password';
alter role notifier password :'notifier_password';

-- The role's own schema comes first, and no other schema of a service is on anybody's path.
alter role experiment set search_path = experiment, extensions;
alter role pipeline_registry set search_path = pipeline_registry, extensions;
alter role run set search_path = run, extensions;
alter role job_scheduler set search_path = job_scheduler, extensions;
alter role metrics set search_path = metrics, extensions;
alter role notifier set search_path = notifier, extensions;

select format('create database %I', :'database')
where not exists (select from pg_database where datname = :'database')
\gexec

revoke all on database :"database" from public;
grant connect on database :"database" to experiment, pipeline_registry, run, job_scheduler, metrics, notifier;

\connect :"database"
set client_min_messages = warning;

revoke all on schema public from public;

create schema if not exists extensions;
revoke all on schema extensions from public;
grant usage on schema extensions to experiment, pipeline_registry, run, job_scheduler, metrics, notifier;
create extension if not exists pg_trgm schema extensions;

create schema if not exists experiment authorization experiment;
create schema if not exists pipeline_registry authorization pipeline_registry;
create schema if not exists run authorization run;
create schema if not exists job_scheduler authorization job_scheduler;
create schema if not exists metrics authorization metrics;
create schema if not exists notifier authorization notifier;
