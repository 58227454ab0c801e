"""The experiment service.

owns: experiments, and which one is the default
emits: `kfp.event.experiment.` created, archived, unarchived, deleted
listens to: nothing
answers: `kfp.ask.experiment.` get, get-default
"""
