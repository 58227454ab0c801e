"""The embedded NATS server: a store folder, a port on the loopback interface, users with passwords.

Streams are none of its business: `admin` declares them once it runs. Who may do what is `infra.nats.permissions`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.embedded.failure import StartFailure
from infra.embedded.ports import LOOPBACK
from infra.embedded.process import Command, Process
from infra.embedded.readiness import until_ready
from infra.nats.permissions import USER_NAMES, server_config


class NatsServer:
    def __init__(
        self,
        *,
        data_dir: Path,
        port: int,
        passwords: Mapping[str, str],
        program: Path,
        log: Path | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        """`passwords` has one for each user of `infra.nats.permissions`, of letters and digits.

        Clients take the password out of a URL as it stands there, escapes and all.
        """
        self.port = port
        self._passwords = passwords
        self._program = program
        self._data_dir = data_dir.absolute()
        self._log = log or self._data_dir / "nats.log"
        self._keep_open = keep_open
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        if self._process is None:
            raise StartFailure("NATS was not started")
        return self._process

    def url(self, user: str) -> str:
        return f"nats://{user}:{self._passwords[user]}@{LOOPBACK}:{self.port}"

    def urls(self) -> dict[str, str]:
        return {user: self.url(user) for user in USER_NAMES}

    async def start(self, *, within_seconds: float = 15) -> None:
        """Serve the store; returns when JetStream has recovered it and clients are let in."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        command = Command(
            argv=[str(self._program), "--config", str(self._write_config())],
            environment={"PATH": os.environ.get("PATH", os.defpath), "GOMEMLIMIT": "128MiB"},
            log=self._log,
            keep_open=self._keep_open,
            stop_signal=signal.SIGTERM,
            orphan_signal=signal.SIGTERM,
        )
        self._process = Process.spawn(command)
        await until_ready("NATS", self._process, self._greets, within_seconds=within_seconds)

    async def stop(self, *, within_seconds: float = 5) -> None:
        await self.process.stop(within_seconds=within_seconds)

    async def exited(self) -> int:
        return await self.process.exited()

    def last_words(self) -> str:
        return self.process.last_words()

    def _write_config(self) -> Path:
        file = self._data_dir / "nats.conf"
        text = server_config(
            host=LOOPBACK, port=self.port, store_dir=str(self._data_dir / "store"), passwords=self._passwords
        )
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as config:
            config.write(text)
        return file

    async def _greets(self) -> bool:
        """The first line a server says to any client holds what it offers."""
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        try:
            greeting = await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()
        return greeting.startswith(b"INFO ") and json.loads(greeting[5:]).get("jetstream") is True
