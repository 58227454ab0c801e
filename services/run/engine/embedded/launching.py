"""Steps of v2-compatible pipelines: what the engine does for the launcher that such a step starts (specification §12).

The step itself starts `runtime/launcher.py`, which is put where an init container would have copied the original. That
program knows no object store. So before the step the engine brings the data that the records of its input artifacts
name, and after it fetches those of its outputs, as if the template had declared them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from services.run.engine.embedded.orders import PlacedArtifact, StepKind, StepOrder, WantedArtifact
from services.run.engine.embedded.runtime import launcher
from services.run.engine.embedded.specs import CannotPrepare

PATH = "/kfp-launcher/launch"
_COPIES = "kfp-launcher"
"""The init container that would bring the original."""
_PLAIN: Mapping[str, Any] = {"none": {}}
_LARGEST_RECORD_BYTES = 1024 * 1024


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """Where artifacts may go."""

    bucket: str
    default_root: str

    def key_of(self, uri: str) -> str | None:
        """None for what lies elsewhere."""
        for scheme in ("minio", "s3"):
            if uri.startswith(f"{scheme}://{self.bucket}/"):
                return uri.removeprefix(f"{scheme}://{self.bucket}/")
        return None


def is_launched(order: StepOrder) -> bool:
    return order.kind is StepKind.CONTAINER and order.main.command[:1] == (PATH,)


def launched(order: StepOrder, command: Sequence[str], store: Store) -> StepOrder:
    """The order as it is carried out: with our launcher, and with the data of its outputs among what is fetched.

    `command`: of the main process, every `$(NAME)` expanded. Raises CannotPrepare.
    """
    launch = _parsed(command[1:])
    root = f"{_root(launch, store)}/{_folder(launch, order)}"
    told = ("--" + launcher.ROOT_FLAG, root)
    words = (*order.main.command, *order.main.args)
    first = words.index("--")
    main = msgspec.structs.replace(order.main, command=(*words[:first], *told, *words[first:]), args=())
    program = PlacedArtifact(name=PATH, path=PATH, raw=_program(), mode=0o755)
    return msgspec.structs.replace(
        order,
        main=main,
        init=tuple(each for each in order.init if each.name != _COPIES),
        input_artifacts=(*order.input_artifacts, program),
        output_artifacts=(*order.output_artifacts, *_data(launch, root, store)),
    )


def brought(order: StepOrder, command: Sequence[str], staged: Mapping[str, Path], store: Store) -> list[PlacedArtifact]:
    """The data of the input artifacts, as their records say. Blocks on the disk. Raises CannotPrepare.

    `staged`: the records themselves, by the names of the order's artifacts.
    """
    found = []
    names = {each.path: each.name for each in order.input_artifacts}
    for name, described in _parsed(command[1:]).described("inputArtifacts").items():
        record = staged.get(names.get(described.get("metadataPath", ""), ""))
        uri = "" if record is None else _uri_in(record, name)
        path, key = launcher.local_path(uri), store.key_of(uri)
        if path is not None and key is not None:
            found.append(PlacedArtifact(name=uri, path=path, s3={"key": key}, archive=_PLAIN))
    return found


def _parsed(arguments: Sequence[str]) -> launcher.Launch:
    try:
        return launcher.parse(arguments)
    except launcher.Refused as refused:
        raise CannotPrepare(str(refused)) from refused


def _root(launch: launcher.Launch, store: Store) -> str:
    """What is asked for, where that is in our store."""
    wanted = launch.flags.get("pipeline_root", "").rstrip("/")
    return wanted if store.key_of(wanted + "/") is not None else store.default_root.rstrip("/")


def _folder(launch: launcher.Launch, order: StepOrder) -> str:
    """Of a loop's items, which share their task's name, each has its own."""
    flags = launch.flags
    folder = f"{flags.get('pipeline_name', '')}/{flags.get('run_id', '')}/{flags.get('task_name', '')}"
    return f"{folder}/{order.node_id}" if "(" in order.node_name else folder


def _data(launch: launcher.Launch, root: str, store: Store) -> Iterator[WantedArtifact]:
    """A step may leave none."""
    for name in launch.described("outputArtifacts"):
        uri = f"{root}/{name}"
        path, key = launcher.local_path(uri), store.key_of(uri)
        if path is not None and key is not None:
            yield WantedArtifact(name=uri, path=path, optional=True, archive=_PLAIN, s3={"key": key}, owns_key=True)


def _uri_in(record: Path, name: str) -> str:
    try:
        with record.open("rb") as file:
            said = json.loads(file.read(_LARGEST_RECORD_BYTES))
    except (OSError, ValueError) as error:
        raise CannotPrepare(f"the record of artifact {name} cannot be read: {error}") from error
    uri = said.get("uri") if isinstance(said, dict) else None
    return uri if isinstance(uri, str) else ""


@cache
def _program() -> str:
    return Path(launcher.__file__).read_text()
