"""The HTTP door: paths to kinds, methods to verbs, texts to questions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from tests.support.kubernetes import patches, watching
from tests.support.kubernetes.faults import Faults, Requests
from tests.support.kubernetes.objects import Objects, Preconditions
from tests.support.kubernetes.pages import Listing, page
from tests.support.kubernetes.pod_logs import LogRequest, PodLogs, is_nowhere
from tests.support.kubernetes.resources import PODS, Resource
from tests.support.kubernetes.selectors import Predicate, selector
from tests.support.kubernetes.statuses import Refusal, bad_request
from tests.support.kubernetes.store import Document, Name

_OPEN_PATHS = frozenset({"/version", "/readyz", "/livez", "/healthz"})
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_LOG_DOOR = "/fake/"
"""Beside the API: where the logs of pods are handed in."""
_MOST_BODY_BYTES = 3 * 1024 * 1024
_LONGEST_WATCH_SECONDS = 3600.0
_PARTIAL = "application/json;as=PartialObjectMetadata"

_PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/merge-patch+json": patches.merged,
    "application/json-patch+json": patches.applied,
}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_STRATEGIC = "application/strategic-merge-patch+json"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What a path names."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    part: str = ""

    @property
    def key(self) -> Name:
        return self.namespace, self.name


class Routes:
    def __init__(self, objects: Objects, logs: PodLogs, faults: Faults, requests: Requests) -> None:
        self.bookmark_seconds = 60.0
        self._watched: set[asyncio.Transport] = set()
        self.denied: Callable[[dict[str, Any]], bool] = lambda attributes: False
        """Whether an access review has to say no of these attributes of a resource."""
        self._objects = objects
        self._logs = logs
        self._faults = faults
        self._requests = requests

    def application(self) -> web.Application:
        # The limit is the API's to keep, in its own words.
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/{path:.*}", self._serve)
        return application

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        shown = request.headers.get("Authorization")
        try:
            if self._faults.is_of_controller(shown):
                return await self._answer(request)
            self._requests.note(request.method, request.path_qs)
            await asyncio.sleep(self._faults.delay_seconds)
            self._faults.demand_luck(request.method, request.path_qs)
            if request.path not in _OPEN_PATHS:
                self._faults.demand_token(shown)
            answer = await self._answer(request)
        except Refusal as refusal:
            answer = _refused(refusal)
        if self._faults.loses(request.method, request.path_qs) and request.transport is not None:
            request.transport.abort()
        return answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in _OPEN_PATHS:
            return _said(request.path)
        if request.path == _ACCESS_REVIEWS:
            return _json(self._reviewed(await _body(request)), status=201)
        if (described := self._described(request.path.strip("/").split("/"))) is not None:
            return _json(described)
        place = self._place(request.path.removeprefix(_LOG_DOOR).strip("/").split("/"))
        if request.path.startswith(_LOG_DOOR):
            return await self._hand_in_log(request, place)
        verb = self._verb(request, place)
        if verb is not None:
            return await verb(request, place)
        if place.resource.is_custom and not place.name:
            raise bad_request("name must be provided") if request.method in ("PUT", "PATCH") else _no_such_path()
        raise Refusal(405, "the server does not allow this method on the requested resource")

    def _verb(
        self, request: web.Request, place: Place
    ) -> Callable[[web.Request, Place], Awaitable[web.StreamResponse]] | None:
        if place.part == "log":
            return self._log if request.method == "GET" and place.resource == PODS else None
        if not place.name:
            reads = {"GET": self._watch if _flag(request, "watch") else self._list}
            is_of_all_namespaces = place.resource.is_namespaced and not place.namespace
            writes = {} if is_of_all_namespaces else {"POST": self._create, "DELETE": self._delete_all}
            return (reads | writes).get(request.method)
        of_one = {"GET": self._get, "PUT": self._replace, "PATCH": self._patch}
        return (of_one if place.part else of_one | {"DELETE": self._delete}).get(request.method)

    # Paths

    def _place(self, parts: list[str]) -> Place:
        match parts:
            case ["api", version, *rest]:
                return self._place_in("", version, rest)
            case ["apis", group, version, *rest]:
                return self._place_in(group, version, rest)
        raise _no_such_path()

    def _place_in(self, group: str, version: str, rest: list[str]) -> Place:
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
            _, namespace, *rest = rest
        plural, name, part, *beyond = (*rest, "", "", "")
        resource = self._objects.catalogue.find(group, version, plural)
        if resource is None or any(beyond) or part not in ("", "log", *(["status"] if resource.has_status else [])):
            raise _no_such_path()
        if bool(namespace) != resource.is_namespaced and (name or namespace):
            raise _no_such_path()
        return Place(resource=resource, namespace=namespace, name=name, part=part)

    def _described(self, parts: list[str]) -> dict[str, Any] | None:
        """The kinds of one group, for clients that ask whether there is what they need."""
        match parts:
            case ["api", version]:
                return self._resources("", version)
            case ["apis", group, version]:
                return self._resources(group, version)
        return None

    def _resources(self, group: str, version: str) -> dict[str, Any]:
        found = [each for each in self._objects.catalogue.all() if (each.group, each.version) == (group, version)]
        if not found:
            raise _no_such_path()
        listed = [entry for each in found for entry in _entries(each)]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": found[0].api_version,
            "resources": listed,
        }

    # Verbs

    async def _get(self, request: web.Request, place: Place) -> web.StreamResponse:
        return _json(_seen(request)(self._objects.get(place.resource, place.key)))

    async def _list(self, request: web.Request, place: Place) -> web.StreamResponse:
        version = request.query.get("resourceVersion", "")
        _version(version or "0")
        asked = Listing(
            namespace=place.namespace,
            matches=_matches(request, place),
            is_selective=bool(request.query.get("labelSelector") or request.query.get("fieldSelector")),
            limit=_number(request, "limit") or 0,
            token=request.query.get("continue", ""),
            version=version,
            is_exact=request.query.get("resourceVersionMatch") == "Exact",
        )
        listed = page(self._objects, place.resource, asked)
        if _wants_metadata(request):
            listed |= {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            listed["items"] = [_metadata_alone(each) for each in listed["items"]]
        return _json(listed)

    async def _create(self, request: web.Request, place: Place) -> web.StreamResponse:
        document = await _body(request)
        made = self._objects.create(place.resource, place.namespace, document, is_dry=_is_dry(request))
        return _json(_seen(request)(made), status=201)

    async def _replace(self, request: web.Request, place: Place) -> web.StreamResponse:
        document = await _body(request)
        is_status = place.part == "status"
        kept = self._objects.replace(place.resource, place.key, document, is_status=is_status, is_dry=_is_dry(request))
        return _json(_seen(request)(kept))

    async def _patch(self, request: web.Request, place: Place) -> web.StreamResponse:
        how = _PATCHES.get(request.content_type)
        if request.content_type == _STRATEGIC and not place.resource.is_custom:
            how = _strategically_merged
        if how is None:
            known = ", ".join(_PATCHES)
            raise Refusal(
                415, f"the body of the request was in an unknown format - accepted media types include: {known}"
            )
        patch = await _body(request, of=object)
        kept = self._objects.patch(
            place.resource,
            place.key,
            lambda document: how(document, patch),
            is_status=place.part == "status",
            is_dry=_is_dry(request),
        )
        return _json(_seen(request)(kept))

    async def _delete(self, request: web.Request, place: Place) -> web.StreamResponse:
        options = await _options(request)
        answer = self._objects.delete(
            place.resource,
            place.key,
            preconditions=msgspec.convert(options.get("preconditions") or {}, Preconditions),
            is_dry=_is_dry(request) or options.get("dryRun") == ["All"],
        )
        return _json(answer)

    async def _delete_all(self, request: web.Request, place: Place) -> web.StreamResponse:
        options = await _options(request)
        is_dry = _is_dry(request) or options.get("dryRun") == ["All"]
        gone = self._objects.delete_all(place.resource, place.namespace, _matches(request, place), is_dry=is_dry)
        return _json(
            {
                "kind": f"{place.resource.kind}List",
                "apiVersion": place.resource.api_version,
                "metadata": {"resourceVersion": str(self._objects.store.version)},
                "items": gone,
            }
        )

    async def _watch(self, request: web.Request, place: Place) -> web.StreamResponse:
        version = request.query.get("resourceVersion", "")
        since = None if version in ("", "0") else _version(version)
        store = self._objects.store
        if since is not None and since < store.oldest and self._faults.expires_with_status:
            raise Refusal(410, f"too old resource version: {since} ({store.oldest})", reason="Gone")
        asked = watching.Watch(
            resource=place.resource,
            matches=_matches(request, place),
            since=since,
            bookmark_seconds=self.bookmark_seconds if _flag(request, "allowWatchBookmarks") else None,
            timeout_seconds=float(_number(request, "timeoutSeconds") or _LONGEST_WATCH_SECONDS),
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        if (transport := request.transport) is None:
            return response
        if not self._faults.is_of_controller(request.headers.get("Authorization")):
            self._watched.add(transport)
        try:
            await response.prepare(request)
            seen = _seen(request)
            async with aclosing(watching.events(store, asked)) as batches:
                async for batch in batches:
                    await response.write(b"".join(_line(watching.as_seen(event, seen)) for event in batch))
        except ConnectionError:
            return response
        finally:
            self._watched.discard(transport)
        return response

    def cut_watches(self) -> None:
        """As a network does: without a word."""
        for transport in self._watched:
            transport.abort()

    # Logs

    async def _log(self, request: web.Request, place: Place) -> web.StreamResponse:
        since_seconds, since_time = _number(request, "sinceSeconds"), request.query.get("sinceTime")
        since = datetime.now(UTC) - timedelta(seconds=since_seconds) if since_seconds else None
        asked = LogRequest(
            container=request.query.get("container", ""),
            follow=_flag(request, "follow"),
            since=datetime.fromisoformat(since_time) if since_time else since,
            limit_bytes=_number(request, "limitBytes"),
            tail_lines=_number(request, "tailLines"),
            timestamps=_flag(request, "timestamps"),
        )
        pod = self._objects.get(PODS, place.key)
        async with aclosing(self._logs.read(pod, asked)) as chunks:
            # What cannot be had is refused before an answer has begun.
            first = await anext(chunks, b"")
            if not first and is_nowhere(pod):
                return web.Response(status=204)
            response = web.StreamResponse(headers={"Content-Type": "text/plain"})
            response.enable_chunked_encoding()
            await response.prepare(request)
            try:
                await response.write(first) if first else None
                async for chunk in chunks:
                    await response.write(chunk)
            except ConnectionError:
                return response
        return response

    async def _hand_in_log(self, request: web.Request, place: Place) -> web.StreamResponse:
        pod = self._objects.get(PODS, place.key)
        self._logs.write(pod, request.query["container"], await request.read())
        return _json({}, status=201)

    def _reviewed(self, review: Document) -> dict[str, Any]:
        attributes = review["spec"].get("resourceAttributes") or review["spec"].get("nonResourceAttributes") or {}
        return {**review, "status": {"allowed": not self.denied(attributes)}}


# What requests say


async def _body(request: web.Request, of: type[Any] = dict) -> Any:
    body = await request.read()
    if len(body) > _MOST_BODY_BYTES:
        raise Refusal(413, f"Request entity too large: limit is {_MOST_BODY_BYTES}")
    try:
        return msgspec.json.decode(body, type=of)
    except msgspec.DecodeError as error:
        raise bad_request(f"the object provided is unrecognized (must be of type JSON): {error}") from error


async def _options(request: web.Request) -> dict[str, Any]:
    body = await request.read()
    if not body:
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise bad_request(f"the options are no JSON: {error}") from error


def _matches(request: web.Request, place: Place) -> Predicate:
    labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
    selected = selector(place.resource, labels=labels, fields=fields)
    if not place.namespace:
        return selected
    return lambda found: found["metadata"]["namespace"] == place.namespace and selected(found)


def _flag(request: web.Request, name: str) -> bool:
    """Whatever is said is a yes, but for two words."""
    return request.query.get(name, "0").lower() not in ("0", "false")


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    try:
        return int(text) if text else None
    except ValueError:
        raise bad_request(f"{name}: not a number: {text}") from None


def _version(text: str) -> int:
    if not text.isdecimal():
        raise bad_request(f"resourceVersion: Invalid value: {text!r}")
    return int(text)


def _is_dry(request: web.Request) -> bool:
    return request.query.get("dryRun") == "All"


def _wants_metadata(request: web.Request) -> bool:
    return request.headers.get("Accept", "").replace(" ", "").startswith(_PARTIAL)


def _seen(request: web.Request) -> Callable[[Document], Document]:
    return _metadata_alone if _wants_metadata(request) else _whole


def _whole(document: Document) -> Document:
    return document


def _metadata_alone(document: Document) -> Document:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": document["metadata"]}


def _strategically_merged(target: Any, patch: Any) -> Any:
    """As a merge patch, which it is where nothing in it is a list; what lists mean there depends on their kind."""
    if b"[" in msgspec.json.encode(patch):
        raise Refusal(415, "this server does not know how lists are merged")
    return patches.merged(target, patch)


# What is answered


def _json(document: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def _refused(refusal: Refusal) -> web.Response:
    answer = _json(refusal.status(), status=refusal.code)
    if refusal.code in (429, 503):
        answer.headers["Retry-After"] = "1"
    return answer


def _entries(resource: Resource) -> list[dict[str, Any]]:
    """The kind, and its status where that has a path of its own."""
    kind = {"kind": resource.kind, "namespaced": resource.is_namespaced, "singularName": ""}
    entries = [{**kind, "name": resource.plural, "verbs": _VERBS}]
    if resource.has_status:
        entries.append({**kind, "name": f"{resource.plural}/status", "verbs": ["get", "patch", "update"]})
    return entries


def _no_such_path() -> web.HTTPNotFound:
    """No kind of the server's is there, and so nobody who would say so in a document."""
    return web.HTTPNotFound(text="404 page not found\n")


def _line(event: watching.Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def _said(path: str) -> web.Response:
    if path != "/version":
        return web.Response(text="ok")
    return _json({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"})
