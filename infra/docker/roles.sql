-- The roles of `infra/postgres/roles.sql`, their passwords from the environment: no secret on a command line.
\set ON_ERROR_STOP on
\getenv database HEADRACE_DATABASE
\getenv experiment_password HEADRACE_EXPERIMENT_DATABASE_PASSWORD
\getenv pipeline_registry_password HEADRACE_PIPELINE_REGISTRY_DATABASE_PASSWORD
\getenv run_password HEADRACE_RUN_DATABASE_PASSWORD
\getenv job_scheduler_password HEADRACE_JOB_SCHEDULER_DATABASE_PASSWORD
\getenv metrics_password HEADRACE_METRICS_DATABASE_PASSWORD
\getenv notifier_password HEADRACE_NOTIFIER_DATABASE_PASSWORD
\ir ../postgres/roles.sql
