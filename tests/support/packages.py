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


def ordinary(size_bytes: int) -> str:
    """A pipeline of as many templates as compilers write into about this many bytes, and a task for each."""
    count = size_bytes // 580
    tasks = "".join(
        f"      - name: step-{number}\n"
        f"        template: step-{number}\n"
        f"        arguments:\n"
        f"          parameters:\n"
        f"          - {{name: text, value: 'hello {number}'}}\n"
        for number in range(count)
    )
    templates = "".join(
        f"  - name: step-{number}\n"
        f"    container:\n"
        f"      args: [--text, '{{{{inputs.parameters.text}}}}', --result, /tmp/outputs/result/data]\n"
        f"      command:\n"
        f"      - sh\n"
        f"      - -c\n"
        f'      - mkdir -p "$(dirname "$3")" && echo "$1" > "$3"\n'
        f"      image: python:3.7\n"
        f"    inputs:\n"
        f"      parameters:\n"
        f"      - {{name: text}}\n"
        f"    outputs:\n"
        f"      parameters:\n"
        f"      - name: step-{number}-result\n"
        f"        valueFrom: {{path: /tmp/outputs/result/data}}\n"
        f"    metadata:\n"
        f"      labels:\n"
        f"        pipelines.kubeflow.org/kfp_sdk_version: 1.8.22\n"
        f"        pipelines.kubeflow.org/pipeline-sdk-type: kfp\n"
        for number in range(count)
    )
    head = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {generateName: large-}\n"
    return f"{head}spec:\n  entrypoint: main\n  templates:\n  - name: main\n    dag:\n      tasks:\n{tasks}{templates}"


def padded_to(size_bytes: int) -> bytes:
    """A good pipeline of exactly this size."""
    text = PIPELINE.encode()
    line = b"# " + b"x" * 97 + b"\n"
    missing = size_bytes - len(text)
    padding = line * (missing // len(line))
    return text + padding + b"#" * (missing - len(padding))
