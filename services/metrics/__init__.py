"""The metrics service.

owns: the metrics that runs reported; of several reports of one metric the first wins
emits: reported
listens to: run: created, deleted
answers: report, applied, dead, dead-letter, retry-dead, discard-dead, repeat
"""
