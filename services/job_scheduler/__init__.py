"""The job scheduler.

owns: recurring runs ("jobs")
emits: created, enabled, disabled, updated, triggered, missed, deleted
listens to: experiment: created, archived, unarchived, deleted;
    pipeline-registry: version-created, version-deleted;
    run: succeeded, failed, error, skipped, retried, deleted, rejected
answers: get, applied, dead, dead-letter, retry-dead, discard-dead, repeat

Rooms of its own: `cron.py`, what an expression matches, which knows croniter beside; `schedule.py`, when a job fires;
`causes.py`, which runs fire it by their end; `firing.py`, what it fires then. They are pure, as the domain is.
`slots.py`, the verbs of time, `reactions.py`, those of jobs that runs trigger, and `extensions.py`, those that the
original does not have, beside `usecases.py`, the verbs of its API.
"""
