"""The experiment service.

owns: experiments, and which one is the default
emits: created, archived, unarchived, deleted
listens to: nothing
answers: get, get-default, repeat
"""
