"""What subscribers can hear, as an AsyncAPI 3 document made from the published language itself.

Every kind of fact is a channel on NATS, with the subject that it is published on, the headers of its CloudEvent and the
schema of its body. Nothing is written down twice: a kind that is declared in `shared.contracts` is in the document.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shared.contracts.events import FACTS, FactKind

VERSION: Final = "3.0.0"

_SCHEMA: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_RESOURCES: Final = {
    "experiment": "the experiment",
    "pipeline-registry": "the pipeline or the version",
    "run": "the run",
    "node": "the run that the step belongs to",
    "job-scheduler": "the recurring run",
    "metrics": "the run",
}
_ABOUT: Final = """\
Everything that happens to runs, recurring runs, experiments and pipelines is a fact: a CloudEvent 1.0 in the NATS
binary binding, on the JetStream stream `KFP_EVENTS`. Its subject is `kfp.event.<owner>.<what>.<id>`, so that
`kfp.event.run.failed.>` is every failure and `kfp.event.*.*.<id>` everything about one resource.

* Each fact is delivered at least once. Its `ce-id` stays the same when it is delivered, or published, again.
* `ce-position` counts the facts of one owner, without gaps and in the order in which they happened; what happens to one
  resource comes in order. It outlives the broker's store, which is rebuilt after a loss: go on by position, not by the
  stream's own sequence.
* Fields are added, never renamed or retyped. What means something else has another type (`.v2`).

The user `events` may subscribe and read the stream by consumers of its own; it can state nothing.
The same facts come over HTTP as server-sent events, `GET /apis/headrace/v1/events`, where the data of each is the whole
CloudEvent in JSON.
"""


def document() -> dict[str, Any]:
    kinds = tuple(FACTS.values())
    _, schemas = msgspec.json.schema_components(sorted({kind.body for kind in kinds}, key=str), ref_template=_SCHEMA)
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "Headrace: what happens",
            "version": "v1",
            "description": _ABOUT,
            "license": {"name": "Apache 2.0"},
        },
        "defaultContentType": _JSON,
        "servers": {
            "nats": {
                "host": "{host}:{port}",
                "protocol": "nats",
                "variables": {
                    "host": {"default": "127.0.0.1", "description": "Where the broker listens."},
                    "port": {"default": "4222", "description": "The embedded stack picks one that is free."},
                },
                "security": [{"$ref": "#/components/securitySchemes/events"}],
            }
        },
        "channels": {_name(kind): _channel(kind) for kind in kinds},
        "operations": {f"tell-{_name(kind)}": _operation(kind) for kind in kinds},
        "components": {
            "messages": {_name(kind): _message(kind) for kind in kinds},
            "schemas": {**schemas, "CloudEventHeaders": _HEADERS},
            "securitySchemes": {
                "events": {"type": "userPassword", "description": "The user `events`, who may only listen."}
            },
        },
    }


def _name(kind: FactKind[Any]) -> str:
    return f"{kind.owner}-{kind.what}"


def _channel(kind: FactKind[Any]) -> dict[str, Any]:
    return {
        "address": kind.subject("{id}"),
        "summary": kind.says,
        "parameters": {"id": {"description": f"The id of {_RESOURCES.get(kind.owner, 'the resource')}."}},
        "messages": {_name(kind): {"$ref": f"#/components/messages/{_name(kind)}"}},
    }


def _operation(kind: FactKind[Any]) -> dict[str, Any]:
    channel = f"#/channels/{_name(kind)}"
    return {
        "action": "send",
        "channel": {"$ref": channel},
        "summary": kind.says,
        "messages": [{"$ref": f"{channel}/messages/{_name(kind)}"}],
    }


def _message(kind: FactKind[Any]) -> dict[str, Any]:
    own = {"ce-type": {"const": kind.type}, "ce-source": {"const": f"/headrace/{kind.owner}"}}
    return {
        "name": kind.type,
        "title": f"{kind.owner} {kind.what}",
        "summary": kind.says,
        "contentType": _JSON,
        "headers": {"allOf": [{"$ref": _SCHEMA.format(name="CloudEventHeaders")}, {"properties": own}]},
        "payload": {"$ref": _SCHEMA.format(name=kind.body.__name__)},
    }


_HEADERS: Final[dict[str, Any]] = {
    "type": "object",
    "required": [
        *("ce-specversion", "ce-id", "ce-type", "ce-source", "ce-subject", "ce-time", "ce-position"),
        *("ce-datacontenttype", "Nats-Msg-Id"),
    ],
    "properties": {
        "ce-specversion": {"const": "1.0"},
        "ce-id": {"type": "string", "description": "Stays the same when the fact is told again."},
        "ce-type": {"type": "string", "description": "`kfp.<owner>.<what>.v<revision>`."},
        "ce-source": {"type": "string", "description": "The service that owns the resource."},
        "ce-subject": {"type": "string", "description": "The id of the resource."},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-position": {
            "type": "string",
            "pattern": "^[1-9][0-9]*$",
            "description": "Counts the facts of the owner, without gaps.",
        },
        "ce-datacontenttype": {"const": _JSON},
        "traceparent": {"type": "string", "description": "W3C trace context of the request that led to the fact."},
        "Nats-Msg-Id": {"type": "string", "description": "The same as `ce-id`."},
    },
}
