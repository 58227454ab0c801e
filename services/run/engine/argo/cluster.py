"""Kubernetes' API, as far as workflows and their pods need it; the only place that knows it.

How one comes in (a pod's service account, or a kubeconfig) is kubernetes_asyncio's to know. It is loaded with the first
request: with all its models it takes seconds, and more memory than a whole service. Bodies pass through as bytes.

    Unavailable         no answer, or none for now: the same call may pass later
    ├── Busy            the server asks for a pause
    ├── Expired         410  what happened since then is not known any more: list anew
    ├── Forbidden       we may not; nothing but an operator changes that
    └── NotInstalled    404  it knows no workflows, or does not know yet what it knows
    Missing             404  no such object
    Conflict            409  somebody else has changed it meanwhile
    └── AlreadyExists   409  the name is taken
    TooLarge            413  no object may be as large as that
    Rejected            422  or any other 4xx: the server will never take it
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from tenacity import RetryCallState, wait_random_exponential

from shared.errors import Unavailable

if TYPE_CHECKING:
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.client.rest import RESTClientObject

_GROUP: Final = "argoproj.io"
_VERSION: Final = "v1alpha1"
_SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_JSON: Final = "application/json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_ONLY_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_ONLY_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_CONNECT_SECONDS: Final = 10
_ANSWER_SECONDS: Final = 30
_PAGE_SECONDS: Final = 60
_WATCH_SECONDS: Final = 120
"""After so long the server ends a watch, and it is resumed: a connection that died silently is found out by then."""
_TOKEN_SECONDS: Final = 60
"""Tokens are replaced in their files long before they expire."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What one must be allowed to do with a resource."""

    group: str
    resource: str
    verbs: tuple[str, ...]


RULES: Final = (
    Rule(group=_GROUP, resource="workflows", verbs=("create", "delete", "get", "list", "patch", "update", "watch")),
    Rule(group="", resource="pods", verbs=("delete", "list")),
    Rule(group="", resource="pods/log", verbs=("get",)),
)
"""All that the engine needs, in the namespaces of its workflows, or in all."""


class Busy(Unavailable):
    def __init__(self, message: str, *, cause: str | None = None, after_seconds: float = 0.0) -> None:
        super().__init__(message, cause=cause)
        self.after_seconds = after_seconds


def pauses(*, multiplier: float, most_seconds: float) -> Callable[[RetryCallState], float]:
    """Between tries: longer from failure to failure, and as long as the server asks for."""
    growing = wait_random_exponential(multiplier=multiplier, max=most_seconds)

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return max(growing(state), error.after_seconds if isinstance(error, Busy) else 0.0)

    return pause


class Expired(Unavailable):
    pass


class Forbidden(Unavailable):
    pass


class NotInstalled(Unavailable):
    pass


class Missing(Exception):
    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
        """Which resource is missing."""


class Conflict(Exception):
    pass


class AlreadyExists(Conflict):
    pass


class TooLarge(Exception):
    pass


class Rejected(Exception):
    pass


