"""The step runner: the small process that is the parent of every step, and outlives its controller.

settings.py · protocol.py (what is said on its socket) · journal.py (what it keeps) · server.py · client.py
"""
