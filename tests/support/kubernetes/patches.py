"""Merge patches (RFC 7396) and JSON patches (RFC 6902)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.kubernetes.statuses import Refusal, bad_request


def merged(target: Any, patch: Any) -> Any:
    """`target` with the patch: null removes, objects are merged, everything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def applied(target: Any, operations: Any) -> Any:
    """`target` after all operations, or a Refusal: a patch is carried out as a whole or not at all."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = copy.deepcopy(target)
    for operation in operations:
        try:
            document = _apply(document, operation)
        except (KeyError, IndexError, ValueError, TypeError, _TestFailed) as error:
            raise Refusal(422, f"the server rejected our request due to an error in our request: {error}") from error
    return document


class _TestFailed(Exception):
    pass


def _apply(document: Any, operation: Mapping[str, Any]) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _put(document, path, copy.deepcopy(operation["value"]), is_new=True)
        case "replace":
            _get(document, path)
            return _put(document, path, copy.deepcopy(operation["value"]), is_new=False)
        case "remove":
            return _remove(document, path)
        case "copy":
            return _put(document, path, copy.deepcopy(_get(document, _pointer(operation["from"]))), is_new=True)
        case "move":
            moved = _get(document, _pointer(operation["from"]))
            return _put(_remove(document, _pointer(operation["from"])), path, moved, is_new=True)
        case "test":
            if _get(document, path) != operation["value"]:
                raise _TestFailed(f"testing value {operation['path']} failed")
            return document
        case unknown:
            raise ValueError(f"unexpected kind: {unknown}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"a path begins with a slash: {text}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: Sequence[str]) -> Any:
    for part in path:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _put(document: Any, path: Sequence[str], value: Any, *, is_new: bool) -> Any:
    if not path:
        return value
    holder, last = _get(document, path[:-1]), path[-1]
    if not isinstance(holder, list):
        holder[last] = value
    elif is_new:
        holder.insert(len(holder) if last == "-" else _place(holder, last), value)
    else:
        holder[int(last)] = value
    return document


def _place(holder: list[Any], text: str) -> int:
    place = int(text)
    if not 0 <= place <= len(holder):
        raise IndexError(text)
    return place


def _remove(document: Any, path: Sequence[str]) -> Any:
    holder, last = _get(document, path[:-1]), path[-1]
    if isinstance(holder, list):
        del holder[int(last)]
    else:
        del holder[last]
    return document