class Page(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[msgspec.Raw, ...]
    resource_version: str
    next: str
    """Where the next page goes on; empty after the last."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    object: msgspec.Raw


class Cluster:
    """One API server. Connects with the first request, and again after `close`."""

    def __init__(self, *, kubeconfig: str = "", context: str = "") -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    @classmethod
    def from_settings(cls, *, kubeconfig: str = "", context: str = "") -> Self:
        """`kubeconfig`: its path, or several as in `KUBECONFIG`. Empty: the pod's service account where there is one,
        else `KUBECONFIG`, else ~/.kube/config. `context`: of the kubeconfig; empty: the current one."""
        return cls(kubeconfig=kubeconfig, context=context)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # Workflows

    async def create(self, namespace: str, body: bytes) -> None:
        await self._read("POST", _workflows(namespace), body=body)

    async def get(self, namespace: str, name: str) -> bytes:
        return await self._read("GET", _workflows(namespace, name))

    async def get_metadata(self, namespace: str, name: str) -> bytes:
        return await self._read("GET", _workflows(namespace, name), accept=_ONLY_METADATA)

    async def replace(self, namespace: str, name: str, body: bytes) -> None:
        """Raises Conflict where the body's resourceVersion is not the latest."""
        await self._read("PUT", _workflows(namespace, name), body=body)

    async def patch(self, namespace: str, name: str, changes: Mapping[str, Any]) -> None:
        """Raises Conflict where a resourceVersion is among the changes and is not the latest."""
        body = msgspec.json.encode(changes)
        await self._read("PATCH", _workflows(namespace, name), body=body, kind=_MERGE_PATCH, accept=_ONLY_METADATA)

    async def delete(self, namespace: str, name: str, *, resource_version: str = "") -> None:
        """With its pods, which follow. Raises Conflict where the version is said and is not the latest."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if resource_version:
            options["preconditions"] = {"resourceVersion": resource_version}
        await self._read("DELETE", _workflows(namespace, name), body=msgspec.json.encode(options))

    def list_workflows(
        self, namespace: str, *, labels: str = "", fields: str = "", limit: int = 100, only_metadata: bool = False
    ) -> AsyncGenerator[Page, None]:
        """Page by page, as they were at the first. Raises Expired where that is too long ago. No namespace: all."""
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(limit)}
        return self._pages(_workflows(namespace), query, _ONLY_METADATA_LIST if only_metadata else _JSON)

    async def watch_workflows(
        self, namespace: str, *, labels: str, resource_version: str
    ) -> AsyncGenerator[Event, None]:
        """What has happened since that version, until the server ends it. Raises Expired, Unavailable."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": labels,
            "resourceVersion": resource_version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=_WATCH_SECONDS + _CONNECT_SECONDS)
        async with (
            self._answer("GET", _workflows(namespace), query=query, timeout=timeout) as answer,
            contextlib.aclosing(_lines(answer.content)) as lines,
        ):
            async for line in lines:
                event = _event_of(line)
                if event.type == "ERROR":
                    status = _status_of(bytes(event.object))
                    raise _refusal(status.code, status, {})
                yield event

    # Pods

    async def list_pods(self, namespace: str, *, labels: str) -> list[str]:
        """The names of all."""
        pages = self._pages(_pods(namespace), {"labelSelector": labels, "limit": "500"}, _ONLY_METADATA_LIST)
        return [_named(item) async for page in pages for item in page.items]

    async def delete_pod(self, namespace: str, name: str) -> None:
        """Harmless when absent."""
        with contextlib.suppress(Missing):
            await self._read("DELETE", _pods(namespace, name))

    async def log(self, namespace: str, pod: str, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """What the container `main` wrote. Raises Missing, Rejected (it has not begun yet) and Unavailable."""
        query = {"container": "main", "follow": "true" if follow else "false"}
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=None if follow else _ANSWER_SECONDS)
        async with self._answer(
            "GET", f"{_pods(namespace, pod)}/log", query=query, accept="*/*", timeout=timeout
        ) as answer:
            async for chunk in answer.content.iter_any():
                yield chunk

    # The cluster itself

    async def version(self) -> str:
        return str(msgspec.json.decode(await self._read("GET", "/version")).get("gitVersion", "unknown"))

    async def check(self, namespaces: tuple[str, ...]) -> None:
        """Raises Unavailable, with all that is missing. No namespaces: all of them."""
        await self.version()
        with contextlib.suppress(Forbidden):  # What else is forbidden is worth saying in the same breath.
            await self._list(_workflows(namespaces[0] if namespaces else ""), {"limit": "1"}, _ONLY_METADATA_LIST)
        await self._check_status_is_written()
        denied = [
            f"{verb} {rule.resource}" + (f" in namespace {namespace}" if namespace else "")
            for namespace in namespaces or ("",)
            for rule in RULES
            for verb in rule.verbs
            if not await self._may(namespace, rule, verb)
        ]
        if denied:
            raise Unavailable(f"The run controller's account may not {', '.join(denied)}.")

    async def _check_status_is_written(self) -> None:
        """A retried run is created with what it has done already; a server that drops it would have all done again."""
        try:
            known = msgspec.json.decode(await self._read("GET", f"/apis/{_GROUP}/{_VERSION}"))
        except (NotInstalled, Forbidden):
            return
        if any(each.get("name") == "workflows/status" for each in known.get("resources") or ()):
            raise Unavailable(
                "The cluster's definition of workflows has a status subresource, which Argo's own has not: install the "
                "definition that came with Argo."
            )

    async def _may(self, namespace: str, rule: Rule, verb: str) -> bool:
        resource, _, subresource = rule.resource.partition("/")
        asked = {"group": rule.group, "resource": resource, "subresource": subresource, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked | ({"namespace": namespace} if namespace else {})},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = msgspec.json.decode(await self._read("POST", path, body=msgspec.json.encode(review)))
        return bool((answer.get("status") or {}).get("allowed"))

    # Requests

    async def _pages(self, path: str, query: Mapping[str, str], accept: str) -> AsyncGenerator[Page, None]:
        at = ""
        while True:
            page = await self._list(path, {**query, "continue": at}, accept)
            yield page
            if not page.next:
                return
            at = page.next

    async def _list(self, path: str, query: Mapping[str, str], accept: str) -> Page:
        given = {key: value for key, value in query.items() if value}
        text = await self._read("GET", path, query=given, accept=accept, seconds=_PAGE_SECONDS)
        listed = _list_of(text)
        return Page(
            items=listed.items or (),
            resource_version=listed.metadata.resource_version,
            next=listed.metadata.continue_,
        )

    async def _read(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        kind: str = _JSON,
        accept: str = _JSON,
        seconds: float = _ANSWER_SECONDS,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        async with self._answer(
            method, path, query=query, body=body, kind=kind, accept=accept, timeout=timeout
        ) as answer:
            return await answer.read()

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        kind: str = _JSON,
        accept: str = _JSON,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        connection = await self._connected()
        headers = {"Accept": accept} | ({"Content-Type": kind} if body is not None else {})
        address = path + (f"?{urlencode(query)}" if query else "")
        try:
            async with contextlib.AsyncExitStack() as held:
                for is_renewed in (False, True):
                    answer = await held.enter_async_context(
                        await connection.send(method, address, headers, body, timeout)
                    )
                    # The token may have been replaced while we held the old one.
                    if answer.status != 401 or is_renewed:
                        break
                    await connection.renew()
                if answer.status >= 300:
                    raise _refusal(answer.status, _status_of(await answer.read()), answer.headers)
                yield answer
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:  # TimeoutError is an OSError.
            raise Unavailable("The Kubernetes API does not answer.", cause=repr(error)) from error

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is None:
                self._connection = await _Connection.open(self._kubeconfig, self._context)
            await self._connection.keep_fresh()
            return self._connection


class _Connection:
    """A session with the credentials that are valid now."""

    def __init__(self, kubeconfig: str, context: str, configuration: Configuration, client: RESTClientObject) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._configuration = configuration
        self._client = client
        self._renewed_at = time.monotonic()

    @classmethod
    async def open(cls, kubeconfig: str, context: str) -> Self:
        """Raises Unavailable where no way in is configured, or one that we do not go."""
        configuration = await _configuration(kubeconfig, context)
        from kubernetes_asyncio.client.rest import RESTClientObject

        return cls(kubeconfig, context, configuration, RESTClientObject(configuration))

    async def close(self) -> None:
        await self._client.close()

    async def send(
        self, method: str, address: str, headers: dict[str, str], body: bytes | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        token = self._configuration.api_key.get("BearerToken")
        settings: dict[str, Any] = {}
        if self._configuration.proxy:
            settings["proxy"] = self._configuration.proxy
        if self._configuration.tls_server_name:
            settings["server_hostname"] = self._configuration.tls_server_name
        answer: aiohttp.ClientResponse = await self._client.pool_manager.request(
            method,
            str(self._configuration.host).rstrip("/") + address,
            headers=headers | ({"Authorization": token} if token else {}),
            # As a file: aiohttp warns of large bodies that are none.
            data=None if body is None else io.BytesIO(body),
            timeout=timeout,
            **settings,
        )
        return answer

    async def keep_fresh(self) -> None:
        if time.monotonic() - self._renewed_at >= _TOKEN_SECONDS:
            await self.renew()

    async def renew(self) -> None:
        """Read anew what proves who we are."""
        fresh = await _configuration(self._kubeconfig, self._context)
        self._configuration.api_key = fresh.api_key
        self._renewed_at = time.monotonic()


async def _configuration(kubeconfig: str, context: str) -> Configuration:
    await asyncio.to_thread(__import__, "kubernetes_asyncio.config")
    from kubernetes_asyncio import client, config

    configuration = client.Configuration()
    try:
        if not kubeconfig and _SERVICE_ACCOUNT_TOKEN.exists() and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(configuration, try_refresh_token=False)  # type: ignore[no-untyped-call]
        else:
            await _load_kubeconfig(kubeconfig, context, configuration)
    except Unavailable:
        raise
    except Exception as error:  # The library raises whatever a strange file makes it stumble over.
        raise Unavailable(f"There is no way to the cluster: {error}", cause=repr(error)) from error
    token = configuration.api_key.get("BearerToken")
    if token is not None:
        configuration.api_key["BearerToken"] = token.strip()
    return configuration


async def _load_kubeconfig(paths: str, context: str, configuration: Configuration) -> None:
    from kubernetes_asyncio.config import kube_config

    class Loader(kube_config.KubeConfigLoader):
        """A server runs no programs of others to get at credentials, and keeps no session with their providers."""

        async def load_from_exec_plugin(self) -> bool:
            raise _unsupported("has its credentials from a program (exec)")

        async def load_gcp_token(self) -> str:
            raise _unsupported("has its credentials from an auth-provider")

        async def _load_oid_token(self) -> str:
            raise _unsupported("has its credentials from an auth-provider")

    paths = paths or kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    merged = kube_config.KubeConfigMerger(paths)
    if merged.config is None:
        raise Unavailable(f"There is no way to the cluster: no service account, and no kubeconfig at {paths}.")
    loader = Loader(config_dict=merged.config, config_base_path=None, active_context=context or None)
    await loader.load_and_set(configuration)


def _unsupported(what: str) -> Unavailable:
    return Unavailable(
        f"The user of the kubeconfig {what}, which is not supported: give it a token, a tokenFile or a client "
        "certificate."
    )


# Paths, and what is read of answers


def _workflows(namespace: str, name: str = "") -> str:
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"/apis/{_GROUP}/{_VERSION}{scope}/workflows" + (f"/{quote(name, safe='')}" if name else "")


def _pods(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods" + (f"/{quote(name, safe='')}" if name else "")


class _ListMetadata(msgspec.Struct, frozen=True, kw_only=True):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True, kw_only=True):
    metadata: _ListMetadata = _ListMetadata()
    items: tuple[msgspec.Raw, ...] | None = None


class _Details(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = ""
    retry_after_seconds: float = msgspec.field(default=0, name="retryAfterSeconds")


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    class _Name(msgspec.Struct, frozen=True, kw_only=True):
        name: str

    metadata: _Name


_list_of = msgspec.json.Decoder(_List).decode
_event_of = msgspec.json.Decoder(Event).decode
_named_of = msgspec.json.Decoder(_Named).decode


def _named(item: msgspec.Raw) -> str:
    return _named_of(item).metadata.name


def _status_of(text: bytes) -> _Status:
    """What stands between us and the server may answer in words of its own."""
    try:
        return msgspec.json.decode(text, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Status(message=text[:200].decode(errors="replace").strip())


def _refusal(code: int, status: _Status, headers: Mapping[str, str]) -> Exception:
    said = status.message or f"HTTP {code}"
    if code == 413 or "request is too large" in said or "larger than max" in said:
        return TooLarge(said)
    match code:
        case 404:
            # Who knows the resource names it. Else nothing is said of the object: a server that has just started, or
            # what stands before it, must not make anybody believe that it is gone.
            if status.details is not None and status.details.kind:
                return Missing(said, kind=status.details.kind)
            return NotInstalled(
                f"The cluster knows no workflows ({_GROUP}/{_VERSION}): install Argo Workflows.", cause=said
            )
        case 409:
            return AlreadyExists(said) if status.reason == "AlreadyExists" else Conflict(said)
        case 410:
            return Expired(said)
        case 403:
            return Forbidden("The cluster does not allow it.", cause=said)
        case 429:
            asked = status.details.retry_after_seconds if status.details else 0
            after = headers.get("Retry-After", "")
            return Busy(
                "The Kubernetes API asks for a pause.",
                cause=said,
                after_seconds=float(after) if after.isdecimal() else asked,
            )
    if code == 401 or code >= 500 or code == 408:
        return Unavailable("The Kubernetes API does not serve us.", cause=f"{code}: {said}")
    return Rejected(said)


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """However long they are; what a cut has left of the last one is dropped."""
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for following in rest:
            if line := b"".join(parts):
                yield line
            parts = [following]
