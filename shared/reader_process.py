"""The process that reads what others wrote: does one piece of work at a time, under limits of memory and time.

Run as `python -m shared.reader_process <module>:<function> <memory bytes> <processor seconds> <seconds>`. It takes
requests on standard input and answers on standard output until its input ends; the function makes an answer of a
request. Frames are a length of four bytes and what it counts. The process holds no connection and no secret.

Whoever started it ends it when an answer is late. What is over its limits ends by itself: for want of memory with the
status 1, at the end of its processor time by the signal `OUT_OF_PROCESSOR_TIME`.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO, Final

LENGTH_BYTES: Final = 4
OUT_OF_PROCESSOR_TIME: Final = signal.SIGPROF


def main() -> int:
    work, memory_bytes, cpu_seconds, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # Requests are answered first.
    gc.disable()  # Documents hold no cycles until they are dropped, and walking a large one again and again takes long.
    try:
        _serve(_imported(work), sys.stdin.buffer, sys.stdout.buffer, cpu_seconds, seconds)
    except (MemoryError, BrokenPipeError):
        return 1
    return 0


def _imported(work: str) -> Callable[[bytes], bytes]:
    module, _, function = work.partition(":")
    found: Callable[[bytes], bytes] = getattr(importlib.import_module(module), function)
    return found


def _serve(
    work: Callable[[bytes], bytes], requests: BinaryIO, answers: BinaryIO, cpu_seconds: float, seconds: float
) -> None:
    while length := requests.read(LENGTH_BYTES):
        # Nobody handles these signals, so that they end this process even inside of C code, and the second one even
        # when nobody is left to watch it.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.alarm(math.ceil(seconds) + 1)
        answer = work(requests.read(int.from_bytes(length, "big")))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        answers.write(len(answer).to_bytes(LENGTH_BYTES, "big"))
        answers.write(answer)
        answers.flush()
        del answer
        gc.collect()


if __name__ == "__main__":
    sys.exit(main())
