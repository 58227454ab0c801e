"""The notifier.

owns: nothing yet
emits: nothing
listens to: nothing
answers: repeat

A room of its own: `streams.py`, facts as they happen, for clients that follow them over HTTP. Whoever follows keeps
the place in the stream; no replica remembers a client.
"""
