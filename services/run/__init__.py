"""The run service.

owns: runs, their nodes, manifests, where artifacts are; the engine
emits: created, started, succeeded, failed, error, skipped, terminating, retried, archived, unarchived, deleted, lost,
    rejected; node: started, succeeded, failed, error, skipped
listens to: experiment: created, archived, unarchived, deleted; job-scheduler: triggered, deleted; metrics: reported;
    pipeline-registry: version-created, version-deleted
answers: get, get-values, check-manifest, applied, dead, dead-letter, retry-dead, discard-dead, repeat; run-controller:
    log, engine; node: repeat

Rooms of its own, beyond those of every service: `records.py`, the verbs of the controller (what the engine has to be
told, and what it was seen doing), beside `usecases.py`, the verbs of the API; `reports.py`, what an external engine's
agent says of the runs that no controller here drives; `manifests.py`, where the text of a manifest comes from;
`node_facts.py`, pure: what is told of a step;
`reading.py`, pure: what is read of it, and where a large one is read; `step_cache.py`, what steps have left for others
that are the same; `compose.py`, pure: the workflow that a run's manifest becomes, and the document that shows it.
"""
