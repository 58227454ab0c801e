"""The metrics service.

owns: the metrics that runs reported; of several reports of one metric the first wins
emits: `kfp.event.metrics.` reported
listens to: run created, deleted
answers: `kfp.ask.metrics.` report, applied
"""
