"""What Headrace costs, measured: `python -m tests.bench`.

Every figure stands beside a floor taken in the same run on the same machine: the least that any program would pay for
the same thing. Repetitions of floor and figure take turns, so that a busy moment hits both; ratios can be compared
between machines, figures cannot.

    figures.py    readings, floors, budgets, and the table
    load.py       requests at a rate (latency) or by connections (throughput), bounded in count and time
    house.py      a stack to measure, with what a benchmark has to know of it
    processes.py  the process table: who belongs to a stack, and how much memory is whose
    the rest      one benchmark a module, listed in `__main__.py`
"""
