"""What a curious step does: looks everywhere it can for secrets it knows by their digests, and for a way to the runner.

    python3 hunt.py DIGESTS SINCE DATA_DIR

DIGESTS are SHA-256 of secrets, separated by commas; SINCE is when they were made: what was not changed after
that cannot hold one. Prints one line of JSON: what was found where, and how much was looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator

MOST_BYTES = 256 * 1024 * 1024
MOST_BYTES_OF_ONE = 16 * 1024 * 1024
TOKEN = re.compile(rb"(?=([0-9a-f]{48}))")
NOT_FILES = ("/proc", "/sys", "/dev")
OF_PROCESSES = ("environ", "cmdline", "mountinfo", "maps")


def main(digests: str, since: str, data_dir: str) -> None:
    wanted = set(digests.split(","))
    found: dict[str, list[str]] = {}
    looked_at = {"files": 0, "processes": 0, "bytes": 0}
    # Files come last: where a machine is being installed beside us, there is no end to what has just changed.
    for path in (*below(data_dir), *of_processes(), *files_since(float(since))):
        text = read(path, min(MOST_BYTES_OF_ONE, MOST_BYTES - looked_at["bytes"]))
        looked_at["processes" if path.startswith("/proc/") else "files"] += 1
        looked_at["bytes"] += len(text)
        for token in set(TOKEN.findall(text)):
            digest = hashlib.sha256(token).hexdigest()
            if digest in wanted:
                found.setdefault(digest, []).append(path)
    ways = [way for way in ways_to_runner(data_dir) if opens(way)]
    print(json.dumps({"found": found, "ways": ways, "listing": list(below(data_dir)), **looked_at}))


def files_since(since: float) -> Iterator[str]:
    directories = ["/", "/tmp"]  # The last one first: what we were given lies there.
    while directories:
        try:
            entries = list(os.scandir(directories.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.path not in NOT_FILES:
                    directories.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                seen = entry.stat(follow_symlinks=False)
                if max(seen.st_mtime, seen.st_ctime) >= since:
                    yield entry.path


def below(directory: str) -> Iterator[str]:
    for root, _, files in os.walk(directory):
        yield from (os.path.join(root, name) for name in files)


def of_processes() -> Iterator[str]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        yield from (f"/proc/{pid}/{name}" for name in OF_PROCESSES)


def read(path: str, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError:
        return b""


def ways_to_runner(data_dir: str) -> Iterator[str]:
    """Where its socket is, where other processes' roots might show it, and what the kernel lists of this network."""
    path = f"{data_dir}/run/steps.sock"
    yield from (path, f"/proc/1/root{path}", f"/proc/self/root{path}", f"/proc/1/cwd{path}", "\0" + path)
    with open("/proc/net/unix") as listed:
        for line in listed:
            *_, name = line.split()
            if name.startswith(("/", "@")) and ("headrace" in name or data_dir in name):
                yield name.replace("@", "\0", 1) if name.startswith("@") else name


def opens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except OSError:
            return False
    return True


main(*sys.argv[1:])
