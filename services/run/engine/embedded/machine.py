"""What this machine has for steps that were written for a cluster, as far as its operator says (specification §9, §17).

Pure. Who refuses a run because of it and who starts its steps ask the same.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

Entrypoints: TypeAlias = dict[str, Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]]
"""Image → the command that a container of it would run."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    runs_images: bool = False
    """Whether steps run in containers for certain, so that their images are there to be asked."""
    entrypoints: Entrypoints = msgspec.field(default_factory=dict)
    host_paths: tuple[str, ...] = ()
    """Directories of the host that steps may mount, with all that is in them."""

    def entrypoint(self, image: str) -> tuple[str, ...] | None:
        """Of an image in exactly these words, else of one without its tag and its digest. None: nobody says."""
        return self.entrypoints.get(image) or self.entrypoints.get(_name_of(image))

    def host_directory(self, path: str) -> tuple[str, str] | None:
        """A directory that may be mounted, and the way from there to `path`. None: it may not."""
        wanted = _parts(path)
        if not path.startswith("/") or ".." in wanted:
            return None
        for directory in self.host_paths:
            start = _parts(directory)
            if wanted[: len(start)] == start:
                return directory, "/".join(wanted[len(start) :])
        return None


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _name_of(image: str) -> str:
    name, _, _ = image.partition("@")
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"
