"""Packages of pipelines: good ones, and the kinds of bad ones that clients and attackers bring."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

PIPELINE = """\
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata: {generateName: hello-}
spec:
  entrypoint: main
  arguments:
    parameters:
    - {name: greeting, value: hello}
    - {name: count, value: 3}
    - {name: whom}
  templates:
  - name: main
    container: {image: busybox, command: [echo, "{{workflow.parameters.greeting}}"]}
"""

CORPUS = Path(__file__).parent.parent / "pipelines"


def tarball(*entries: tuple[str, bytes], links: tuple[tuple[str, str], ...] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def tarball_of_zeros(size_bytes: int) -> bytes:
    """A tarball whose first entry unpacks to `size_bytes`, made without ever holding them."""
    out = io.BytesIO()
    chunk = bytes(1024 * 1024)
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        info = tarfile.TarInfo("zeros.bin")
        info.size = size_bytes
        packed.write(info.tobuf())
        for _ in range(size_bytes // len(chunk)):
            packed.write(chunk)
    return out.getvalue()


def alias_bomb(levels: int = 9) -> str:
    """A document that says ten to the power of `levels` times `x`."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return PIPELINE + "\n".join(lines) + "\n"


def merge_bomb(levels: int = 12) -> str:
    """Like `alias_bomb`, by merge keys, which expand while the document is still being read."""
    lines = ["m0: &m0 {k: v}"]
    for level in range(1, levels):
        aliases = ", ".join([f"*m{level - 1}"] * 10)
        lines.append(f"m{level}: &m{level} {{<<: [{aliases}]}}")
    return PIPELINE + "\n".join(lines) + "\n"


def padded_to(size_bytes: int) -> bytes:
    """A good pipeline of exactly this size."""
    text = PIPELINE.encode()
    line = b"# " + b"x" * 97 + b"\n"
    missing = size_bytes - len(text)
    padding = line * (missing // len(line))
    return text + padding + b"#" * (missing - len(padding))
