"""The gateway: the one HTTP door for clients.

Owns      nothing that lasts: no table, no file, no business rule.
Does      finds the owning service of a path (`table`), streams request and answer between client and service
          (`proxy`), names every request, answers health and its own figures (`app`).
Emits     nothing.      Listens to  nothing.      Answers  nothing on the bus.

It imports no service. What it must know about one is in its settings: where the replicas are.
"""
