"""The job scheduler.

owns: nothing yet; recurring runs and their slots will be its own
emits: nothing yet
listens to: experiment created, archived, unarchived, deleted
answers: `kfp.ask.job-scheduler.` applied

It follows experiments from its first day, so that they are known when the first job names one, and so that whoever
archives an experiment can wait for it as for any other follower. It has no route of the API.
"""
