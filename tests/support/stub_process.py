"""Stands in for any process of the stack: `python stub_process.py NAME`.

Answers every request on HEADRACE_LISTEN_PORT with 200 and the upstreams it was told, and as the step runner whoever
asks it about itself; ends on SIGTERM, and appends what happens to it to HEADRACE_TEST_JOURNAL, one line
`NAME event pid` each.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys


async def main(name: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    write("started", name)
    servers = []
    if port := os.environ.get("HEADRACE_LISTEN_PORT"):
        servers.append(await asyncio.start_server(answer, "127.0.0.1", int(port)))
    if name == "step-runner":
        servers.append(await asyncio.start_unix_server(tell_of_itself, os.environ["HEADRACE_STEP_RUNNER_SOCKET"]))
    await stop.wait()
    for server in servers:
        server.close()
    write("stopped", name)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    upstreams = sorted(f"{name}={value}" for name, value in os.environ.items() if name.endswith("_UPSTREAMS"))
    body = "\n".join(upstreams)
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    await writer.drain()
    writer.close()


async def tell_of_itself(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b'{"type":"info","runtime":"bubblewrap","weaker":null,"steps_dir":"","python":"","is_watched":true}\n')
    await writer.drain()
    writer.close()


def write(event: str, name: str) -> None:
    with open(os.environ["HEADRACE_TEST_JOURNAL"], "a") as journal:
        journal.write(f"{name} {event} {os.getpid()}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
