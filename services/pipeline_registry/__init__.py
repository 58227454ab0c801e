"""The pipeline registry.

owns: pipelines and their versions; the packages in the object store (`pipelines/<version id>`)
emits: `kfp.event.pipeline-registry.` created, deleted, version-created, version-deleted, default-changed
listens to: nothing
answers: `kfp.ask.pipeline-registry.` get-version, get-default-version
"""
