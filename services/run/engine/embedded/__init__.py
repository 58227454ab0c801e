"""The embedded engine: it interprets the Workflow manifests that pipelines compile to, on one machine.

    manifest     the document, typed
    validation   what is refused when a run or a pipeline is created
    template     {{…}} replacement · variables: the values behind the tags
    expression   `when` and `depends` · expr: what stands in {{=…}}
    paths        jsonPath and jqFilter of resource outputs
    durations    seconds, and Go's notation of them
    loops        withItems, withParam, withSequence
    nodes        the records of `status.nodes`, their names and ids
    orders       what a step process is told
    cache        which executions are the same
    quantity     amounts of memory and of processors
    plan         what follows from the manifest alone, computed once a run
    reconcile    the manifest and what happened → what to do next
    reopen       which nodes a retried run keeps

All of these are pure: no I/O, no clock, no randomness. Who starts processes, stores records and measures time is
beside them, and asks them.
"""
