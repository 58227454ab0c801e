"""The notifier.

owns: webhooks, their deliveries
emits: nothing
listens to: everything
answers: applied, dead, dead-letter, retry-dead, discard-dead, repeat

Rooms of its own: `streams.py`, facts as they happen, for clients that follow them over HTTP. Whoever follows keeps
the place in the stream; no replica remembers a client. `telling.py`, a fact as those outside are told of it.
`deliveries.py`, the verbs of events and of time: what a webhook wants is written down, and sent until it is taken;
`sending.py`, one attempt at that. `dead_letters.py`, what subscribers gave up on, who are asked for it.

Of what became of deliveries it tells nobody by facts: a webhook that wants everything would be sent its own.
"""
