"""The fake server as tests hold it: started, stopped, and told what shall go wrong."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.kubernetes.faults import ALL_METHODS, Faults, Refused, Requests, Trouble
from tests.support.kubernetes.objects import Objects
from tests.support.kubernetes.pod_logs import PodLogs
from tests.support.kubernetes.resources import DEFINITIONS, NAMESPACES, WORKFLOW_DEFINITION
from tests.support.kubernetes.routes import Routes
from tests.support.kubernetes.store import Store

_LOOPBACK = "127.0.0.1"
_MOST_BYTES = 1_572_864
"""What etcd takes at once, by default."""
_MOST_CHANGES = 100_000


class FakeKubernetes:
    """An API server in this process, on loopback, over HTTP. What it holds outlives its stops, as etcd's data would."""

    def __init__(
        self, *, namespaces: Sequence[str] = ("default", "kube-system", "kubeflow"), most_changes: int = _MOST_CHANGES
    ) -> None:
        self._faults = Faults()
        self._store = Store(most_changes=most_changes)
        self._objects = Objects(self._store, most_bytes=_MOST_BYTES)
        self.requests = Requests()
        self._routes = Routes(self._objects, PodLogs(self._store), self._faults, self.requests)
        self._namespaces = namespaces
        self._runner: web.AppRunner | None = None
        # Bound and never listened on: it keeps the port while the server is down.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, **how: Any) -> AsyncIterator[FakeKubernetes]:
        fake = cls(**how)
        fake.install()
        await fake.start()
        try:
            yield fake
        finally:
            await fake.stop()
            fake._reserved.close()

    def install(self) -> None:
        """What a cluster has before anybody comes: namespaces, and the definition of workflows."""
        for name in self._namespaces:
            self._objects.create(NAMESPACES, "", {"metadata": {"name": name}})
        self._objects.create(DEFINITIONS, "", WORKFLOW_DEFINITION)

    @property
    def url(self) -> str:
        return f"http://{_LOOPBACK}:{self.port}"

    @property
    def token(self) -> str:
        return self._faults.token

    @property
    def controller_token(self) -> str:
        """For whoever plays a part of the cluster: it does not expire, and what is made to go wrong spares it, but
        for a stop of the server."""
        return self._faults.controller_token

    def kubeconfig(self, folder: Path, *, namespace: str = "default", token_file: bool = False) -> Path:
        """A file by which clients find the server. With `token_file` the token lies in `folder / "token"`, where it
        may be replaced."""
        user: dict[str, Any] = {"token": self.token}
        if token_file:
            (folder / "token").write_text(self.token)
            user = {"tokenFile": str(folder / "token")}
        context = {"cluster": "fake", "user": "fake", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": user}],
            "contexts": [{"name": "fake", "context": context}],
        }
        path = folder / "kubeconfig"
        # JSON is YAML.
        path.write_text(json.dumps(config, indent=2))
        return path

    # What can go wrong

    async def start(self) -> None:
        assert self._runner is None, "it is running"
        # A cancelled handler of a watch is what its end looks like.
        self._runner = web.AppRunner(
            self._routes.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.01
        )
        await self._runner.setup()
        await web.SockSite(self._runner, _bound(self.port)).start()

    async def stop(self) -> None:
        """At once, with every connection. `start` goes on with the same data, on the same port."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        if runner.server is not None:
            for connection in list(runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
        await runner.cleanup()

    def cut_watches(self) -> None:
        """End every watch there is, as a network does: without a word."""
        self._routes.cut_watches()

    def compact(self, *, answer_with_status: bool = False) -> None:
        """Every resourceVersion that anybody has heard of is 410 from now on: in a watch by an ERROR event or, where
        told so, by the status of the answer. Watches that are open go on."""
        self._faults.expires_with_status = answer_with_status
        self._store.compact()

    def refuse(self, status: int, times: int, *, methods: Collection[str] = ALL_METHODS, path: str = "") -> None:
        """Answer the next requests with this status, and do nothing. `path`: a part of the paths that are meant."""
        self._faults.refused.append(Refused(left=times, methods=methods, path=path, status=status))

    def relent(self) -> None:
        """Refuse nothing any more, and lose no answers."""
        self._faults.refused.clear()
        self._faults.lost.clear()

    def lose_answers(self, times: int, *, methods: Collection[str] = ALL_METHODS, path: str = "") -> None:
        """Do what the next requests ask for, and break the connection instead of saying so."""
        self._faults.lost.append(Trouble(left=times, methods=methods, path=path))

    def delay(self, seconds: float) -> None:
        """Let every request wait so long before anything is done."""
        self._faults.delay_seconds = seconds

    def expire_token(self) -> None:
        self._faults.expire_token()

    def rotate_token(self) -> str:
        """The new token; the old one is refused."""
        return self._faults.rotate_token()

    def deny(self, denied: Callable[[dict[str, Any]], bool]) -> None:
        """What access reviews say no to, by the attributes of the resource. Nothing else is refused for it."""
        self._routes.denied = denied

    @property
    def most_bytes(self) -> int:
        """Of one object."""
        return self._objects.most_bytes

    @most_bytes.setter
    def most_bytes(self, most: int) -> None:
        self._objects.most_bytes = most

    @property
    def bookmark_seconds(self) -> float:
        """Between the bookmarks of a watch that wants some."""
        return self._routes.bookmark_seconds

    @bookmark_seconds.setter
    def bookmark_seconds(self, seconds: float) -> None:
        self._routes.bookmark_seconds = seconds


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((_LOOPBACK, port))
    return bound
