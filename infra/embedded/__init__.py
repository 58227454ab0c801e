"""The whole of Headrace on one machine: backing servers from wheels, and the processes that use them.

`process` starts and stops one child; `postgres`, `nats` and `object_store` each know one server; `supervisor` keeps a
table of processes alive; `stack` says which processes Headrace consists of. Nothing here knows a rule of the product.
"""
