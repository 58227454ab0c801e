"""The pipeline registry.

owns: pipelines and their versions; the packages in the object store (`pipelines/<version id>`)
emits: created, deleted, version-created, version-deleted, default-changed
listens to: nothing
answers: get-version, get-default-version, repeat
"""
