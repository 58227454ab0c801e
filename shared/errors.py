"""The one family of refusals, raised where a rule is known and translated once to HTTP and once to NATS.

    Refusal
    ├── MalformedRequest    400  the bytes are not a request at all (decoding; the body has no details)
    ├── InvalidInput        400  a rule of the API says no
    ├── NotFound            404  the named thing does not exist
    ├── AlreadyExists       409  the name or key is taken
    ├── WrongState          409  the thing exists, and its state forbids this
    ├── Unauthenticated     401
    ├── PermissionDenied    403
    ├── NotSupported        501  part of the API that has no implementation by design
    ├── Unavailable         503  something we depend on does not answer; the same call may pass later
    └── Internal            500  our fault

A refusal knows its texts (API specification, section 3) and nothing of HTTP frameworks or brokers.
Layers name themselves with `layer("Get experiment failed.")`: each one prefixes the technical text, the
user's text never changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self


class Refusal(Exception):
    """A request that is answered with an error.

    `message` is the text for the API's user; `cause` the technical reason, if there is one beyond the message.
    """

    code: ClassVar[int] = 13
    """The gRPC status number, as the API's bodies carry it."""
    status: ClassVar[int] = 500
    """The HTTP status."""
    has_details: ClassVar[bool] = True

    def __init__(self, message: str, *, cause: str | None = None, layers: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.layers = layers

    @property
    def innermost(self) -> str:
        """The technical text without the layers' names."""
        return self.message if self.cause is None else f"{self.message}: {self.cause}"

    @property
    def error(self) -> str:
        """The technical text: every layer's name, outermost first, then the innermost text."""
        return ": ".join((*self.layers, self.innermost))

    def inside(self, layer_name: str) -> Self:
        """Name a layer this refusal passed through on its way out."""
        self.layers = (layer_name, *self.layers)
        return self

    def __str__(self) -> str:
        return self.error


class MalformedRequest(Refusal):
    code = 3
    status = 400
    has_details = False


class InvalidInput(Refusal):
    code = 3
    status = 400

    @property
    def innermost(self) -> str:
        if self.cause is None:
            return f"Invalid input error: {self.message}"
        return f"InvalidInputError: {self.message}: {self.cause}"


class NotFound(Refusal):
    """`NotFound.of("Run", run_id)` words it as the API does; a bare message is allowed where the words differ."""

    code = 5
    status = 404

    @classmethod
    def of(cls, kind: str, identity: str) -> Self:
        return cls(f"{kind} {identity} not found.")

    @property
    def innermost(self) -> str:
        if self.cause is None:
            return f"ResourceNotFoundError: {self.message}"
        return f"NotFoundError: {self.message}: {self.cause}"


class AlreadyExists(Refusal):
    code = 6
    status = 409

    @property
    def innermost(self) -> str:
        return f"Already exist error: {self.message}"


class WrongState(Refusal):
    """The API calls this class "bad request" and answers 409 (gRPC Aborted)."""

    code = 10
    status = 409

    @property
    def innermost(self) -> str:
        text = f"BadRequestError: {self.message}"
        return text if self.cause is None else f"{text}: {self.cause}"


class Unauthenticated(Refusal):
    code = 16
    status = 401

    @property
    def innermost(self) -> str:
        return f"Unauthenticated: {super().innermost}"


class PermissionDenied(Refusal):
    code = 7
    status = 403

    @property
    def innermost(self) -> str:
        return f"PermissionDenied: {super().innermost}"


class NotSupported(Refusal):
    code = 12
    status = 501


class Unavailable(Refusal):
    code = 14
    status = 503


class Internal(Refusal):
    """The user reads a constant; the reason stays in the technical text and in our logs."""

    code = 13
    status = 500

    def __init__(self, reason: str, *, cause: str | None = None, layers: tuple[str, ...] = ()) -> None:
        super().__init__("Internal Server Error", cause=cause, layers=layers)
        self.reason = reason

    @property
    def innermost(self) -> str:
        text = f"InternalServerError: {self.reason}"
        return text if self.cause is None else f"{text}: {self.cause}"


_BY_NAME: dict[str, type[Refusal]] = {
    kind.__name__: kind
    for kind in (
        MalformedRequest,
        InvalidInput,
        NotFound,
        AlreadyExists,
        WrongState,
        Unauthenticated,
        PermissionDenied,
        NotSupported,
        Unavailable,
        Internal,
    )
}


@contextmanager
def layer(name: str) -> Iterator[None]:
    """Name the layer that a refusal raised inside passes through: its technical text starts with `name: `."""
    try:
        yield
    except Refusal as refusal:
        raise refusal.inside(name) from refusal.__cause__


def http_body(refusal: Refusal) -> dict[str, Any]:
    """The error body of every JSON route (API specification, section 3.1)."""
    body: dict[str, Any] = {"error": refusal.error, "message": refusal.error, "code": refusal.code}
    if refusal.has_details:
        body["details"] = [
            {
                "@type": "type.googleapis.com/api.Error",
                "error_message": refusal.message,
                "error_details": refusal.error,
            }
        ]
    return body


def to_document(refusal: Refusal) -> dict[str, Any]:
    """A refusal as it travels in the answer to a question."""
    return {
        "kind": type(refusal).__name__,
        "message": refusal.reason if isinstance(refusal, Internal) else refusal.message,
        "cause": refusal.cause,
        "layers": list(refusal.layers),
    }


def from_document(document: dict[str, Any]) -> Refusal:
    """The refusal that the other side of a question raised; an unknown kind is our own fault."""
    kind = _BY_NAME.get(str(document.get("kind")), Internal)
    return kind(
        str(document.get("message", "")),
        cause=document.get("cause"),
        layers=tuple(document.get("layers") or ()),
    )
