"""The job scheduler.

owns: recurring runs ("jobs")
emits: created, enabled, disabled, deleted
listens to: experiment: created, archived, unarchived, deleted
answers: get, applied, repeat

A room of its own: `schedule.py`, when a job fires. It is pure, as the domain is, and knows croniter beside.
"""
