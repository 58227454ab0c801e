"""What a person may say about a stack on this machine: where it answers and where it keeps things."""

from __future__ import annotations

import msgspec

from shared.settings import Port


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from HEADRACE_… variables by `shared.settings.load`."""

    port: Port = 8888
    """TCP port of the gateway on the loopback interface. 8888 is where clients of the API expect a server."""
    data_dir: str = ".headrace"
    """Folder for everything that is kept; created on first use."""
