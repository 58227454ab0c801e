"""What a person may say about a stack on this machine: where it answers, where it keeps things, how many work in it."""

from __future__ import annotations

import msgspec

from infra.embedded.replicas import counted
from shared.settings import Port


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from HEADRACE_… variables by `shared.settings.load`."""

    port: Port = 8888
    """TCP port of the gateway on the loopback interface. 8888 is where clients of the API expect a server."""
    data_dir: str = ".headrace"
    """Folder for everything that is kept; created on first use."""
    replicas: tuple[str, ...] = ()
    """How many processes of a service share its work: `NAME=COUNT` each, comma separated, or a COUNT for all that are
    not named; one, unless said."""

    def __post_init__(self) -> None:
        counted(self.replicas)

    @property
    def replica_counts(self) -> dict[str, int]:
        return counted(self.replicas)
