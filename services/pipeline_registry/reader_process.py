"""The process that reads packages: unpacks and parses untrusted bytes under limits of memory and time.

Run as `python -m services.pipeline_registry.reader_process <memory bytes> <seconds>`. It takes requests on standard
input and answers on standard output, one at a time, until its input ends. It holds no connection and no secret, and
whoever started it ends it when an answer is late. Frames are a length of four bytes and MessagePack.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import sys
from typing import Any, BinaryIO, Final

import msgspec

from shared.errors import Refusal, to_document

from .domain import Package

LENGTH_BYTES: Final = 4


class Request(msgspec.Struct, frozen=True, kw_only=True):
    file_name: str
    pipeline_name: str
    largest_bytes: int
    """Of the package, and of the pipeline in it."""
    data: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exactly one of the three."""

    package: Package | None = None
    unreadable: dict[str, Any] | None = None
    """The refusal of the bytes, before anything was understood."""
    invalid: dict[str, Any] | None = None
    """The refusal of what they say."""


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def _answer(request: Request) -> Answer:
    # Here and not above: the service imports this module for the frames, and needs no YAML and no archives.
    from .packages import read_package
    from .templates import read_template

    try:
        text = read_package(request.file_name, request.data, request.largest_bytes)
    except Refusal as refusal:
        return Answer(unreadable=to_document(refusal))
    try:
        template = read_template(text, request.pipeline_name)
    except Refusal as refusal:
        return Answer(invalid=to_document(refusal))
    return Answer(package=Package(text=text, manifest=template.manifest, parameters=template.parameters))


def _serve(requests: BinaryIO, answers: BinaryIO, seconds: float) -> None:
    decode = msgspec.msgpack.Decoder(Request).decode
    while length := requests.read(LENGTH_BYTES):
        # The alarm ends this process even inside of C code, and when nobody is left to watch it.
        signal.alarm(math.ceil(seconds) + 1)
        answer = _answer(decode(requests.read(int.from_bytes(length, "big"))))
        signal.alarm(0)
        answers.write(framed(msgspec.msgpack.encode(answer)))
        answers.flush()
        gc.collect()


def main() -> int:
    memory_bytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # Requests are answered first.
    gc.disable()  # Documents hold no cycles until they are dropped, and walking a large one again and again takes long.
    try:
        _serve(sys.stdin.buffer, sys.stdout.buffer, seconds)
    except (MemoryError, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
